"""Whose memory a saved tensor shows: a parameter's, a buffer's, an input's, a leaf's, or the graph's alone."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


class Owner(NamedTuple):
    """Who holds a storage whether or not the graph does.

    Attributes:
        alias: ``"parameter 0.weight"``, ``"buffer running_mean"``, ``"input"``, ``"leaf"``.
        shape: Of the tensor they hold.
        stride: Of that tensor.
    """

    alias: str
    shape: torch.Size
    stride: tuple[int, ...]


def storages_of(tensor: Tensor) -> list[torch.UntypedStorage]:
    """Return the storages that a tensor shows, of a wrapper those of what it is made of; none for other layouts."""
    # annotated as a type that no tensor can have
    wrapper: Any = tensor
    if is_traceable_wrapper_subclass(wrapper):
        names, _ = wrapper.__tensor_flatten__()
        return [storage for name in names for storage in storages_of(getattr(wrapper, name))]
    try:
        return [tensor.untyped_storage()]
    except (NotImplementedError, RuntimeError):
        return []


def identity_of(tensor: Tensor) -> tuple[int, ...]:
    """Return what tells the storages of tensors that are alive apart; nothing for one without."""
    return tuple(storage._cdata for storage in storages_of(tensor))


def owners(
    named: Mapping[str, Tensor], inputs: Iterable[Tensor], leaves: Iterable[Tensor]
) -> dict[tuple[int, ...], Owner]:
    """Map the identities of storages to who holds them: what has a name first, then inputs, then leaves."""
    found: dict[tuple[int, ...], Owner] = {}
    for name, tensor in named.items():
        _own(found, tensor, f"{'parameter' if isinstance(tensor, nn.Parameter) else 'buffer'} {name}")
    for tensor in inputs:
        # what has a history is an activation of somebody's, whose graph holds it
        if tensor.grad_fn is None:
            _own(found, tensor, "parameter" if isinstance(tensor, nn.Parameter) else "input")
    for tensor in leaves:
        _own(found, tensor, "parameter" if isinstance(tensor, nn.Parameter) else "leaf")
    return found


def _own(found: dict[tuple[int, ...], Owner], tensor: Tensor, alias: str) -> None:
    identity = identity_of(tensor)
    if identity:
        plain = not tensor.is_nested
        found.setdefault(identity, Owner(alias, *((tensor.shape, tensor.stride()) if plain else (torch.Size(), ()))))
