"""The dynamic programme over a chain: which way to compute the Jacobian of F_q ∘ ... ∘ F_1 costs least.

Pure arithmetic on what each segment costs, without torch. The recurrence is that of Naumann (arXiv 2406.11862) and
Märtens and Naumann (arXiv 2505.06056), with two additions: a segment's Jacobian may be known without moving directions,
and whatever is alive at once has to fit into a limit. With C[i, j] the least cost of the Jacobian of segments i..j-1:

    C[i, j] = min over  known(i)                                    where j = i + 1
                        n_i tangents through i..j-1                 forward
                        m_j cotangents through i..j-1               reverse
                        C[i, k] + n_i tangents through k..j-1       push
                        C[k, j] + m_j cotangents through i..k-1     pull
                        C[i, k] + C[k, j] + product (m_j, m_k, n_i) multiply

Without a limit, moving directions through several segments costs what moving them through one after the other does, so
one at a time is enough, and only products need a loop over k. With a limit it matters that directions which go through
several segments in chunks never stand between them all at once.
"""

import dataclasses
import math
from collections.abc import Collection, Iterator
from typing import Literal, Protocol, get_args

Action = Literal["known", "forward", "reverse", "push", "pull", "multiply"]
ACTIONS: frozenset[str] = frozenset(get_args(Action))


class Costs(Protocol):
    """What a chain costs. Segments are numbered from 0; place i lies before segment i."""

    length: int

    def width(self, place: int) -> int:
        """Numbers that pass a place."""

    def known(self, i: int) -> float | None:
        """Seconds for the Jacobian of segment i without moving directions; ``None`` if it takes directions."""

    def sweep(self, i: int, j: int, count: int, adjoint: bool, seeded: bool, space: float) -> float:
        """Seconds for directions through segments i..j-1 in ``space`` bytes; infinite if one does not fit.

        ``seeded``: they are those of the identity, rather than a Jacobian that was computed before.
        """

    def room(self, i: int, j: int, adjoint: bool) -> float:
        """Bytes that a single direction through segments i..j-1 needs beside its two ends."""

    def multiply(self, rows: int, inner: int, columns: int) -> float:
        """Seconds for the product of two dense Jacobians."""

    def block(self, i: int, j: int) -> float:
        """Bytes of the Jacobian of segments i..j-1."""


@dataclasses.dataclass(frozen=True)
class Step:
    """How the Jacobian of segments start..end-1 is computed.

    Attributes:
        action: What is done last.
        start: First segment.
        end: Behind the last segment.
        parts: The Jacobians that it starts from; of a product the right factor comes first.
        seconds: Predicted, parts included.
        peak: Bytes alive at once at least, result included.
    """

    action: Action
    start: int
    end: int
    parts: tuple["Step", ...]
    seconds: float
    peak: float

    def walk(self) -> Iterator["Step"]:
        """Go through all steps, in the order in which they are computed."""
        for part in self.parts:
            yield from part.walk()
        yield self


class Table:
    """C[i, j] for every stretch of a chain.

    Args:
        costs: What the chain costs; it has at least one segment.
        limit: Bytes that may be alive at once.
        actions: What may be done; ``{"known", "forward", "push"}`` is forward mode.
    """

    def __init__(self, costs: Costs, limit: float = math.inf, actions: Collection[str] = ACTIONS) -> None:
        self.best: dict[tuple[int, int], list[Step]] = {}
        self._costs = costs
        self._limit = limit
        self._limited = limit < math.inf
        self._actions = frozenset(actions)
        for span in range(1, costs.length + 1):
            for i in range(costs.length - span + 1):
                self._fill(i, i + span)

    def fastest(self, i: int, j: int) -> Step | None:
        """Return the cheapest way to the Jacobian of segments i..j-1, or ``None`` if no way fits into the limit."""
        return min(self.best[i, j], key=lambda step: step.seconds, default=None)

    def mixed(self) -> Step | None:
        """Return the cheapest way to the whole Jacobian that ends with a product, or ``None`` if there is none."""
        last = self._costs.length
        products = self._products(0, last)
        return min((s for s in products if s.peak <= self._limit), key=lambda step: step.seconds, default=None)

    def _fill(self, i: int, j: int) -> None:
        candidates = [*self._bases(i, j)]
        if "push" in self._actions:
            candidates += self._pushes(i, j)
        if "pull" in self._actions:
            candidates += self._pulls(i, j)
        if "multiply" in self._actions:
            candidates += self._products(i, j) if self._limited else self._best_product(i, j)
        self.best[i, j] = self._select([step for step in candidates if step.seconds < math.inf])

    def _select(self, steps: list[Step]) -> list[Step]:
        if not self._limited:
            return [min(steps, key=lambda step: step.seconds)] if steps else []
        # keep what nothing else beats in both time and bytes: less time may cost what a later step needs
        kept: list[Step] = []
        for step in sorted(steps, key=lambda step: (step.seconds, step.peak)):
            if step.peak <= self._limit and (not kept or step.peak < kept[-1].peak):
                kept.append(step)
        return kept

    def _bases(self, i: int, j: int) -> Iterator[Step]:
        costs = self._costs
        if j == i + 1 and "known" in self._actions:
            seconds = costs.known(i)
            if seconds is not None:
                yield Step("known", i, j, (), seconds, costs.block(i, j))
        if j == i + 1 or self._limited:
            if "forward" in self._actions:
                yield self._sweep("forward", i, j, i, j, costs.width(i))
            if "reverse" in self._actions:
                yield self._sweep("reverse", i, j, i, j, costs.width(j))

    def _pushes(self, i: int, j: int) -> Iterator[Step]:
        for k in range(i + 1, j) if self._limited else range(max(i + 1, j - 1), j):
            for part in self.best[i, k]:
                yield self._sweep("push", i, j, k, j, self._costs.width(i), part)

    def _pulls(self, i: int, j: int) -> Iterator[Step]:
        for k in range(i + 1, j) if self._limited else range(i + 1, min(i + 2, j)):
            for part in self.best[k, j]:
                yield self._sweep("pull", i, j, i, k, self._costs.width(j), part)

    def _sweep(self, action: Action, i: int, j: int, first: int, last: int, count: int, *parts: Step) -> Step:
        """Move ``count`` directions through segments first..last-1 to get the Jacobian of i..j-1."""
        costs, adjoint = self._costs, action in ("reverse", "pull")
        alive = costs.block(i, j) + sum(costs.block(part.start, part.end) for part in parts)
        seconds = costs.sweep(first, last, count, adjoint, not parts, self._limit - alive)
        peak = alive + costs.room(first, last, adjoint) if self._limited else 0.0
        return Step(
            action, i, j, parts,
            seconds + sum(part.seconds for part in parts),
            max(peak, *(part.peak for part in parts), 0.0),
        )  # fmt: skip

    def _best_product(self, i: int, j: int) -> Iterator[Step]:
        """The cheapest product; nothing but time counts, so that no other step has to be made."""
        costs, best = self._costs, self.best
        rows, columns = costs.width(j), costs.width(i)
        cheapest, cut = math.inf, 0
        for k in range(i + 1, j):
            if best[i, k] and best[k, j]:
                seconds = best[i, k][0].seconds + best[k, j][0].seconds
                if seconds < cheapest:
                    seconds += costs.multiply(rows, costs.width(k), columns)
                    if seconds < cheapest:
                        cheapest, cut = seconds, k
        if cut:
            yield Step("multiply", i, j, (best[i, cut][0], best[cut, j][0]), cheapest, 0.0)

    def _products(self, i: int, j: int) -> Iterator[Step]:
        costs = self._costs
        for k in range(i + 1, j):
            seconds = costs.multiply(costs.width(j), costs.width(k), costs.width(i))
            right_bytes, left_bytes = costs.block(i, k), costs.block(k, j)
            for right in self.best[i, k]:
                for left in self.best[k, j]:
                    peak = max(right.peak, right_bytes + left.peak, right_bytes + left_bytes + costs.block(i, j))
                    yield Step("multiply", i, j, (right, left), right.seconds + left.seconds + seconds, peak)


def solve(costs: Costs, limit: float = math.inf, actions: Collection[str] = ACTIONS) -> Step | None:
    """Return the cheapest way to the whole Jacobian, or ``None`` if no way fits into the limit; see :class:`Table`."""
    return Table(costs, limit, actions).fastest(0, costs.length)
