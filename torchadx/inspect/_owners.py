"""Whose memory a saved tensor shows: a parameter's, a buffer's, an input's, a leaf's, or the graph's alone."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn


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


def storage_of(tensor: Tensor) -> torch.UntypedStorage | None:
    """Return the storage of a tensor; ``None`` for layouts and wrappers that have none of their own."""
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return None


def identity_of(tensor: Tensor) -> int | None:
    """Return what tells storages that are alive apart."""
    storage = storage_of(tensor)
    return None if storage is None else storage._cdata


def owners(named: Mapping[str, Tensor], inputs: Iterable[Tensor], leaves: Iterable[Tensor]) -> dict[int, Owner]:
    """Map the identities of storages to who holds them: what has a name first, then inputs, then leaves."""
    found: dict[int, Owner] = {}
    for name, tensor in named.items():
        _own(found, tensor, f"{'parameter' if isinstance(tensor, nn.Parameter) else 'buffer'} {name}")
    for tensor in inputs:
        # what has a history is an activation of somebody's, whose graph holds it
        if tensor.grad_fn is None:
            _own(found, tensor, "parameter" if isinstance(tensor, nn.Parameter) else "input")
    for tensor in leaves:
        _own(found, tensor, "parameter" if isinstance(tensor, nn.Parameter) else "leaf")
    return found


def _own(found: dict[int, Owner], tensor: Tensor, alias: str) -> None:
    identity = identity_of(tensor)
    if identity is not None:
        found.setdefault(identity, Owner(alias, tensor.shape, tensor.stride()))
