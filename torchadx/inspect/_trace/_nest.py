"""Which interval, of a thread's nested ones, is innermost at a time: one sweep, then a bisection for each question."""

import bisect
import collections
from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar

# what two clocks' roundings may make neighbours overlap by, in microseconds
_ROUNDING = 0.01


class Timed(Protocol):
    """What happened in a thread; times are in microseconds."""

    @property
    def start(self) -> float: ...
    @property
    def end(self) -> float: ...
    @property
    def thread(self) -> int: ...


Item = TypeVar("Item", bound=Timed)


class Nest(Generic[Item]):
    """Intervals that lie inside or apart of each other, within each thread.

    Attributes:
        items: The intervals, by thread, then by start; an outer one stands before those inside.
        parents: For each, the index of the one around it; -1 for none.
        ends: For each, when it ended: not after the one around it, whatever rounding said.
    """

    def __init__(self, intervals: Sequence[Item]) -> None:
        # of two alike, the one that was given first is the outer one
        self.items: list[Item] = sorted(intervals, key=lambda item: (item.thread, item.start, -item.end))
        self.parents: list[int] = []
        self.ends: list[float] = []
        self._times: dict[int, list[float]] = collections.defaultdict(list)
        self._inner: dict[int, list[int]] = collections.defaultdict(list)
        stack: list[int] = []
        for index, item in enumerate(self.items):
            self._leave(stack, item)
            outer = stack[-1] if stack else -1
            self.parents.append(outer)
            self.ends.append(min(item.end, self.ends[outer]) if stack else item.end)
            self._mark(item.thread, item.start, index)
            stack.append(index)
        self._leave(stack, None)

    def at(self, thread: int, time: float) -> Item | None:
        """Return the innermost interval that holds this time; one that ends then no longer does."""
        index = self.index(thread, time)
        return None if index < 0 else self.items[index]

    def index(self, thread: int, time: float) -> int:
        """Return the place of this interval in ``items``; -1 for none."""
        place = bisect.bisect_right(self._times.get(thread, ()), time) - 1
        return self._inner[thread][place] if place >= 0 else -1

    def outwards(self, index: int) -> Iterator[int]:
        """Yield the places of this interval and of those around it."""
        while index >= 0:
            yield index
            index = self.parents[index]

    def self_times(self) -> list[float]:
        """Return for each interval the time when none inside of it ran."""
        times = [end - item.start for item, end in zip(self.items, self.ends, strict=True)]
        for index, outer in enumerate(self.parents):
            if outer >= 0:
                times[outer] -= self.ends[index] - self.items[index].start
        return times

    def _leave(self, stack: list[int], item: Item | None) -> None:
        """Close what ended before this item began."""
        while stack:
            inner = stack[-1]
            thread, end = self.items[inner].thread, self.ends[inner]
            overlap = end - item.start if item is not None and item.thread == thread else 0.0
            if overlap > (_ROUNDING if item is not None and item.end > end else 0.0):
                return
            stack.pop()
            self.ends[inner] = end = end - max(overlap, 0.0)
            self._mark(thread, end, self.parents[inner])

    def _mark(self, thread: int, time: float, index: int) -> None:
        self._times[thread].append(time)
        self._inner[thread].append(index)
