"""Reading the autograd graph: its nodes, what each saves, and where it was made. No hook on saved tensors is fired."""

import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.utils._pytree import tree_leaves

from torchadx.ops import sequence_number

_RAW = "_raw_saved_"
_LIBRARIES = tuple(str(folder) + os.sep for folder in (Path(torch.__file__).parent, Path(__file__).parents[1]))
_FRAME = re.compile(r'File "(.+?)", line (\d+)')


class Slot(NamedTuple):
    """One place of a node where something waits for backward.

    Attributes:
        name: As the node calls it: ``"mat1"``, ``"indices[0]"``, ``"saved_tensors[0]"``, ``"ctx.mask"``.
        held: The tensor, or what a hook on saved tensors made of it.
        hook: The hook that turns it into a tensor again, which nobody here calls.
        on_context: Whether it is an attribute of a Python function's ``ctx``, where no hook sees it.
    """

    name: str
    held: Any
    hook: Callable[..., Any] | None = None
    on_context: bool = False


def tensors_of(outputs: Any) -> list[Tensor]:
    """Return the tensors of nested lists, tuples and dictionaries."""
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def walk(outputs: Iterable[Tensor]) -> list[Node]:
    """Return the nodes below tensors: first in the order in which backward runs them, then those of leaves.

    The engine always runs the ready node that was made last; a node is made after those below it.
    """
    pending = [tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None]
    # the wrappers in Python are made anew where nobody holds one: held here, equal nodes are one object
    seen = dict.fromkeys(pending)
    while pending:
        for following, _ in pending.pop().next_functions:
            if following is not None and following not in seen:
                seen[following] = None
                pending.append(following)
    inner = [node for node in seen if leaf_of(node) is None]
    leaves = [node for node in seen if leaf_of(node) is not None]
    return sorted(inner, key=sequence_number, reverse=True) + leaves


def leaf_of(node: Node) -> Tensor | None:
    """Return the tensor that gets the gradient, if that is what a node is for."""
    return getattr(node, "variable", None)


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
        # a single one of what may be a list has the name alone
        saved = getattr(node, attribute)
        name = "saved_tensors" if attribute == f"{_RAW}tensors" else attribute.removeprefix(_RAW)
        several = isinstance(saved, tuple)
        for index, raw in enumerate(saved if several else (saved,)):
            if raw is not None and raw.data is not None:
                yield Slot(f"{name}[{index}]" if several else name, raw.data, raw.unpack_hook)
    yield from _on_context(node)


def saves(node: Node) -> bool:
    """Whether a node is of a kind that may keep something."""
    return bool(_saving_attributes(type(node)))


@functools.cache
def _saving_attributes(kind: type) -> tuple[str, ...]:
    return tuple(name for name in dir(kind) if name.startswith(_RAW))


def _on_context(node: Node) -> Iterator[Slot]:
    """Yield the tensors that a Python function put on its ``ctx`` by itself."""
    # only what is written in Python has attributes of its own
    for name, value in getattr(node, "__dict__", {}).items():
        for index, tensor in enumerate(found := tensors_of(value)):
            yield Slot(f"ctx.{name}" if len(found) == 1 else f"ctx.{name}[{index}]", tensor, on_context=True)


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
