"""Evaluate a recorded function and differentiate its operations on the way."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchadx.autodiff._chain import Chain, Link
from torchadx.autodiff._program import Call
from torchadx.autodiff.elemental import reads_result


class Evaluator:
    """Differentiates the operations of a chain at any point.

    What does not depend on the point is worked out once: when a value is read for the last time, which results nobody
    reads (the last layer's, say, whose derivative needs none), and what only moves elements.

    Args:
        chain: The function.
    """

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._unread = _unread(chain)
        self._dropped = _dropped(chain)
        self._constant_views = frozenset(
            number
            for number, call in enumerate(chain.program.calls)
            if call.target.is_view and len(call.inputs) == 1 and not call.several
            if call.inputs[0] in chain.program.constants
        )
        self._settled: dict[int, Link] = {}
        self._stand_ins: dict[int, Tensor] = {}
        # transposed weights and such, with what they are views of
        self._views: dict[int, tuple[Tensor, Tensor]] = {}

    def links(self, arguments: Sequence[Tensor], first: int = 0, last: int | None = None) -> list[Link]:
        """Return the derivatives of nodes first..last-1 at a point.

        Args:
            arguments: All inputs of the program.
            first: First node.
            last: Behind the last node; ``None`` is all of them.
        """
        chain, links = self._chain, []
        last = len(chain.nodes) if last is None else last
        values: list[Any] = chain.program.start(arguments)
        node = 0
        for number, call in enumerate(chain.program.calls):
            if node == last:
                break
            if number in self._unread:
                self._stand_in(call.outputs, values)
            elif number in self._constant_views:
                self._view(number, call, values)
            else:
                call.run(values)
            if chain.nodes[node].call is call:
                if node >= first:
                    links.append(self._link(node, values))
                node += 1
            for index in self._dropped[number]:
                values[index] = None
        return links

    def _view(self, number: int, call: Call, values: list[Any]) -> None:
        source, result = values[call.inputs[0]], call.outputs[0]
        assert result is not None
        known = self._views.get(number)
        if known is not None and known[0] is source:
            values[result] = known[1]
            return
        call.run(values)
        # one that is made without gradients would not pass them later
        if not source.requires_grad:
            self._views[number] = source, values[result]

    def _link(self, node: int, values: Sequence[Any]) -> Link:
        link = self._settled.get(node)
        if link is None:
            link = self._chain.link(self._chain.nodes[node], values)
            if all(part.kind in ("reshape", "view") for part in link.parts):
                self._settled[node] = link
        return link

    def _stand_in(self, outputs: Sequence[int | None], values: list[Any]) -> None:
        """Write tensors that have shapes and dtypes only."""
        for index in outputs:
            if index is not None:
                if index not in self._stand_ins:
                    meta = self._chain.program.metas[index]
                    self._stand_ins[index] = torch.empty(meta.shape, dtype=meta.dtype, device="meta")
                values[index] = self._stand_ins[index]


def _unread(chain: Chain) -> frozenset[int]:
    """Numbers of the calls whose results neither another operation reads nor their own derivative."""
    nodes = {id(node.call) for node in chain.nodes}
    read: set[int] = set()
    unread = set()
    for number, call in reversed(list(enumerate(chain.program.calls))):
        needed = not read.isdisjoint(call.outputs) or (id(call) in nodes and reads_result(call.target))
        if not needed:
            unread.add(number)
        # a derivative reads the arguments that it is not taken by
        if needed or id(call) in nodes:
            read.update(call.inputs)
    return frozenset(unread)


def _dropped(chain: Chain) -> list[tuple[int, ...]]:
    """For every call the values that nobody reads after it."""
    last: dict[int, int] = {}
    for number, call in enumerate(chain.program.calls):
        for index in (*call.inputs, *call.outputs):
            if index is not None:
                last[index] = number
    dropped: list[list[int]] = [[] for _ in chain.program.calls]
    for index, number in last.items():
        dropped[number].append(index)
    return [tuple(values) for values in dropped]
