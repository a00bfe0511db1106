"""Which action for which tensor: the least cost whose bytes fit at every moment. Plain arithmetic on integers.

Every tensor has options (bytes held, nanoseconds paid, lossy or not), and is alive from one tick of a clock to another.
What is sought is one option each, such that the bytes of all tensors alive never exceed a limit, at the least cost.

*Cost.* With lossless options alone, if these can fit: the nanoseconds. Otherwise first the bytes, as they were before,
of the tensors that get a lossy option, then the nanoseconds: not one byte more is lossy than the limit asks for.

*Method.* Only moments at which the set of tensors alive is maximal matter, and sets without a tensor in common are
problems of their own. A set that stands alone is a multiple-choice knapsack: up to ``MAX_KNAPSACK`` tensors,
:func:`_frontier` builds all trade-offs of bytes against cost. That is exact while no more than ``MAX_STATES`` of them
are efficient; beyond, of those within one ``MAX_STATES``-th of all bytes only the cheapest goes on. Larger sets, and
those that overlap (a knapsack with several constraints) are for :class:`_Descent`: from the cheapest choice down to
the smallest, always at the fullest moment and by the step that costs least per byte, then undoing what later steps
made needless. It reaches every limit that can be met at all, and misses the optimum by about one tensor's step.

Neither method looks at the limit before it reads off its result. Hence a larger limit never costs more.
"""

import bisect
import collections
import dataclasses
import itertools
import operator
from collections.abc import Iterable, Iterator, Sequence

MAX_KNAPSACK = 256
MAX_STATES = 4096
# up to so many trials to undo a step, every configuration on the way down is improved; beyond, none is
_MAX_TRIALS = 1_000_000


@dataclasses.dataclass(frozen=True, slots=True)
class Option:
    """What one action does to one tensor: bytes that stay in memory, time for the way there and back."""

    nbytes: int
    nanoseconds: int
    lossy: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """A tensor: its bytes as it is, its options, and the ticks from which (inclusive) and until which it is alive."""

    nbytes: int
    options: tuple[Option, ...]
    born: int
    died: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class _Point:
    nbytes: int
    cost: int
    option: int


def solve(items: Sequence[Item], limit: int) -> list[int] | None:
    """Choose an option for each item, as the module's text says.

    Args:
        items: The tensors.
        limit: Bytes that those alive may take together.

    Returns:
        The index of each item's option; ``None`` if the limit is below ``floor(items)``.
    """
    if floor(items) > limit:
        return None
    # the weight below would keep lossy options out too, only that there would be more to search
    lossless_only = floor(items, lossless=True) <= limit
    # more than all nanoseconds together, so that bytes made lossy always come first
    weight = 1 + sum(max(option.nanoseconds for option in item.options) for item in items)
    points = [_efficient(item, weight, lossless_only) for item in items]
    chosen = [efficient[0].option for efficient in points]
    for moments in _independent(_moments(items)):
        members = sorted(set().union(*moments))
        own = {member: points[member] for member in members}
        alone = len(moments) == 1 and len(own) <= MAX_KNAPSACK
        picked = _knapsack(own, limit) if alone else _Descent(own, moments).reach(limit)
        for member, point in picked.items():
            chosen[member] = point.option
    return chosen


def peak(items: Sequence[Item], nbytes: Sequence[int]) -> int:
    """Return the most bytes alive at once, if every item takes what ``nbytes`` says."""
    return max((sum(nbytes[index] for index in moment) for moment in _moments(items)), default=0)


def floor(items: Sequence[Item], lossless: bool = False) -> int:
    """Return the least limit that can be met, by all options or by the lossless ones."""
    return peak(items, [min(o.nbytes for o in item.options if not (lossless and o.lossy)) for item in items])


def _efficient(item: Item, weight: int, lossless_only: bool) -> list[_Point]:
    """Return an item's options from the cheapest to the smallest, without those that another one beats in both."""
    points = [
        _Point(option.nbytes, option.lossy * item.nbytes * weight + option.nanoseconds, index)
        for index, option in enumerate(item.options)
        if not (lossless_only and option.lossy)
    ]
    efficient: list[_Point] = []
    for point in sorted(points, key=lambda point: (point.cost, point.nbytes)):
        if not efficient or point.nbytes < efficient[-1].nbytes:
            efficient.append(point)
    return efficient


def _moments(items: Sequence[Item]) -> list[frozenset[int]]:
    """Return the largest sets of items alive at once: those after which an item dies before another is born."""
    births = [(item.born, 1, index) for index, item in enumerate(items)]
    deaths = [(item.died, 0, index) for index, item in enumerate(items) if item.died is not None]
    alive: set[int] = set()
    moments = []
    grew = False
    for _, born, index in sorted(births + deaths):
        if born:
            alive.add(index)
        elif index in alive:
            if grew:
                moments.append(frozenset(alive))
            alive.remove(index)
        grew = bool(born)
    return [*moments, frozenset(alive)] if grew else moments


def _independent(moments: Iterable[frozenset[int]]) -> list[list[frozenset[int]]]:
    """Group moments, in order of time, so that no item is alive in two groups."""
    groups: list[list[frozenset[int]]] = []
    for moment in moments:
        # an item is alive without a break, so sharing with any earlier moment is sharing with the last one
        if groups and groups[-1][-1] & moment:
            groups[-1].append(moment)
        else:
            groups.append([moment])
    return groups


def _knapsack(points: dict[int, list[_Point]], limit: int) -> dict[int, _Point]:
    """Choose one point each, of the least cost together whose bytes fit."""
    cheapest = {member: efficient[0] for member, efficient in points.items()}
    if sum(point.nbytes for point in cheapest.values()) <= limit:
        return cheapest
    # large ones first: small ones then fill the gaps that thinning leaves
    order = sorted(points, key=lambda member: -points[member][0].nbytes)
    states, history = _frontier([points[member] for member in order])
    position = bisect.bisect_right(states, limit, key=operator.itemgetter(0)) - 1
    picked = {}
    for member, origins in zip(reversed(order), reversed(history), strict=True):
        position, option = divmod(origins[position], len(points[member]))
        picked[member] = points[member][option]
    return picked


def _frontier(rows: Sequence[list[_Point]]) -> tuple[list[tuple[int, int]], list[list[int]]]:
    """Return the efficient sums (bytes, cost) of one point a row, and for each row where each sum came from.

    An origin is ``place of the sum before * number of the row's points + place of the point``.
    """
    states = [(0, 0)]
    history = []
    total = 0
    for row in rows:
        total += row[0].nbytes
        count = len(row)
        grown = sorted(
            (nbytes + point.nbytes, cost + point.cost, place * count + option)
            for option, point in enumerate(row)
            for place, (nbytes, cost) in enumerate(states)
        )
        kept: list[tuple[int, int, int]] = []
        for state in grown:
            if not kept or state[1] < kept[-1][1]:
                kept.append(state)
        if len(kept) > MAX_STATES:
            kept = _thinned(kept, total)
        states = [state[:2] for state in kept]
        history.append([state[2] for state in kept])
    return states, history


def _thinned(states: list[tuple[int, int, int]], total: int) -> list[tuple[int, int, int]]:
    """Keep the smallest state, and the cheapest of each of ``MAX_STATES`` equal ranges of bytes."""
    # bytes rise and costs fall along the states, so that the last one of a range stands
    cheapest = {state[0] * MAX_STATES // (total + 1): state for state in states[1:]}
    return [states[0], *cheapest.values()]


class _Descent:
    """From the cheapest choice to the smallest, step by step."""

    def __init__(self, points: dict[int, list[_Point]], moments: Sequence[frozenset[int]]) -> None:
        self._hulls = {member: _hull(efficient) for member, efficient in points.items()}
        self._level = dict.fromkeys(points, 0)
        self._moments = moments
        self._where: dict[int, list[int]] = collections.defaultdict(list)
        for time, moment in enumerate(moments):
            for member in moment:
                self._where[member].append(time)
        self._loads = [sum(self._hulls[member][0].nbytes for member in moment) for moment in moments]
        # slopes rise along a hull, so that this order never puts a later step of an item before an earlier one
        self._steps = sorted(
            ((after.cost - before.cost) / (before.nbytes - after.nbytes), member, level)
            for member, hull in self._hulls.items()
            for level, (before, after) in enumerate(itertools.pairwise(hull), 1)
        )

    def reach(self, limit: int) -> dict[int, _Point]:
        """Return the cheapest configuration within the limit, of those on the way and their improved versions."""
        improve_all = len(self._steps) ** 2 * len(self._moments) <= _MAX_TRIALS
        best: dict[int, int] | None = None
        for _ in self._walk():
            highest = max(self._loads)
            if highest > limit:
                continue
            # improved within its own peak, not within the limit: what is found then does not depend on the limit
            levels = self._undone(highest) if improve_all else dict(self._level)
            if best is None or self._cost(levels) < self._cost(best):
                best = levels
            if not improve_all:
                break
        assert best is not None, "the limit is below the floor"
        return {member: self._hulls[member][level] for member, level in best.items()}

    def _walk(self) -> Iterator[None]:
        """Stop at each configuration, the cheapest first."""
        queues = [iter([step for step in self._steps if step[1] in moment]) for moment in self._moments]
        yield
        while True:
            fullest = self._loads.index(max(self._loads))
            step = next((s for s in queues[fullest] if s[2] > self._level[s[1]]), None)
            if step is None:
                return
            self._shift(self._level, self._loads, step[1], 1)
            yield

    def _shift(self, level: dict[int, int], loads: list[int], member: int, by: int) -> None:
        hull = self._hulls[member]
        saved = hull[level[member]].nbytes - hull[level[member] + by].nbytes
        level[member] += by
        for time in self._where[member]:
            loads[time] -= saved

    def _undone(self, limit: int) -> dict[int, int]:
        """Take steps back, the dearest first, as far as all moments stay within the limit."""
        level, loads = dict(self._level), list(self._loads)
        for _, member, reached in reversed(self._steps):
            if level[member] != reached:
                continue
            self._shift(level, loads, member, -1)
            if any(loads[time] > limit for time in self._where[member]):
                self._shift(level, loads, member, 1)
        return level

    def _cost(self, level: dict[int, int]) -> int:
        return sum(self._hulls[member][reached].cost for member, reached in level.items())


def _hull(points: list[_Point]) -> list[_Point]:
    """Keep the points, cheapest first, from each of which the next one costs more per byte than the one before."""
    hull: list[_Point] = []
    for point in points:
        while len(hull) > 1:
            first, last = hull[-2:]
            if (last.cost - first.cost) * (last.nbytes - point.nbytes) < (point.cost - last.cost) * (
                first.nbytes - last.nbytes
            ):
                break
            hull.pop()
        hull.append(point)
    return hull
