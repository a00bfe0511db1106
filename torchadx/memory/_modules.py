"""Who saves: the name of the module whose forward runs, told by hooks on the modules of a watched model."""

import collections
import secrets
import threading
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from torchadx.memory._storage import memory_of
from torchadx.memory.policy import Alias


class _Running(threading.local):
    """The modules that run in this thread, as (who watches, name), and what the outermost, the first, was given."""

    def __init__(self) -> None:
        self.modules: list[tuple[str, str]] = []
        self.inputs: list[StorageWeakRef] = []


_running = _Running()


class _Begin:
    """Forward pre-hook: this module runs now. Plain data, so that a hooked model can be copied and pickled."""

    def __init__(self, watcher: str, name: str) -> None:
        self._entry = watcher, name

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            return
        if not _running.modules:
            memories = (memory_of(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
            _running.inputs = [StorageWeakRef(memory) for memory in memories if not isinstance(memory, str)]
        _running.modules.append(self._entry)


class _End:
    """Forward hook, called even if forward raised: the module has run, and so has all that it called."""

    def __init__(self, watcher: str, name: str) -> None:
        self._entry = watcher, name

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if torch.compiler.is_compiling() or self._entry not in _running.modules:
            return
        while _running.modules.pop() != self._entry:
            pass
        if not _running.modules:
            _running.inputs = []


def depth() -> int:
    """Count the watched modules that run in this thread."""
    return len(_running.modules)


def unwind(depth: int) -> None:
    """Forget modules that ended without a word: torch calls no hooks after a KeyboardInterrupt."""
    del _running.modules[depth:]
    if not _running.modules:
        _running.inputs = []


# hooks of managers that are gone: taken off later, because a finalizer may run between a module's two hooks
_retired: collections.deque[list[tuple[Any, RemovableHandle]]] = collections.deque()


class Watch:
    """The models that one manager watches. They are held weakly."""

    def __init__(self) -> None:
        self._watcher = secrets.token_hex(8)
        self._models: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._handles: list[tuple[weakref.ref[nn.Module], RemovableHandle]] = []
        # not __del__: by then the garbage collector has forgotten which models there were
        weakref.finalize(self, _retired.append, self._handles).atexit = False

    def add(self, model: nn.Module, name: str) -> None:
        """Hook every module of ``model``; if it is watched already, its modules are named anew."""
        self.remove(model)
        if not _running.modules:
            while _retired:
                _take_off(_retired.popleft())
        reference = weakref.ref(model)
        for path, module in model.named_modules(prefix=name):
            begin = _Begin(self._watcher, path)
            pre = module.register_forward_pre_hook(begin, prepend=True, with_kwargs=True)
            post = module.register_forward_hook(_End(self._watcher, path), always_call=True)
            self._handles += [(reference, pre), (reference, post)]
        self._models.add(model)

    def adopt(self, model: nn.Module) -> None:
        """Know the parameters and buffers of a copy of a watched model, whose hooks were copied with it."""
        self._models.add(model)

    def remove(self, model: nn.Module) -> None:
        """Take the hooks of ``model`` off, if there are any."""
        self._models.discard(model)
        # those of models that are gone, too
        over = [pair for pair in self._handles if pair[0]() in (model, None)]
        self._handles[:] = [pair for pair in self._handles if pair[0]() not in (model, None)]
        _take_off(over)

    def module(self) -> str | None:
        """Return the name of the innermost watched module that runs in this thread, by this manager's names first."""
        running = _running.modules
        if not running:
            return None
        return next((name for watcher, name in reversed(running) if watcher == self._watcher), running[-1][1])

    def is_input(self, identity: int) -> bool:
        """Whether this storage was given to the outermost watched module that runs in this thread."""
        inputs = _running.inputs
        return bool(inputs) and any(reference.cdata == identity for reference in inputs)

    def owned(self) -> dict[int, Alias]:
        """Map the identities of the storages of parameters and buffers, as they are now, to what they are."""
        return dict(self._owned())

    def _owned(self) -> Iterator[tuple[int, Alias]]:
        for model in list(self._models):
            yield from ((identity, "buffer") for identity in _identities(model.buffers()))
            yield from ((identity, "parameter") for identity in _identities(model.parameters()))


def _take_off(handles: Iterable[tuple[Any, RemovableHandle]]) -> None:
    for _, handle in handles:
        handle.remove()


def _identities(tensors: Iterable[Tensor]) -> Iterator[int]:
    for tensor in tensors:
        memory = memory_of(tensor)
        if not isinstance(memory, str):
            yield memory._cdata
