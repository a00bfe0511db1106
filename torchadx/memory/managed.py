"""Modules whose forward always runs under a manager, whichever thread calls it."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import nn

from torchadx.memory.manager import ActivationManager
from torchadx.memory.policy import Planner, Policy, Rule, TensorMeta
from torchadx.memory.stores import Store

_Module = TypeVar("_Module", bound=nn.Module)


class Managed:
    """What :func:`managed` adds to the class of a module.

    Attributes:
        activation_manager: The manager that the module runs under.
    """

    activation_manager: ActivationManager

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module, hooks included, under its manager."""
        with self.activation_manager:
            return super().__call__(*args, **kwargs)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Copy and pickle as the module's own class would, to be managed again where it comes back."""
        reduced: tuple[Any, ...] = super().__reduce_ex__(protocol)  # type: ignore[assignment]
        make, arguments, *state = reduced
        mine, own = type(self), _own(type(self))
        plain = tuple(own if argument is mine else argument for argument in (make, *arguments))
        return _managed_again, (self.activation_manager, *plain), *state


def managed(
    module: _Module,
    policy: str | Rule | Iterable[Rule] | Callable[[TensorMeta], str] | Policy | Planner | ActivationManager,
    *,
    name: str = "",
    min_bytes: int = 4096,
    measure_error: bool = False,
    stores: Iterable[Store] = (),
) -> _Module:
    """Make a module always run under an activation manager of its own, in any thread, and return it.

    Hooks on saved tensors belong to a thread: a manager entered in the main thread does not reach the replicas of
    ``torch.nn.DataParallel``. A managed module carries its manager along. As ``fully_shard`` does, this gives the
    module a subclass of its own class, so that the names of its parameters, its ``state_dict`` and ``isinstance`` stay
    as they are. Modules are managed after they are compiled: ``managed(torch.compile(module), ...)``. In a model
    that is compiled as a whole, a managed module breaks the graph and runs uncompiled. Strict ``torch.export`` refuses
    it: export before.

    Args:
        module: Changed in place. One that is managed already is managed anew.
        policy: As for :class:`ActivationManager`, or a manager, to share one among modules.
        name: Name of the module itself for rules and the report, and prefix of its submodules' names.
        min_bytes: As for :class:`ActivationManager`.
        measure_error: As for :class:`ActivationManager`.
        stores: As for :class:`ActivationManager`.

    Returns:
        The module; its ``activation_manager`` gives the report.

    >>> layer = managed(nn.Linear(64, 64), "bf16")
    >>> layer(torch.randn(128, 64)).sum().backward()
    >>> layer.activation_manager.report().tensors
    1
    """
    if isinstance(policy, ActivationManager):
        manager = policy
    else:
        manager = ActivationManager(policy, min_bytes=min_bytes, measure_error=measure_error, stores=stores)
    before = module.__dict__.get("activation_manager")
    if before is None:
        module.__class__ = _subclass(type(module))
    else:
        before.unwatch(module)
    module.__dict__["activation_manager"] = manager.watch(module, name)
    return module


_subclasses: dict[type, type] = {}


def _subclass(own: type) -> type:
    if own not in _subclasses:
        # within a compiled model, a managed module runs as it would outside: hooks cannot be set in a graph
        call = torch.compiler.disable(Managed.__call__, reason="a managed module sets hooks on saved tensors")
        body = {"__module__": own.__module__, "__call__": call}
        _subclasses[own] = type(f"Managed{own.__name__}", (Managed, own), body)
    return _subclasses[own]


def _own(subclass: type) -> type:
    return next(own for own, made in _subclasses.items() if made is subclass)


def _managed_again(manager: ActivationManager, make: Callable[..., Any], *arguments: Any) -> Any:
    """Make a copy of a managed module, as far as its class makes it without the state that follows."""
    module = make(*arguments)
    module.__class__ = _subclass(type(module))
    module.__dict__["activation_manager"] = manager
    manager.adopt(module)
    return module
