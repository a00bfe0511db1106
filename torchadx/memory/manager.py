"""The activation manager: what autograd saves inside it is encoded and moved as its policy says, and accounted for."""

import contextlib
import operator
import sys
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from torchadx.memory import _modules
from torchadx.memory import policy as policies
from torchadx.memory._packed import Kept, Shown
from torchadx.memory._packing import Packer
from torchadx.memory.policy import Planner, Policy, Rule, TensorMeta
from torchadx.memory.report import Report, summarize
from torchadx.memory.stores import Store

_TRANSFORMS = (
    "torch.func's grad, vjp, jacrev and hessian do not work with hooks on saved tensors, wherever one is entered, "
    "inside or outside. Use torch.autograd.grad or backward() under a manager, or leave the manager out; "
    "torch.func.jvp, torch.func.vmap and torch.autograd.forward_ad do work"
)


class _Thread(threading.local):
    """The managers entered in this thread, outermost first, each with what leaving it means."""

    def __init__(self) -> None:
        self.entered: list[tuple[ActivationManager, contextlib.ExitStack]] = []


_thread = _Thread()


class ActivationManager:
    """Decides, for each tensor that autograd saves inside it, in what form and where that waits for backward.

    The graph owns what becomes of its tensors: backward may run inside or outside of the context, in any order, any
    number of times or never; several graphs may be alive at once; the manager may be entered again and again, and in
    several threads at once. Of nested managers the innermost alone acts.

    Left as they are, each with its reason in the report: parameters, buffers of watched models and leaves that require
    grad (moving what someone else holds frees nothing), integers, tensor subclasses, tensors below ``min_bytes``, and
    what a codec declines. Under ``no_grad`` and ``inference_mode`` autograd saves nothing, so nothing is managed.

    Writes that autograd's version counters do not see (through ``.data``, or by kernels that hide them) are not seen
    here either.

    Args:
        policy: What to do with a tensor: a policy string (``"keep"``, a codec such as ``"int8"``, ``"@"`` and a store,
            or both: ``"int8@host"``); a list of :class:`Rule`, tried in order; a function from :class:`TensorMeta` to
            a policy string; or a :class:`Budget`.
        min_bytes: Smaller tensors are left alone.
        measure_error: Decode every lossily encoded tensor at once, to report its relative error. Slow.
        stores: Stores to use in place of the default ones of their names, e.g.
            ``[DiskStore(directory="/scratch", capacity_bytes=10 << 30)]``.

    Raises:
        TypeError: The policy is none of these.
        ValueError: The policy names a codec or store that does not exist.
        ModuleNotFoundError: A codec of the policy needs an extra that is not installed.

    >>> model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 1))
    >>> with ActivationManager("int8") as saved:
    ...     loss = model(torch.randn(128, 64)).sum()
    >>> loss.backward()
    >>> saved.report().ratio < 0.3
    True
    """

    def __init__(
        self,
        policy: str | Rule | Iterable[Rule] | Callable[[TensorMeta], str] | Policy | Planner,
        *,
        min_bytes: int = 4096,
        measure_error: bool = False,
        stores: Iterable[Store] = (),
    ) -> None:
        """Make a manager; nothing is saved, nor any store opened, before it is entered."""
        if not isinstance(min_bytes, int):
            raise TypeError(f"min_bytes is a number of bytes; got {min_bytes!r}")
        stores = tuple(stores)
        for store in stores:
            if not isinstance(store, Store):
                raise TypeError(f"stores are such as torchadx.memory.DiskStore(...); got {store!r}")
        self._policy = policies.resolve(policy)
        self._min_bytes, self._measure_error = min_bytes, measure_error
        self._packer = Packer(self._policy, min_bytes, measure_error, {store.name: store for store in stores})
        self._lock = threading.Lock()
        self._entered = 0
        self._untraced: Any = None

    def watch(self, model: nn.Module, name: str = "") -> "ActivationManager":
        """Tell rules and the report which module saves a tensor: the innermost of ``model``'s whose forward runs.

        Hooks are put on the modules of the model, which is held weakly. Inside of ``torch.compile`` they do nothing.

        Args:
            model: Its submodules are named as ``model.named_modules()`` names them.
            name: Name of the model itself, and prefix of the others.

        Returns:
            The manager.
        """
        self._packer.watch.add(model, name)
        return self

    def unwatch(self, model: nn.Module) -> None:
        """Take the hooks of :meth:`watch` off the model again."""
        self._packer.watch.remove(model)

    def adopt(self, model: nn.Module) -> None:
        """Know the parameters and buffers of a copy of a watched model, whose hooks were copied with it."""
        self._packer.watch.adopt(model)

    def report(self) -> Report:
        """Say what was saved since the manager was last entered (anew, not within itself), and what became of it."""
        ledger = self._packer.ledger
        with ledger.lock:
            return summarize(ledger, self._packer.resident(), self._packer.peak(), self._packer.stores)

    def flush(self) -> None:
        """Wait until all copies and removals under way are done."""
        for store in self._packer.stores.values():
            store.flush()

    def close(self) -> None:
        """Free the threads, buffers and files of the stores; what is still in them cannot be brought back."""
        for store in self._packer.stores.values():
            store.close()

    def __enter__(self) -> "ActivationManager":
        """Manage what autograd saves in this thread from here on.

        Raises:
            RuntimeError: A transform of ``torch.func`` is active that does not work with hooks on saved tensors.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(saved_tensors_hooks(*self._hooks()))
            except RuntimeError as error:
                if not _blames_transforms(error):
                    raise
                raise RuntimeError(f"a manager was entered inside a transform of torch.func. {_TRANSFORMS}") from error
            with self._lock:
                if self._entered == 0:
                    self._packer.begin()
                self._entered += 1
            stack.callback(self._leave)
            stack.callback(_modules.unwind, _modules.depth())
            self._note_surroundings()
            # only now is there nothing left that could fail, so that the rest is __exit__'s
            _thread.entered.append((self, stack.pop_all()))
        return self

    def _hooks(self) -> tuple[Callable[[torch.Tensor], Kept | Shown], Callable[[Kept | Shown], torch.Tensor]]:
        """Return the hooks; where torch.compile may be at work, such that it does not trace into them."""
        if "torch._dynamo" not in sys.modules:
            return self._packer.pack, _unpack
        if self._untraced is None:
            self._untraced = torch.compiler.disable(self._packer.pack), torch.compiler.disable(_unpack)
        return self._untraced

    def _leave(self) -> None:
        with self._lock:
            self._entered -= 1

    def _note_surroundings(self) -> None:
        notes = self._packer.ledger.notes
        if _thread.entered and _thread.entered[-1][0] is not self:
            notes.append("entered inside another manager, which does not see what is saved here")
        if not torch.is_grad_enabled():
            notes.append("entered with grad mode off (no_grad or inference_mode): autograd saves nothing")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop managing. What was saved stays with its graph.

        Raises:
            RuntimeError: A transform of ``torch.func`` was entered inside that does not work with hooks.
        """
        _, stack = _thread.entered.pop()
        stack.close()
        if error is not None and _blames_transforms(error):
            raise RuntimeError(f"a transform of torch.func was entered inside a manager. {_TRANSFORMS}") from error

    def __reduce__(self) -> tuple[Callable[..., "ActivationManager"], tuple[Any, ...]]:
        """Copy and pickle as a manager of the same policy that has seen nothing yet, with stores of its own."""
        return _like, (self._policy, self._min_bytes, self._measure_error)

    def __repr__(self) -> str:
        return f"ActivationManager({self._policy}, min_bytes={self._min_bytes})"


def _blames_transforms(error: BaseException) -> bool:
    """Whether this is how torch.func says that it does not work with hooks."""
    text = str(error)
    return isinstance(error, RuntimeError) and "saved tensor hooks" in text and "torch.func" in text


_unpack = operator.methodcaller("unpack")


def _like(policy: Policy | Planner, min_bytes: int, measure_error: bool) -> ActivationManager:
    return ActivationManager(policy, min_bytes=min_bytes, measure_error=measure_error)
