"""Calls of modules diverted to stand-ins for the time of a call, so that a module's own code runs its children by them.

Nothing of a module is changed between calls. During one, ``module._compiled_call_impl`` is a dispatcher: what
``module.compile()`` sets, what ``nn.Module.__call__`` asks for first, and what a copy or pickle leaves out. It looks up
which session is on in the calling thread, so that other threads, which may be training the same module, run the module.
"""

import functools
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

_CALL = "_compiled_call_impl"
_TRIES = 3
_MAX_SHAPES = 256


class Runs(Protocol):
    """A stand-in, as far as this file knows it."""

    def serves(self, module: nn.Module) -> bool:
        """Whether it can stand in for the module as it is now."""

    def run(self, session: Any, *args: Any, **kwargs: Any) -> Any:
        """Compute what the module would."""


class _Active(threading.local):
    session: Any = None
    stand_ins: Mapping[nn.Module, Runs] = {}
    gained: bool = False


_active = _Active()
_lock = threading.Lock()


class _Diverted:
    """What a module's calls are diverted to, and by how many calls of wrappers, in any thread."""

    __slots__ = ("call", "count")

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call
        self.count = 1


_calls: dict[nn.Module, _Diverted] = {}


def _forget_other_threads() -> None:
    """Restore every module in a forked child, where the threads that would are gone, one perhaps with the lock."""
    global _lock
    _lock = threading.Lock()
    for module in _calls:
        vars(module).pop(_CALL, None)
    _calls.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)


def _dispatch(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    stand_in, session = _active.stand_ins.get(module), _active.session
    if stand_in is None or hooked(module) or not stand_in.serves(module) or not session.serves():
        return module._call_impl(*args, **kwargs)
    return stand_in.run(session, *args, **kwargs)


def note_gain() -> None:
    """Remember that in the call that is running a stand-in does something better than the module itself."""
    _active.gained = True


def hooked(module: nn.Module) -> bool:
    """Whether a module has hooks that fire when it is called."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def patched(module: nn.Module) -> bool:
    """Whether a module has a forward of its own, rather than its class's."""
    return "forward" in vars(module)


def compiled(module: nn.Module) -> bool:
    """Whether ``torch.compile`` runs a module; naming the class that it returns would import the compiler."""
    call = vars(module).get(_CALL)
    return "_orig_mod" in module._modules or not (call is None or getattr(call, "func", None) is _dispatch)


def _shapes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Size, ...] | None:
    """Return the shapes of inputs that are ordinary tensors, all of them; ``None`` where others are among them."""
    shapes = []
    for argument in (*args, *kwargs.values()) if kwargs else args:
        if type(argument) is not Tensor or argument.is_nested:
            return None
        shapes.append(argument.shape)
    return tuple(shapes)


class Lending:
    """Some modules, whose calls can be diverted; calls of several threads may overlap.

    Args:
        stand_ins: What is to run, by module.
    """

    def __init__(self, stand_ins: Mapping[nn.Module, Runs]) -> None:
        self._stand_ins = stand_ins
        self._diverted = [(module, functools.partial(_dispatch, module)) for module in stand_ins]
        # calls in a row in which nothing was gained, by the shapes of inputs
        self._idle: dict[tuple[torch.Size, ...] | None, int] = {}

    def call(self, session: Any, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call ``module`` with stand-ins running by ``session`` in this thread.

        Where none did anything better for inputs of these shapes, again and again, the module is called as it is.
        """
        shapes = _shapes(args, kwargs)
        if not self._diverted or self._idle.get(shapes, 0) >= _TRIES:
            return module(*args, **kwargs)
        before = _active.session, _active.stand_ins, _active.gained
        self._divert()
        _active.session, _active.stand_ins, _active.gained = session, self._stand_ins, False
        try:
            result = _dispatch(module, *args, **kwargs) if module in self._stand_ins else module(*args, **kwargs)
            if _active.gained:
                self._idle.pop(shapes, None)
            elif shapes is not None:
                self._note_idle(shapes)
            return result
        finally:
            _active.session, _active.stand_ins, _active.gained = before
            self._restore()

    def _note_idle(self, shapes: tuple[torch.Size, ...]) -> None:
        if len(self._idle) >= _MAX_SHAPES:
            self._idle.clear()
        self._idle[shapes] = self._idle.get(shapes, 0) + 1

    def _divert(self) -> None:
        with _lock:
            for module, call in self._diverted:
                diverted = _calls.get(module)
                if diverted is not None:
                    diverted.count += 1
                elif vars(module).get(_CALL) is None:
                    _calls[module] = _Diverted(call)
                    vars(module)[_CALL] = call

    def _restore(self) -> None:
        with _lock:
            for module, _ in self._diverted:
                diverted = _calls.get(module)
                if diverted is None:
                    continue
                diverted.count -= 1
                if diverted.count == 0:
                    del _calls[module]
                    if vars(module).get(_CALL) is diverted.call:
                        del vars(module)[_CALL]
