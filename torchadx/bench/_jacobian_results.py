"""What the Jacobian benchmark measured."""

import dataclasses
import statistics
from collections.abc import Sequence

from torchadx.bench._harness import Timing


@dataclasses.dataclass(frozen=True)
class Row:
    """One contender's results in one case.

    Attributes:
        name: The contender.
        group: ``"torchadx"``, ``"eager"`` or ``"compiled"``; ``"limited"`` is torchadx under a memory limit.
        detail: What was chosen: the mode of a plan, the size of a chunk.
        timing: Quartiles of seconds a Jacobian; ``None`` when it was left out.
        error: Largest error against float64, over the largest entry, if it got that far.
        peak: Most bytes live at once besides arguments, parameters and the result; ``None`` where nobody can count.
        prepared: Seconds spent once, not timed in: planning, compiling; ``None`` where there is nothing to prepare.
        left_out: Why it was not timed.
    """

    name: str
    group: str
    detail: str
    timing: Timing | None
    error: float | None
    peak: int | None
    prepared: float | None
    left_out: str | None


@dataclasses.dataclass(frozen=True)
class Case:
    """One function, differentiated by every contender.

    Attributes:
        name: The function.
        inputs: Shape of its input.
        outputs: Shape of its output.
        memory: The limit of the row that has one.
        explanation: What torchadx says of its plan.
        predicted: Seconds that the plan expected to take.
        rows: One per contender.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    memory: str | None
    explanation: str
    predicted: float | None
    rows: tuple[Row, ...]

    def row(self, name: str) -> Row | None:
        """Return the row of a contender, if it took part."""
        return next((row for row in self.rows if row.name == name), None)

    def best(self, group: str) -> Row | None:
        """Return the fastest of a group, if any of it was timed."""
        timed = [row for row in self.rows if row.group == group and row.timing is not None]
        return min(timed, key=lambda row: row.timing.median if row.timing else 0.0, default=None)

    def ratio(self, group: str) -> float | None:
        """Return how many times faster than the fastest of a group torchadx is."""
        mine, other = self.best("torchadx"), self.best(group)
        if mine is None or other is None or mine.timing is None or other.timing is None:
            return None
        return other.timing.median / mine.timing.median


@dataclasses.dataclass(frozen=True)
class Planning:
    """Planning a deep network: how many layers, and seconds a plan, each made anew."""

    layers: int
    timing: Timing


@dataclasses.dataclass(frozen=True)
class Sample:
    """One random network.

    Attributes:
        name: Its layers.
        seconds: Median of each contender.
        limit: Bytes that a second plan was given: half of what the first one needed.
        peak: Bytes that the second plan needed; ``None`` when it said that the limit cannot be met.
    """

    name: str
    seconds: dict[str, float]
    limit: int
    peak: int | None

    @property
    def ratio(self) -> float:
        """How many times faster than the better of the pure modes the plan is."""
        return min(seconds for name, seconds in self.seconds.items() if name != "torchadx") / self.seconds["torchadx"]

    @property
    def above(self) -> bool:
        """Whether the second plan took more than it was given."""
        return self.peak is not None and self.peak > self.limit


def quartiles(samples: Sequence[Sample]) -> list[float]:
    """Return the least ratio, the quartiles and the greatest."""
    ratios = [sample.ratio for sample in samples]
    inner = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return [min(ratios), *inner, max(ratios)]
