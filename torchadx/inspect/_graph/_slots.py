"""What nodes hold, for the picture: slots, their bytes and attributes. No hook on saved tensors is fired."""

import collections
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from torchadx.inspect._nodes import Slot, tensors_of
from torchadx.memory import Residence
from torchadx.memory._storage import has_memory, memory_of

_SAVED, _RAW = "_saved_", "_raw_saved_"
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_OF_TORCH = (torch.dtype, torch.device, torch.layout, torch.memory_format, torch.SymInt, torch.SymFloat, torch.SymBool)


def is_opaque(slot: Slot) -> bool:
    """Whether a hook holds the tensor in a way that shows no bytes."""
    return slot.hook is not None and not tensors_of(slot.held)


def attributes(node: Node, chars: int) -> dict[str, str]:
    """Return what is not a tensor of what a node holds, each as text of at most so many characters."""
    return {name: _shorten(_text(value, chars), chars) for name, value in _values(node)}


def _values(node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        for name, value in vars(node).items():
            if not name.startswith("_") and not tensors_of(value):
                yield f"ctx.{name}", value
        return
    kind: type = type(node)
    for name in _plain_attributes(kind):
        value = getattr(node, _SAVED + name)
        if not tensors_of(value):
            yield name, value


@functools.cache
def _plain_attributes(kind: type) -> tuple[str, ...]:
    """Return the names of what no hook can have packed in a node of torch's own: what is packed has a raw form, too."""
    names = set(dir(kind))
    saved = sorted(name.removeprefix(_SAVED) for name in names if name.startswith(_SAVED))
    return tuple(name for name in saved if _RAW + name not in names)


def _text(value: Any, chars: int) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 2**63:
        # torch shows dimensions that are counted from the end as unsigned
        value -= 2**64
    if isinstance(value, _PLAIN):
        return str(value[: chars + 1] if isinstance(value, str | bytes) else value)
    if isinstance(value, _OF_TORCH):
        return str(value)
    if isinstance(value, tuple | list):
        inner = ", ".join(_text(each, chars) for each in value[:chars])
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    # what it says of itself may be long, slow or wrong
    return f"<{getattr(value, '__qualname__', type(value).__qualname__)}>"


def _shorten(text: str, chars: int) -> str:
    return text if len(text) <= chars else f"{text[: chars - 3]}..."


def shape_of(tensor: Tensor | Residence) -> str:
    """Write a tensor's sizes: ``"(2, 3)"``."""
    # the sizes of a nested tensor are not one list
    if isinstance(tensor, Tensor) and tensor.is_nested:
        return "(nested)"
    return f"({', '.join(map(str, tensor.shape))})"


def memory_key(tensor: Tensor) -> tuple[Any, ...] | None:
    """Return what two tensors have in common if they show the same elements; ``None`` where that is not known."""
    storage = memory_of(tensor)
    if isinstance(storage, str) or not has_memory(storage):
        return None
    place = (storage.device, storage.data_ptr(), tensor.storage_offset())
    return (*place, tensor.dtype, tuple(tensor.shape), tensor.stride())


def storage_key(key: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the part of a memory key that says which storage it is."""
    return key[:2]


def shown(tensors: Mapping[str, Tensor]) -> tuple[dict[tuple[Any, ...], str], dict[tuple[Any, ...], str]]:
    """Return names by the elements that tensors show, and by the storages that one of them shows alone."""
    names: dict[tuple[Any, ...], str] = {}
    for name, tensor in tensors.items():
        key = memory_key(tensor)
        if key is not None:
            names.setdefault(key, name)
    sharing = collections.Counter(map(storage_key, names))
    owners = {storage_key(key): name for key, name in names.items() if sharing[storage_key(key)] == 1}
    return names, owners


class Storages:
    """Counts the bytes of storages, each once.

    Args:
        known: What others hold anyway, which counts for nothing.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        self._seen: set[tuple[object, int]] = set()
        for tensor in known:
            self.new_bytes(tensor)

    def new_bytes(self, held: Any) -> int:
        """Return the bytes of what is in ``held`` that was not seen before: a description, or storages of tensors."""
        if isinstance(held, Residence):
            return self._once(("packed", held.identity), held.held_bytes)
        total = 0
        for tensor in tensors_of(held):
            storage = memory_of(tensor)
            if isinstance(storage, str) or not has_memory(storage):
                total += 0 if tensor.is_nested else tensor.numel() * tensor.element_size()
                continue
            total += self._once((storage.device, storage.data_ptr()), storage.nbytes())
        return total

    def _once(self, key: tuple[object, int], nbytes: int) -> int:
        if key in self._seen:
            return 0
        self._seen.add(key)
        return nbytes
