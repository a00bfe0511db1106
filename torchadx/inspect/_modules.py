"""Which module made a node of the graph: hooks around every module's forward note the sequence numbers between them."""

import bisect
import collections
import dataclasses
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import TensorWeakRef

from torchadx.ops import next_sequence_number

#: begins the names of the profiler's ranges, which a run's index ends
RANGE = "torchadx.inspect module "


@dataclasses.dataclass(slots=True)
class _Root:
    """An outermost module, and what it and its submodules are called. It does not outlive the step because of this."""

    module: weakref.ref[nn.Module]
    kind: str
    paths: dict[int, str]
    classes: dict[str, str]
    named: dict[str, TensorWeakRef]

    @classmethod
    def of(cls, module: nn.Module) -> "_Root":
        named = [(_compiled(path), inner) for path, inner in module.named_modules()]
        # of a compiled module and the one inside of it, which go by one path, the latter's class counts
        return cls(
            weakref.ref(module),
            type(module).__name__,
            {id(inner): path for path, inner in named},
            {path: type(inner).__name__ for path, inner in named},
            {name: TensorWeakRef(tensor) for name, tensor in _tensors(module)},
        )

    def path(self, module: nn.Module) -> str | None:
        """Return the path of a module in this one, ``None`` if it is none of its."""
        # what came after a module that is gone may have its id
        return None if self.module() is None else self.paths.get(id(module))

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield parameters and buffers with their names; of a module that is gone those that a graph still holds."""
        module = self.module()
        if module is not None:
            yield from _tensors(module)
            return
        for name, reference in self.named.items():
            if (tensor := reference()) is not None:
                yield name, tensor

    def replaced_by(self, other: "_Root") -> bool:
        """Whether the other is what this was, made anew."""
        return self.module() is None and self.classes == other.classes


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        yield _compiled(name), tensor


def _compiled(path: str) -> str:
    """Return a path without what ``torch.compile`` puts around a module."""
    return ".".join(part for part in path.split(".") if part != "_orig_mod")


@dataclasses.dataclass(slots=True)
class _Run:
    """One run of a module's forward: the nodes from number ``first`` to before ``last`` of its thread are of it."""

    module: int
    root: int
    path: str
    parent: int
    first: int
    last: int | None = None
    range: torch.profiler.record_function | None = None


class ModuleWatch:
    """While entered, notes which modules' forwards run in this thread, by hooks around every module.

    Sequence numbers are those of one thread. Runs in others, as of what a checkpoint computes again in the thread of a
    GPU, are seen only by the ranges around them.

    The outermost module with the most submodules, or the one that is given, is the model: its submodules go by their
    names in ``named_modules()``, it by ``""``. Other outermost modules, such as a loss, go by the name of their class.

    Args:
        model: The model, where parts of it are called by themselves.
        ranges: Open a range of the profiler, named by ``RANGE`` and the run's index, around each run.
    """

    def __init__(self, model: nn.Module | None = None, *, ranges: bool = False) -> None:
        self._ranges, self._given = ranges, model is not None
        self._roots = [] if model is None else [_Root.of(model)]
        self._earlier = set[int]()
        self._runs: list[_Run] = []
        # of the runs in this thread, where they begin, and their indices
        self._firsts: list[int] = []
        self._own: list[int] = []
        self._running: dict[int, list[int]] = collections.defaultdict(list)
        self._inputs: list[TensorWeakRef] = []
        self._thread = 0
        self._lock = threading.Lock()
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "ModuleWatch":
        self._thread = threading.get_ident()
        self._handles = [
            register_module_forward_pre_hook(self._begin),
            register_module_forward_hook(self._end, always_call=True),
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        for running in self._running.values():
            while running:
                self._close(running.pop())

    def module(self) -> str | None:
        """Return the path of the innermost module whose forward runs; ``None`` outside of modules."""
        running = self._running[threading.get_ident()]
        return self.path(running[-1]) if running else None

    def owner(self, number: int) -> str | None:
        """Return the path of the innermost module that made the node with this sequence number."""
        place = bisect.bisect_right(self._firsts, number) - 1
        run = self._own[place] if place >= 0 else -1
        while run >= 0:
            last = self._runs[run].last
            if last is None or number < last:
                return self.path(run)
            # whatever holds the number began before this run and outlasted it
            run = self._runs[run].parent
        return None

    def again(self) -> None:
        """Say that all begins anew: a module made from here on, as a loss, goes by the name of one that is gone."""
        self._earlier = set(range(len(self._roots)))

    def path(self, run: int) -> str:
        """Return the path of the module of the run with this index."""
        return self._name(self._runs[run].root, self._runs[run].path)

    def classes(self) -> dict[str, str]:
        """Map the path of every module known to the name of its class."""
        return {
            self._name(index, path): kind
            for index, root in enumerate(self._roots)
            for path, kind in root.classes.items()
        }

    def beside(self) -> tuple[str, ...]:
        """Return the paths of the outermost modules beside the model."""
        return tuple(prefix for prefix in self._prefixes() if prefix) if self._roots else ()

    def compiled_in_place(self) -> bool:
        """Whether a module is compiled by its ``compile()``, which hooks around every module may undo."""
        roots = (module for root in self._roots if (module := root.module()) is not None)
        modules = (inner for module in roots for inner in module.modules())
        return any(getattr(module, "_compiled_call_impl", None) is not None for module in modules)

    def inputs(self) -> list[Tensor]:
        """Return the tensors that outermost modules were given by position, as far as they are alive."""
        return [tensor for reference in self._inputs if (tensor := reference()) is not None]

    def parameters(self) -> dict[str, Tensor]:
        """Map the full names of parameters and buffers of every module known to these."""
        tensors: dict[str, Tensor] = {}
        # the model's first: a part of it that ran by itself has them, too
        for index in sorted(range(len(self._roots)), key=lambda index: self._name(index, "") != ""):
            for name, tensor in self._roots[index].tensors():
                tensors[self._name(index, name)] = tensor
        return tensors

    def _name(self, root: int, path: str) -> str:
        prefix = self._prefixes()[root]
        return f"{prefix}.{path}" if prefix and path else prefix or path

    def _prefixes(self) -> list[str]:
        sizes = [len(root.paths) for root in self._roots]
        model = 0 if self._given else sizes.index(max(sizes))
        used: collections.Counter[str] = collections.Counter()
        prefixes = []
        for index, root in enumerate(self._roots):
            name = root.kind
            if index != model:
                used[name] += 1
            prefixes.append("" if index == model else name if used[name] == 1 else f"{name}_{used[name]}")
        return prefixes

    def _begin(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if torch.compiler.is_compiling():
            return
        thread = threading.get_ident()
        if thread != self._thread and not self._ranges:
            return
        running = self._running[thread]
        with self._lock:
            index = self._open(module, args, running[-1] if running else -1, own=thread == self._thread)
        running.append(index)
        if self._ranges:
            self._runs[index].range = span = torch.profiler.record_function(f"{RANGE}{index}")
            span.__enter__()

    def _open(self, module: nn.Module, args: tuple[Any, ...], parent: int, *, own: bool) -> int:
        root, path = self._place(module, parent)
        if parent < 0:
            self._inputs += [TensorWeakRef(leaf) for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        index, run = len(self._runs), _Run(id(module), root, path, parent, next_sequence_number())
        self._runs.append(run)
        if own:
            self._own.append(index)
            self._firsts.append(run.first)
        return index

    def _place(self, module: nn.Module, parent: int) -> tuple[int, str]:
        """Return the root of a module that runs, and its path in it."""
        if parent >= 0:
            around = self._runs[parent]
            root = self._roots[around.root]
            path = root.paths.get(id(module))
            if path is None:
                # made in a forward, or kept where named_modules() does not look
                name = type(module).__name__
                path = f"{around.path}.{name}" if around.path else name
                root.classes.setdefault(path, name)
            return around.root, path
        for index, root in enumerate(self._roots):
            if (path := root.path(module)) is not None:
                return index, path
        made = _Root.of(module)
        for index, root in enumerate(self._roots):
            if index in self._earlier and root.replaced_by(made):
                self._earlier.remove(index)
                self._roots[index] = made
                return index, ""
        self._roots.append(made)
        return len(self._roots) - 1, ""

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        running = self._running[threading.get_ident()]
        if not any(self._runs[run].module == id(module) for run in running):
            return
        # torch calls no hooks of modules that ended by a KeyboardInterrupt: those inside of this one are over, too
        while True:
            run = running.pop()
            self._close(run)
            if self._runs[run].module == id(module):
                return

    def _close(self, index: int) -> None:
        run = self._runs[index]
        run.last = next_sequence_number()
        if run.range is not None:
            run.range.__exit__(None, None, None)
            run.range = None
