"""From the nodes of a graph to one row for each storage that they keep."""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.utils._pytree import tree_leaves

from torchadx.inspect import _nodes
from torchadx.inspect._saved import _why
from torchadx.inspect._saved._owners import Owner, storages_of
from torchadx.inspect._saved._report import SavedRow
from torchadx.memory import Residence

_CHECKPOINT = "torch.utils.checkpoint"


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """What one slot holds, in plain numbers.

    Attributes:
        node: Name of the node.
        order: Its place in backward's order.
        slot: Name of the slot.
        storage: What tells its memory apart: slots with equal ones share it.
        identity: Of the storage in the sense of ``_owners``; empty where no tensor shows one.
        shape: Of the tensor; ``None`` where a hook hides it.
        dtype: Of the tensor.
        stride: Of the tensor, in elements.
        nbytes: Of the tensor's elements.
        storage_bytes: Of the storage that it shows.
        held_bytes: Of what is held in its place.
        place: Where that is, and as what.
        resident: Whether that is where the tensor came from.
        managed: Whether an activation manager encoded or moved it.
        alias: What a manager knows it to be.
    """

    node: str
    order: int
    slot: str
    storage: object
    identity: tuple[int, ...]
    shape: tuple[int, ...] | None
    dtype: torch.dtype | None
    stride: tuple[int, ...] | None
    nbytes: int
    storage_bytes: int
    held_bytes: int
    place: str
    resident: bool = True
    managed: bool = False
    alias: str | None = None

    @property
    def name(self) -> str:
        """Node and slot."""
        return f"{self.node}.{self.slot}"


def find(nodes: Sequence[Node]) -> tuple[list[Found], int]:
    """Read the slots of nodes, which come in backward's order, in the opposite order.

    Returns:
        What they hold, and how many nodes hold nothing any more because a backward ran and freed it.

    Raises:
        RuntimeError: That was so of all that held something.
    """
    found, freed = [], 0
    for order, node in reversed(list(enumerate(nodes))):
        held = None if _nodes.leaf_of(node) is not None else _nodes.held_by(node)
        if held is not None:
            found += [_look(node, order, slot) for slot in held]
        elif _nodes.leaf_of(node) is None:
            freed += 1
    if freed and not found:
        raise RuntimeError(
            "backward ran, and freed what this graph kept. Look before it, or call backward(retain_graph=True); for a "
            "whole training step there are torchadx.inspect.report() and timeline()"
        )
    return found, freed


def _look(node: Node, order: int, slot: _nodes.Slot) -> Found:
    at = _nodes.name_of(node), order, slot.name
    if slot.hook is not None:
        return _foreign(at, slot)
    return _managed(at, slot.held) if isinstance(slot.held, Residence) else _tensor(at, slot.held)


def _tensor(at: tuple[str, int, str], tensor: Tensor) -> Found:
    storages = {storage._cdata: storage.nbytes() for storage in storages_of(tensor)}
    # nested ones have no sizes that are plain numbers
    strided = tensor.layout is torch.strided and not tensor.is_nested
    return Found(
        *at,
        storage=tuple(storages) or ("opaque", *at),
        identity=tuple(storages),
        shape=None if tensor.is_nested else tuple(tensor.shape),
        dtype=tensor.dtype,
        stride=tensor.stride() if strided else None,
        nbytes=tensor.nbytes if strided else 0,
        storage_bytes=sum(storages.values()),
        held_bytes=sum(storages.values()),
        place=str(tensor.device),
    )


def _managed(at: tuple[str, int, str], known: Residence) -> Found:
    return Found(
        *at,
        storage=("encoding", known.identity),
        identity=(),
        shape=tuple(known.shape),
        dtype=known.dtype,
        stride=known.stride,
        nbytes=known.shape.numel() * known.dtype.itemsize,
        storage_bytes=known.nbytes,
        held_bytes=known.held_bytes,
        place=known.action,
        resident=known.resident,
        managed=True,
        # an encoded copy is the graph's own, whatever it is a copy of; a caller's tensor is no activation for that
        alias="input" if known.alias == "input" else None,
    )


def _foreign(at: tuple[str, int, str], slot: _nodes.Slot) -> Found:
    """Describe what somebody else's hooks made of a tensor, from the outside."""
    assert slot.hook is not None
    tensors = _nodes.tensors_of(slot.held)
    only = _tensor(at, tensors[0]) if len(tensors) == 1 else None
    if only is not None:
        # save_on_cpu and its like note beside the copy where to bring it back to
        devices = {str(leaf) for leaf in tree_leaves(slot.held) if isinstance(leaf, torch.device)}
        resident = not devices or only.place in devices
        return dataclasses.replace(only, place=f"{only.place} ({_hook_name(slot.hook)})", resident=resident)
    recomputed = getattr(slot.hook, "__module__", None) == _CHECKPOINT
    held = {found.storage: found.held_bytes for found in (_tensor(at, tensor) for tensor in tensors)}
    return Found(
        *at,
        storage=("packed", at[1], at[2]),
        identity=(),
        shape=None,
        dtype=None,
        stride=None,
        nbytes=0,
        storage_bytes=sum(held.values()),
        held_bytes=sum(held.values()),
        place="recomputed" if recomputed else f"unknown ({_hook_name(slot.hook)})",
    )


def _hook_name(hook: Callable[..., Any]) -> str:
    """Name a hook: ``"save_on_cpu"`` for a function that a class of that name defines inside of itself."""
    return getattr(hook, "__qualname__", type(hook).__name__).partition(".")[0]


def rows(
    nodes: Sequence[Node],
    found: Sequence[Found],
    owned: Mapping[tuple[int, ...], Owner],
    module_of: Callable[[int], str | None],
    returned: frozenset[tuple[int, ...]],
) -> Iterator[SavedRow]:
    """Yield a row for each storage that slots hold, in the order in which they were saved.

    Args:
        nodes: Of the graph, in backward's order.
        found: What they hold, in the order in which it was saved.
        owned: Who holds storages besides the graph.
        module_of: From a node's sequence number to its module's path.
        returned: Identities of the storages of the outputs, which their user holds.
    """
    # an expired storage's identity may come again: all of these are alive while the graph is
    shared: dict[object, list[Found]] = collections.defaultdict(list)
    saved_at = {id(slot): order for order, slot in enumerate(found)}
    for slot in found:
        shared[slot.storage].append(slot)
    for slots in shared.values():
        first = slots[0]
        node = nodes[first.order]
        owner = owned.get(first.identity)
        alias = first.alias if owner is None else owner.alias
        only = len(slots) == 1 and owner is None and first.identity not in returned
        held = 0 if owner is not None else max(slot.held_bytes for slot in slots)
        reason = _why.explain(first.node, first.slot, alias, first.place, managed=first.managed)
        yield SavedRow(
            module=module_of(_nodes.number_of(node)),
            source=_nodes.source_of(node),
            node=first.node,
            slot=first.slot,
            slots=tuple(slot.name for slot in slots),
            shape=first.shape,
            dtype=None if first.dtype is None else str(first.dtype).removeprefix("torch."),
            strides=first.stride,
            nbytes=first.nbytes,
            slots_bytes=sum(slot.nbytes for slot in slots),
            storage_bytes=first.storage_bytes,
            marginal_bytes=held if only else 0,
            held_bytes=held,
            alias=alias,
            relation=_relation(slots, owner, first.identity in returned),
            residence=first.place,
            resident=first.resident,
            saved_at=saved_at[id(first)],
            used_at=max(slot.order for slot in slots),
            why=reason.why,
            remedy=reason.remedy,
        )


def _relation(slots: Sequence[Found], owner: Owner | None, returned: bool) -> str | None:
    first = slots[0]
    parts = []
    if owner is not None and (first.shape, first.stride) != (tuple(owner.shape), owner.stride):
        turned = first.shape == tuple(reversed(owner.shape)) and first.stride == tuple(reversed(owner.stride))
        parts.append(f"view of {owner.alias}" + (", transposed" if turned else ""))
    elif owner is None and 0 < first.nbytes < first.storage_bytes:
        parts.append(f"view of {first.nbytes / first.storage_bytes:.0%} of its storage")
    elif first.nbytes > first.storage_bytes and first.storage_bytes:
        parts.append(f"expanded view of {first.storage_bytes} bytes")
    if len(slots) > 1:
        parts.append(f"shared by {len(slots)} slots")
    if returned:
        parts.append("an output shows it, too")
    return "; ".join(parts) or None
