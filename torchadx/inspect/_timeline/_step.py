"""Running a training step under the profiler, noting on the way which memory is what."""

import collections
import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.overrides import TorchFunctionMode
from torch.utils.weak import TensorWeakRef

from torchadx.inspect import _nodes
from torchadx.inspect._modules import ModuleWatch
from torchadx.inspect._saved._owners import storages_of
from torchadx.inspect._trace._frames import Frame, frames
from torchadx.inspect._trace._nest import Nest
from torchadx.inspect._trace._trace import Recording, Trace
from torchadx.memory import Residence
from torchadx.memory._storage import has_memory

#: begin the names of ranges in the trace
NOTE = "torchadx.inspect note "
STEP = "torchadx.inspect step"
BACKWARD = "torchadx.inspect backward"
OPTIMIZER = "torchadx.inspect optimizer"

aten = torch.ops.aten
_BACKWARDS = (torch.Tensor.backward, torch.autograd.backward, torch.autograd.grad)


@dataclasses.dataclass(frozen=True, slots=True)
class Noted:
    """What a block of memory was at some moment.

    Attributes:
        address: Of the block.
        nbytes: Of the storage in it.
        device: Where it is, ``"cpu"`` or ``"cuda:0"``.
        category: What it was.
        name: Of a parameter, where it has one.
        module: Path of the module that it is of, where it has one.
    """

    address: int
    nbytes: int
    device: str
    category: str
    name: str | None = None
    module: str | None = None


@dataclasses.dataclass(frozen=True)
class Step:
    """A training step as it was recorded.

    Attributes:
        trace: What ran and what the allocators did; of the steps that warmed up, too.
        modules: Whose forwards ran.
        notes: What was noted at each range of the trace named ``NOTE`` and its index; of threads that the profiler
            does not follow there is no range.
        gone: The places of memory, device and address, that was noted before and that each note found freed.
    """

    trace: Trace
    modules: ModuleWatch
    notes: tuple[tuple[Noted, ...], ...]
    gone: tuple[tuple[tuple[str, int], ...], ...]

    @functools.cached_property
    def where(self) -> Nest[Frame]:
        """Which module was at work at each moment."""
        return frames(self.trace, self.modules)


class Observer(TorchFunctionMode):
    """While entered, notes what memory is what before and after each backward, and after each optimizer's step.

    Args:
        modules: Whose forwards run.
        before_backward: Told the outputs of each graph that is about to be run backward.
    """

    def __init__(self, modules: ModuleWatch, before_backward: Callable[[list[Tensor]], object]) -> None:
        super().__init__()
        self.notes: list[tuple[Noted, ...]] = []
        self.gone: list[tuple[tuple[str, int], ...]] = []
        self._storages: dict[tuple[str, int], StorageWeakRef] = {}
        self._leaves: dict[int, TensorWeakRef] = {}
        self._modules, self._before_backward = modules, before_backward
        self._stack = contextlib.ExitStack()
        # of each thread
        self._steps: dict[int, list[torch.profiler.record_function]] = collections.defaultdict(list)
        self._lock = threading.Lock()

    def __enter__(self) -> "Observer":
        with contextlib.ExitStack() as stack:
            for handle in (
                register_optimizer_step_pre_hook(self._before_step),
                register_optimizer_step_post_hook(self._after_step),
            ):
                stack.callback(handle.remove)
            super().__enter__()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._stack.close()
        for steps in self._steps.values():
            while steps:
                steps.pop().__exit__(*error)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _BACKWARDS:
            return func(*args, **kwargs)
        outputs = _nodes.tensors_of(args[0] if args else next(iter(kwargs.values())))
        self.note(self._around(outputs))
        self._before_backward(outputs)
        del outputs
        with torch.profiler.record_function(BACKWARD):
            result = func(*args, **kwargs)
        self.note((*self.gradients(), *self._blocks(_nodes.tensors_of(result), "gradient")))
        return result

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.note(self._optimized(optimizer))
        steps = self._steps[threading.get_ident()]
        steps.append(torch.profiler.record_function(OPTIMIZER))
        steps[-1].__enter__()

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if steps := self._steps[threading.get_ident()]:
            steps.pop().__exit__(None, None, None)
        self.note((*self._optimized(optimizer), *self._state(optimizer)))

    def note(self, noted: Iterable[Noted]) -> None:
        """Mark this moment in the trace, and remember what was what."""
        # optimizers may step in several threads
        with self._lock:
            gone = tuple(place for place, storage in self._storages.items() if storage.expired())
            for place in gone:
                del self._storages[place]
            self.gone.append(gone)
            found = tuple(noted)
            with torch.profiler.record_function(f"{NOTE}{len(self.notes)}"):
                self.notes.append(found)

    def _around(self, outputs: list[Tensor]) -> Iterator[Noted]:
        """Describe the graph that is about to be run backward, and what is beside it."""
        yield from self.parameters()
        yield from self.gradients()
        for tensor in self._modules.inputs():
            if tensor.grad_fn is None:
                yield from self._blocks([tensor], "input")
        for node in _nodes.walk(outputs):
            leaf = _nodes.leaf_of(node)
            if leaf is not None:
                self._leaves[id(leaf)] = TensorWeakRef(leaf)
                yield from self._blocks([leaf], "parameter" if isinstance(leaf, nn.Parameter) else "input")
                continue
            module = self._modules.owner(_nodes.number_of(node))
            # a graph may be partly freed, if no path through that part is asked for
            for slot in _nodes.held_by(node) or ():
                yield from self._blocks(held_tensors(slot), "activation", module=module)

    def parameters(self) -> Iterator[Noted]:
        """Describe the parameters and buffers of the modules that ran."""
        for name, tensor in self._modules.parameters().items():
            yield from self._blocks([tensor], "parameter", name, name.rpartition(".")[0])

    def gradients(self) -> Iterator[Noted]:
        """Describe the gradients of the modules that ran, and of other leaves that backward reached."""
        parameters = self._modules.parameters()
        for name, tensor in parameters.items():
            if tensor.is_leaf and tensor.grad is not None:
                yield from self._blocks([tensor.grad], "gradient", name, name.rpartition(".")[0])
        named = {id(tensor) for tensor in parameters.values()}
        leaves = [leaf for key, each in self._leaves.items() if key not in named and (leaf := each()) is not None]
        for leaf in leaves:
            if leaf.grad is not None:
                yield from self._blocks([leaf.grad], "gradient")

    def _optimized(self, optimizer: Optimizer) -> Iterator[Noted]:
        names = self._names()
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                place = names.get(id(parameter), (None, None))
                yield from self._blocks([parameter], "parameter", *place)
                if parameter.grad is not None:
                    yield from self._blocks([parameter.grad], "gradient", *place)

    def _state(self, optimizer: Optimizer) -> Iterator[Noted]:
        names = self._names()
        for parameter, state in optimizer.state.items():
            place = names.get(id(parameter), (None, None))
            yield from self._blocks(_nodes.tensors_of(state), "optimizer state", *place)

    def _names(self) -> dict[int, tuple[str, str]]:
        """Map the identities of parameters of modules that ran to their names and the paths of their modules."""
        return {id(tensor): (name, name.rpartition(".")[0]) for name, tensor in self._modules.parameters().items()}

    def _blocks(
        self, tensors: Iterable[Tensor], category: str, name: str | None = None, module: str | None = None
    ) -> Iterator[Noted]:
        for tensor in map(_strided, tensors):
            for storage in storages_of(tensor):
                if storage.nbytes() and has_memory(storage):
                    address, device = storage.data_ptr(), str(storage.device)
                    self._storages.setdefault((device, address), StorageWeakRef(storage))
                    yield Noted(address, storage.nbytes(), device, category, name, module)


def held_tensors(slot: _nodes.Slot) -> list[Tensor]:
    """Return the tensors in memory by which a slot holds something, in whatever form."""
    return list(slot.held.parts) if isinstance(slot.held, Residence) else _nodes.tensors_of(slot.held)


def _strided(tensor: Tensor) -> Tensor:
    """Return the values of a sparse tensor, such as the gradient of an embedding, and any other as it is."""
    # its indices are those that the embedding was given: not its own
    return aten._values(tensor) if tensor.layout is torch.sparse_coo else tensor


def run(
    step: Callable[[], object],
    model: nn.Module | None,
    warmup: int,
    before_backward: Callable[[ModuleWatch, list[Tensor]], object],
    around: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> Step:
    """Run a step under the profiler, after so many that warm up: what these made is known when the step begins.

    Args:
        step: One training step.
        model: Its model, where known.
        warmup: How many steps run first.
        before_backward: Told, in the step itself, the outputs of each graph that is about to be run backward.
        around: Entered around the step itself.

    Raises:
        TypeError: The step is no function, or the model no module.
        ValueError: ``warmup`` is negative.
    """
    if not callable(step):
        raise TypeError(f"step is a function without arguments that runs one training step; got {type(step).__name__}")
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(f"model is the torch.nn.Module that the step trains, or None; got {type(model).__name__}")
    if warmup < 0:
        raise ValueError(f"warmup is a number of steps, 0 or more; got {warmup}")
    measured = False
    modules = ModuleWatch(model, ranges=True)

    def tell(outputs: list[Tensor]) -> None:
        if measured:
            before_backward(modules, outputs)

    with Recording() as recording, modules, Observer(modules, tell) as observer:
        for _ in range(warmup):
            step()
        measured = True
        modules.again()
        # what warming up freed is gone when the step begins
        observer.note(())
        with around(), torch.profiler.record_function(STEP):
            step()
        # a thread, or what is written in C++, runs backward without a word
        observer.note((*observer.parameters(), *observer.gradients()))
    return Step(recording.trace, modules, tuple(observer.notes), tuple(observer.gone))
