"""What the rules of advice look at, and what they say."""

import dataclasses
from typing import Literal

from torchadx.inspect._profile._ops import OpRow, RangeRow
from torchadx.inspect._profile._rows import ModuleRow


@dataclasses.dataclass(frozen=True)
class Advice:
    """One thing to change.

    Attributes:
        what: What is expensive.
        why: The measured numbers that say so.
        remedy: What to try.
        share: Of the time recorded, or of the memory that forward keeps, that it is about: the most it may save.
        of: Which of the two.
    """

    what: str
    why: str
    remedy: str
    share: float
    of: Literal["time", "memory"] = "time"


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What rules look at. Times are in milliseconds.

    Attributes:
        modules: Rows of modules.
        ops: Rows of operators.
        ranges: Rows of other ranges, such as an optimizer's step.
        total_ms: Time recorded.
        kernels: How many kernels and copies ran on a device.
        busy_ms: How long at least one of them ran.
        pairs: Paths of a Linear and of the activation that ran right after it.
    """

    modules: tuple[ModuleRow, ...]
    ops: tuple[OpRow, ...]
    ranges: tuple[RangeRow, ...]
    total_ms: float
    kernels: int = 0
    busy_ms: float = 0.0
    pairs: tuple[tuple[str, str], ...] = ()

    def share(self, milliseconds: float) -> float:
        """Return the part of the time recorded that this is."""
        return milliseconds / self.total_ms if self.total_ms else 0.0

    def op(self, name: str) -> OpRow:
        """Return the row of an operator; zeros if it never ran."""
        return next((row for row in self.ops if row.name == name), OpRow(name, 0, 0.0, 0.0, 0.0, 0))

    def range(self, beginning: str) -> RangeRow:
        """Return the sum of all ranges whose names begin like this."""
        rows = [row for row in self.ranges if row.name.startswith(beginning)]
        return RangeRow(
            beginning,
            sum(row.calls for row in rows),
            sum(row.total_ms for row in rows),
            sum(row.ops for row in rows),
            frozenset().union(*(row.names for row in rows)),
        )
