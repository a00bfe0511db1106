"""What a benchmark measured: cases, one row per contender, and how they compare."""

import dataclasses
from typing import Generic, Protocol, TypeVar

from torchadx.bench._harness import Timing
from torchadx.bench._modes import Shape


@dataclasses.dataclass(frozen=True)
class Row:
    """One contender's results in one case.

    Attributes:
        name: The contender.
        timing: Quartiles in seconds; ``None`` where it was left out.
        error: Largest error against float64; ``None`` for bare references.
        saved: Bytes kept for backward; ``None`` where the mode has no backward.
        left_out: Why it was not timed.
    """

    name: str
    timing: Timing | None
    error: float | None
    saved: int | None
    left_out: str | None


class Timed(Protocol):
    """What a row tells at least."""

    @property
    def name(self) -> str:
        """The contender."""

    @property
    def timing(self) -> Timing | None:
        """Quartiles in seconds; ``None`` where it was left out."""


R = TypeVar("R", bound=Timed)


class Compared(Generic[R]):
    """Rows of contenders, found by their names and compared with each other."""

    rows: tuple[R, ...]

    def row(self, name: str) -> R | None:
        """Return the row of a contender, if it took part."""
        return next((row for row in self.rows if row.name == name), None)

    def median(self, name: str) -> float | None:
        """Return a contender's median in seconds per call, if it was timed."""
        row = self.row(name)
        return row.timing.median if row and row.timing else None

    def ratio(self, name: str, over: str) -> float | None:
        """Return how many times faster contender ``name`` is than ``over``, if both were timed."""
        mine, theirs = self.median(name), self.median(over)
        return theirs / mine if mine and theirs else None


@dataclasses.dataclass(frozen=True)
class Case(Compared[Row]):
    """A measured case: a mode at a shape and dtype, one row per contender.

    Attributes:
        mode: A key of ``MODES``.
        shape: ``(M, K, N)``.
        dtype: A key of ``DTYPES``.
        flops: Floating-point operations of the mode's products.
        rows: One per contender.
    """

    mode: str
    shape: Shape
    dtype: str
    flops: int
    rows: tuple[Row, ...]
