"""Reading the autograd graph: its nodes, what each saves, and where it was made. No hook on saved tensors is fired."""

import collections
import functools
import heapq
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils._pytree import tree_leaves

from torchadx.memory import residence
from torchadx.ops import sequence_number

_RAW = "_raw_saved_"
_LIBRARIES = tuple(str(folder) + os.sep for folder in (Path(torch.__file__).parent, Path(__file__).parents[1]))
# what accumulates gradients in leaves
_ACCUMULATE: Any = type(get_gradient_edge(torch.empty(0, requires_grad=True)).node)
_FRAME = re.compile(r'File "(.+?)", line (\d+)')


class Slot(NamedTuple):
    """One place of a node where something waits for backward.

    Attributes:
        name: As the node calls it: ``"mat1"``, ``"indices[0]"``, ``"saved_tensors[0]"``; ``"ctx.mask"`` for an
            attribute of a Python function's ``ctx``, where no hook sees it.
        held: The tensor, or what a hook on saved tensors made of it.
        hook: The hook that turns it into a tensor again, which nobody here calls.
    """

    name: str
    held: Any
    hook: Callable[..., Any] | None = None


def tensors_of(outputs: Any) -> list[Tensor]:
    """Return the tensors of nested lists, tuples and dictionaries."""
    if isinstance(outputs, Tensor):
        return [outputs]
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def walk(outputs: Iterable[Tensor]) -> list[Node]:
    """Return the nodes below tensors: first in the order in which backward runs them, then those of leaves."""
    pending = [tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None]
    # the wrappers in Python are made anew where nobody holds one: held here, equal nodes are one object
    below: dict[Node, list[Node]] = {}
    while pending:
        node = pending.pop()
        if node not in below:
            below[node] = [following for following, _ in node.next_functions if following is not None]
            pending += below[node]
    leaves = [node for node in below if leaf_of(node) is not None]
    for leaf in leaves:
        del below[leaf]
    return _in_backward(below) + leaves


def _in_backward(below: Mapping[Node, Sequence[Node]]) -> list[Node]:
    """Order nodes as the engine does: of those whose users are done, the one that its thread made last comes next."""
    users = collections.Counter(itertools.chain.from_iterable(below.values()))
    # threads number nodes of their own, and nodes have no order besides: the place breaks a tie
    keys = {node: (-sequence_number(node), place) for place, node in enumerate(below)}
    ready = [(keys[node], node) for node in below if not users[node]]
    heapq.heapify(ready)
    order = []
    while ready:
        _, node = heapq.heappop(ready)
        order.append(node)
        for following in below[node]:
            users[following] -= 1
            if not users[following] and following in keys:
                heapq.heappush(ready, (keys[following], following))
    return order


def leaf_of(node: Node) -> Tensor | None:
    """Return the tensor that gets the gradient, if that is what a node is for."""
    # others may have an attribute of that name: a Python function's node has what its forward put on ctx
    return getattr(node, "variable", None) if type(node) is _ACCUMULATE else None


def number_of(node: Node) -> int:
    """Return a node's sequence number, which rises with each node made; -1 for a leaf's, which has no place."""
    return -1 if leaf_of(node) is not None else sequence_number(node)


def name_of(node: Node) -> str:
    """Return a node's name without its namespace: ``"AddmmBackward0"``."""
    return node.name().rpartition("::")[2]


def slots(node: Node) -> Iterator[Slot]:
    """Yield what a node holds for backward.

    Raises:
        RuntimeError: Backward ran and freed it.
    """
    for attribute in _saving_attributes(type(node)):
        saved = getattr(node, attribute)
        name = "saved_tensors" if attribute == f"{_RAW}tensors" else attribute.removeprefix(_RAW)
        several = isinstance(saved, tuple)
        for index, raw in enumerate(saved if several else (saved,)):
            if raw is None:
                continue
            # a hook may have packed a tensor into nothing
            if raw.data is not None or raw.unpack_hook is not None:
                yield Slot(f"{name}[{index}]" if several else name, raw.data, raw.unpack_hook)
            elif not several:
                # never filled, or freed, which raises; there is no hook to be called
                getattr(node, attribute.removeprefix("_raw"), None)
    yield from _on_context(node)


def held_by(node: Node) -> list[Slot] | None:
    """Return the slots of a node; ``None`` if backward ran and freed them.

    Of what a manager of this library packed, ``held`` is the tensor that it kept, or the ``torchadx.memory.Residence``
    of what it made of it, without a hook.
    """
    try:
        return [slot if slot.hook is None else _described(slot) for slot in slots(node)]
    except RuntimeError as error:
        if "freed" not in str(error):
            raise
        return None


def _described(slot: Slot) -> Slot:
    found = residence(slot.held)
    return slot if found is None else slot._replace(held=found, hook=None)


def _saving_attributes(kind: Any) -> tuple[str, ...]:
    # a Python function's class may be made anew for each call, and hold what its forward closes over
    return (f"{_RAW}tensors",) if issubclass(kind, torch.autograd.function.BackwardCFunction) else _of_builtin(kind)


@functools.cache
def _of_builtin(kind: Any) -> tuple[str, ...]:
    return tuple(name for name in dir(kind) if name.startswith(_RAW))


def _on_context(node: Node) -> Iterator[Slot]:
    """Yield the tensors that a Python function put on its ``ctx`` by itself."""
    # only what is written in Python has attributes of its own
    attributes: dict[str, Any] = getattr(node, "__dict__", {})
    for name, value in attributes.items():
        for index, tensor in enumerate(found := tensors_of(value)):
            yield Slot(f"ctx.{name}" if len(found) == 1 else f"ctx.{name}[{index}]", tensor)


def source_of(node: Node) -> str | None:
    """Return ``file:line`` of the innermost code outside of libraries that made a node, if anomaly mode noted it."""
    # a property, which torch's annotations take for a method
    metadata: Any = node.metadata
    for frame in reversed(metadata.get("traceback_", ())):
        for file, line in reversed(_FRAME.findall(frame)):
            if not file.startswith((*_LIBRARIES, "<frozen")):
                return f"{_short(file)}:{line}"
    return None


def _short(file: str) -> str:
    """Shorten a path: relative to where we are if it lies below, else its last two parts."""
    path = Path(file)
    if path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    return "/".join(path.parts[-2:])
