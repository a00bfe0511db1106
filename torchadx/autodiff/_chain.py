"""A recorded function as a chain: what depends on the inputs, in order, and where it can be cut.

At every place between two operations the set of tensors that were made before and are read after is a frontier. All
that the inputs do to the outputs passes through it, so the Jacobian is the product of that after it and that before it,
however many tensors it has: residual and skip connections only make it wider.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from torchadx.autodiff._program import Call, Program
from torchadx.autodiff.elemental import JOINS, Part, Site, carries, part, positions


class Edge(NamedTuple):
    """One argument of an operation that carries derivatives to one of its results.

    Attributes:
        wrt: Position of the argument, see :class:`Site`.
        source: Number of its value.
        of: Position of the result.
        target: Number of its value.
    """

    wrt: tuple[int, ...]
    source: int
    of: int
    target: int


class Node(NamedTuple):
    """An operation through which derivatives pass, and the edges on which they do."""

    call: Call
    edges: tuple[Edge, ...]


class Link(NamedTuple):
    """A node at one point: its derivatives.

    Attributes:
        node: The operation.
        parts: The derivative on each of its edges.
        join: Tangents by position of the argument to the tangent of the result, where one pass does it for all.
    """

    node: Node
    parts: tuple[Part, ...]
    join: Callable[[Mapping[tuple[int, ...], Tensor]], Tensor] | None = None


@dataclasses.dataclass(frozen=True)
class Chain:
    """The operations between inputs and outputs through which derivatives pass.

    Attributes:
        program: All operations.
        wrt: Numbers of the inputs that derivatives are taken by.
        nodes: Operations that carry derivatives, in order.
        active: Numbers of the values that do.
    """

    program: Program
    wrt: tuple[int, ...]
    nodes: tuple[Node, ...]
    active: frozenset[int]

    @functools.cached_property
    def frontiers(self) -> tuple[tuple[int, ...], ...]:
        """Numbers of the values that pass each place: place p lies before node p."""
        live = [value for value in dict.fromkeys(self.program.outputs) if value in self.active]
        found = [tuple(live)]
        for node in reversed(self.nodes):
            targets = {edge.target for edge in node.edges}
            sources = dict.fromkeys(edge.source for edge in node.edges)
            live = [value for value in live if value not in targets]
            live = [*(source for source in sources if source not in live), *live]
            found.append(tuple(live))
        # the inputs come in the caller's order
        found[-1] = tuple(value for value in self.wrt if value in found[-1])
        return tuple(reversed(found))

    @functools.cached_property
    def ending(self) -> tuple[tuple[int, ...], ...]:
        """Numbers of the values that nobody reads after each node."""
        pairs = itertools.pairwise(self.frontiers)
        return tuple(tuple(value for value in before if value not in after) for before, after in pairs)

    def width(self, place: int) -> int:
        """Numbers that pass a place."""
        return sum(self.program.metas[value].shape.numel() for value in self.frontiers[place])

    def alone(self, number: int, link: Link) -> bool:
        """Whether all that passes node ``number`` goes through its only argument and result."""
        return len(link.parts) == len(self.frontiers[number]) == len(self.frontiers[number + 1]) == 1

    def link(self, node: Node, values: Sequence[Any]) -> Link:
        """Differentiate one operation at the point that ``values`` holds."""
        args, kwargs = node.call.bind(values)
        results = tuple(None if index is None else values[index] for index in node.call.outputs)
        sites = (Site(node.call, args, kwargs, results, edge.wrt, edge.of) for edge in node.edges)
        join = JOINS.get(node.call.target)
        joined = None if join is None else functools.partial(join, args, kwargs)
        return Link(node, tuple(map(part, sites)), joined)


def chain(program: Program, wrt: Sequence[int]) -> Chain:
    """Find what carries derivatives from the inputs ``wrt`` (numbers of values) to the outputs.

    Args:
        program: A recorded function.
        wrt: Numbers of floating-point inputs.
    """
    return _chain(program, wrt, lambda call: not call.blocked)


def blocked(program: Program, wrt: Sequence[int]) -> list[Call]:
    """Return the operations that stop derivatives on their way from ``wrt`` to the outputs, one a cause and line."""
    stops = [node.call for node in _chain(program, wrt, lambda call: True).nodes if node.call.blocked]
    return list({(call.blocked, call.line): call for call in stops}.values())


def _chain(program: Program, wrt: Sequence[int], passes: Callable[[Call], bool]) -> Chain:
    reached, found = set(wrt), []
    for call in program.calls:
        if call.shapes_only or not passes(call):
            continue
        edges = tuple(_edges(call, reached, program))
        if edges:
            found.append(Node(call, edges))
            reached.update(edge.target for edge in edges)
    needed = reached.intersection(program.outputs)
    nodes: list[Node] = []
    for node in reversed(found):
        edges = tuple(edge for edge in node.edges if edge.target in needed)
        if edges:
            needed.update(edge.source for edge in edges)
            nodes.append(Node(node.call, edges))
    return Chain(program, tuple(wrt), tuple(reversed(nodes)), frozenset(needed))


def _edges(call: Call, reached: set[int], program: Program) -> Iterator[Edge]:
    targets = [
        (of, index)
        for of, index in enumerate(call.outputs)
        if index is not None and _floating(program.metas[index].dtype) and carries(call.target, of)
    ]
    for source in dict.fromkeys(call.inputs):
        if source in reached:
            for wrt in positions(call.args, source):
                yield from (Edge(wrt, source, of, target) for of, target in targets)


def _floating(dtype: Any) -> bool:
    return dtype.is_floating_point or dtype.is_complex
