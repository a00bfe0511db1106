"""Bytes by category over time, thinned out without losing a peak."""

import collections
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

from torchadx.inspect._timeline._blocks import CATEGORIES, Block

_POINTS = 2000

# a time, and the bytes of each category
_Point = tuple[float, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Curve:
    """Bytes by category over time: from each time to the next they are constant.

    Attributes:
        times: Milliseconds since the step began.
        categories: Bytes at these times, by category.
        peak_ms: When most was allocated.
        peak_at: The same, on the trace's clock.
        peak_bytes: How much that was.
    """

    times: tuple[float, ...]
    categories: Mapping[str, tuple[int, ...]]
    peak_ms: float
    peak_at: float
    peak_bytes: int

    def totals(self) -> Iterator[tuple[float, int]]:
        """Yield times in milliseconds and bytes of all categories together."""
        for time, *values in zip(self.times, *self.categories.values(), strict=True):
            yield time, sum(values)

    def points(self, device: str) -> Iterator[dict[str, object]]:
        """Yield each time with the bytes of each category."""
        for time, *values in zip(self.times, *self.categories.values(), strict=True):
            yield {"device": device, "ms": time, **dict(zip(self.categories, values, strict=True))}


def curve(found: Sequence[Block], start: float, end: float) -> Curve:
    """Add up blocks between two times in microseconds."""
    changes: dict[float, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    changes[start] = collections.Counter()
    for block in found:
        changes[max(block.start, start)][block.category] += block.nbytes
        if block.end < end:
            changes[max(block.end, start)][block.category] -= block.nbytes
    now = dict.fromkeys(CATEGORIES, 0)
    points: list[_Point] = []
    for time in sorted(changes):
        for category, change in changes[time].items():
            now[category] += change
        points.append((time, tuple(now.values())))
    peak_at, values = max(points, key=lambda point: sum(point[1]))
    points = [*_thin(points, start, end), (end, points[-1][1])]
    times = tuple((time - start) / 1e3 for time, _ in points)
    columns = zip(*(values for _, values in points), strict=True)
    return Curve(times, dict(zip(CATEGORIES, columns, strict=True)), (peak_at - start) / 1e3, peak_at, sum(values))


def _thin(points: Sequence[_Point], start: float, end: float) -> list[_Point]:
    """Keep, of each short while, the highest point, and the last if it differs."""
    if len(points) <= _POINTS:
        return list(points)
    whiles: dict[int, list[_Point]] = collections.defaultdict(list)
    for point in points:
        whiles[math.floor((point[0] - start) / (end - start) * _POINTS / 2)].append(point)
    kept = []
    for each in whiles.values():
        highest = max(each, key=lambda point: sum(point[1]))
        kept += [highest] if highest is each[-1] else [highest, each[-1]]
    return kept
