"""The wrapper."""

import functools
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from torchadx import ops
from torchadx.inference import _explain, _inference_parameters
from torchadx.inference._boundary import CHOICES, Boundary
from torchadx.inference._graphs import Graphs
from torchadx.inference._layers import StandIn, stand_ins_for
from torchadx.inference._lending import Lending, compiled
from torchadx.inference._session import Session
from torchadx.inference._tensors import named_inputs
from torchadx.inference._training import EvalForCalls, acting
from torchadx.inference._weights import Weights
from torchadx.memory.budget import parse_bytes

_LOWER = (torch.bfloat16, torch.float16)


class _Plan:
    """What is known of the modules in a wrapper, until one of them has other children."""

    def __init__(self, module: nn.Module) -> None:
        modules = list(_own_modules(module, set()))
        self.stand_ins: dict[nn.Module, StandIn] = stand_ins_for(modules)
        self.tangents = Lending(self.stand_ins)
        self.prepared = Lending({m: stand_in for m, stand_in in self.stand_ins.items() if stand_in.promises()})
        self.acting = list(acting(module))
        self._children = [(parent, tuple(parent._modules.values())) for parent in module.modules() if parent._modules]
        # a lazy module is of another class after its first call
        self._lazy = any(isinstance(m, nn.modules.lazy.LazyModuleMixin) for m in modules)

    def is_current(self) -> bool:
        """Whether the modules are those that were looked at."""
        for parent, children in self._children:
            if tuple(parent._modules.values()) != children:
                return False
        return not self._lazy


class InferenceAware(nn.Module):
    """Wrap a module so that it does the right thing in each of PyTorch's gradient modes.

    Where gradients are recorded the module runs as it is, and so it does under transforms of ``torch.func``,
    ``torch.compile``, export and tracing. Under ``torch.inference_mode()`` its linear layers run on weights prepared
    for inference, fused with activations, and tangents of forward AD, which PyTorch drops there in silence, are right.
    Parameters, buffers, hooks and the names in ``state_dict`` are the module's own; ``modules()`` lists the wrapper in
    place of the module.

    Args:
        module: What to wrap. It is not changed, and can be used beside the wrapper, also by other threads.
        policy: What to do with tangents (of inputs, parameters or anything else) under inference mode: ``"exact"`` runs
            the module with the mode off and without a graph; ``"raise"`` raises.
        inference_tensors: What to do where gradients are recorded and an input, parameter or buffer was made under
            inference mode, so that PyTorch could not save it for backward: ``"copy"`` copies an input for the call,
            and replaces a parameter or buffer once, each with one warning that names it; ``"raise"`` raises.
        outputs: What inference mode returns: ``"inference"`` tensors, as PyTorch does, or ``"normal"`` ones that
            autograd accepts later.
        eval_in_inference: Whether modules are in eval mode for the time of a call under inference mode. Without it
            there is one warning where something in train mode acts, such as dropout.
        dtype: What linear layers compute in under inference mode: ``torch.bfloat16``, ``torch.float16``, or ``None``
            for the dtype of their weights. Results have the dtype they would have had.
        cache_bytes: What prepared weights may take, in bytes or as text (``"64 MiB"``); a weight that does not fit runs
            as it is. ``None`` for no limit.
        cuda_graph: Whether calls under inference mode are captured in a CUDA graph for each input signature. The module
            must not depend on values that the host reads.

    Shape:
        Inputs and outputs are the module's.

    Attributes:
        module: The module itself.

    Raises:
        TypeError: ``module`` is no module, or ``dtype`` no dtype.
        ValueError: An option has a value that is not listed here.
        RuntimeError: ``cuda_graph`` without a GPU. When called: what ``"raise"`` is for.

    Example:
        >>> import torch, torchadx
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.GELU(), torch.nn.Linear(8, 2)).eval()
        >>> wrapped = torchadx.InferenceAware(model)
        >>> with torch.inference_mode():
        ...     wrapped(torch.randn(4, 3)).shape
        torch.Size([4, 2])
    """

    module: nn.Module

    def __init__(
        self,
        module: nn.Module,
        *,
        policy: str = "exact",
        inference_tensors: str = "copy",
        outputs: str = "inference",
        eval_in_inference: bool = False,
        dtype: torch.dtype | None = None,
        cache_bytes: int | str | None = None,
        cuda_graph: bool = False,
    ) -> None:
        """Wrap a module; see the class for the options and errors."""
        super().__init__()
        if not isinstance(module, nn.Module):
            raise TypeError(f"InferenceAware wraps a torch.nn.Module, got {type(module).__name__}; functions: aware()")
        if dtype is not None and not isinstance(dtype, torch.dtype):
            raise TypeError(f"dtype must be a torch.dtype, got {dtype!r}")
        if dtype is not None and dtype not in _LOWER:
            raise ValueError(f"dtype must be None or one of {', '.join(map(str, _LOWER))}, got {dtype}")
        self._boundary = Boundary(f"InferenceAware({type(module).__name__})", policy, inference_tensors, outputs)
        self._eval_in_inference = eval_in_inference
        self._dtype = dtype
        self._cache_bytes = _limit(cache_bytes)
        self._cuda_graph = cuda_graph
        self.module = module

    def _set_up(self) -> None:
        self._weights = Weights(self._cache_bytes)
        self._graphs = Graphs() if self._cuda_graph else None
        self._eval_for_calls = EvalForCalls(self.module)
        self._prepared = Session(self._weights, self._dtype, tangents=False)
        self._tangents = Session(self._weights, None, tangents=True)
        self._plan: _Plan | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module as the current mode asks for."""
        if torch.compiler.is_compiling():
            return self.module(*args, **kwargs)
        inference = torch.is_inference_mode_enabled()
        # one look in the usual case
        if not (inference and ops.undisturbed()) and self._boundary.passes():
            return self.module(*args, **kwargs)
        if inference:
            return self._infer(args, kwargs)
        if torch.is_grad_enabled():
            _inference_parameters.replace(self.module, self._boundary)
            args, kwargs = self._boundary.admit(args, kwargs)
        return self._differentiate(args, kwargs) if ops.in_forward_level() else self.module(*args, **kwargs)

    def _infer(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._eval_in_inference:
            with self._eval_for_calls:
                return self._infer_now(self._look(), args, kwargs)
        plan = self._look()
        for name, module in plan.acting:
            if module.training:
                self._warn_of_training(name, module)
        return self._infer_now(plan, args, kwargs)

    def _infer_now(self, plan: _Plan, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if ops.in_forward_level():
            return self._differentiate(args, kwargs)
        run = functools.partial(plan.prepared.call, self._prepared, self.module)
        result = run(args, kwargs) if self._graphs is None else self._graphs.call(run, args, kwargs, self._addresses)
        return self._boundary.finish(result)

    def _differentiate(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        def step() -> Any:
            if torch.is_grad_enabled():
                return self.module(*args, **kwargs)
            return self._look().tangents.call(self._tangents, self.module, args, kwargs)

        held = _inference_parameters.named_tensors(self.module)
        return self._boundary.run(step, itertools.chain(named_inputs(args, kwargs), held))

    def _look(self) -> _Plan:
        # another thread may drop it meanwhile
        plan = self._plan
        if plan is None or not plan.is_current():
            plan = self._plan = _Plan(self.module)
            self._weights.keep(set(self.module.modules()))
        return plan

    def _warn_of_training(self, name: str, module: nn.Module) -> None:
        where = f"{name!r} ({type(module).__name__})" if name else f"the {type(module).__name__} itself"
        self._boundary.warn_once(
            "training",
            f"{self._boundary.name}: {where} is in train mode under torch.inference_mode(), so that dropout is active "
            "or statistics are updated. Call .eval() first, or wrap with eval_in_inference=True.",
        )

    def _addresses(self) -> tuple[int, ...]:
        self._weights.drop_changed()
        tensors = (tensor for _, tensor in _inference_parameters.named_tensors(self.module))
        return (self._weights.changes, *(tensor.data_ptr() for tensor in tensors))

    def explain(self) -> str:
        """Say what each mode runs, for the module and everything in it, and why.

        Returns:
            Lines of text: the modes first, then one line for each submodule.
        """
        return _explain.explain(self._boundary, self._look().stand_ins, self._prepared, self.module)

    @property
    def prepared_bytes(self) -> int:
        """Bytes of prepared weights that are held now."""
        return self._weights.bytes

    def release(self) -> None:
        """Free prepared weights and captured graphs, and look at the modules anew at the next call."""
        self._weights.release()
        if self._graphs is not None:
            self._graphs.release()
        self._plan = None

    def train(self, mode: bool = True) -> "InferenceAware":
        """Switch the module to train mode, which frees what was prepared, or to eval mode."""
        if mode:
            self.release()
        self.module.train(mode)
        self.training = mode
        return self

    def _apply(self, *args: Any, **kwargs: Any) -> "InferenceAware":
        # .to(), .half(), .cuda(): what was prepared is of no more use
        self.release()
        self.module._apply(*args, **kwargs)
        return self

    def apply(self, fn: Callable[[nn.Module], Any]) -> "InferenceAware":
        """Apply a function to the module, everything in it, and the wrapper."""
        self.module.apply(fn)
        fn(self)
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the module's own :meth:`torch.nn.Module.state_dict`."""
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load into the module, as its own :meth:`torch.nn.Module.load_state_dict` does."""
        return self.module.load_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any) -> None:
        self.module._load_from_state_dict(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; setting ``module`` wraps another module."""
        if name == "module":
            _stand_for(self, value)
            self._set_up()
        else:
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        """Look up what the wrapper does not have in the module."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            module = vars(self).get("module")
            if module is None or name.startswith("_"):
                raise
            return getattr(module, name)

    def __getitem__(self, key: Any) -> Any:
        """Look up in the module, e.g. a layer of a :class:`torch.nn.Sequential`."""
        return self.module[key]  # type: ignore[index]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was prepared, which a copy makes for itself."""
        made = ("_weights", "_graphs", "_eval_for_calls", "_prepared", "_tangents", "_plan")
        return {name: value for name, value in super().__getstate__().items() if name not in made}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the wrapper, with nothing prepared."""
        super().__setstate__(state)
        self._set_up()

    def __repr__(self) -> str:
        """Return the options that are not the defaults, and the module."""
        options = {name: getattr(self._boundary, name) for name in CHOICES}
        options |= {"dtype": self._dtype, "cache_bytes": self._cache_bytes}
        options |= {"eval_in_inference": self._eval_in_inference, "cuda_graph": self._cuda_graph}
        defaults = inspect.signature(InferenceAware).parameters
        shown = [f", {name}={value!r}" for name, value in options.items() if value != defaults[name].default]
        return f"InferenceAware({self.module!r}{''.join(shown)})"


def _stand_for(wrapper: nn.Module, module: nn.Module) -> None:
    """Make a wrapper hold what ``module`` holds, under the same names, rather than the module as a child of its own.

    Both have the same dictionaries: a parameter that one gets, or loses, the other does. So names have no prefix,
    wherever they are listed, and a state dict fits either.
    """
    shared = ("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules")
    vars(wrapper).update({name: vars(module)[name] for name in shared}, module=module, training=module.training)


def _limit(cache_bytes: int | str | None) -> int | None:
    if cache_bytes is None or (type(cache_bytes) is int and cache_bytes == 0):
        return cache_bytes
    try:
        return parse_bytes(cache_bytes)
    except (TypeError, ValueError) as error:
        raise type(error)(f"cache_bytes: {error}") from None


def _own_modules(module: nn.Module, seen: set[nn.Module]) -> Iterator[nn.Module]:
    """Yield the modules whose calls may be diverted: not those that are run in another way, or in several copies."""
    apart = isinstance(module, (InferenceAware, torch.jit.ScriptModule, nn.DataParallel)) or compiled(module)
    if module in seen or apart:
        return
    seen.add(module)
    yield module
    for child in module.children():
        yield from _own_modules(child, seen)
