"""What the inspection benchmark measured: for each section and model what was checked, and who took how long."""

import dataclasses
from typing import Any, ClassVar

from torchadx.bench._harness import Timing
from torchadx.bench._results import Compared


@dataclasses.dataclass(frozen=True)
class Row:
    """One contender's results in one case.

    Attributes:
        name: The contender.
        timing: Quartiles of seconds a call; ``None`` where it was left out.
        left_out: Why it was not timed.
    """

    name: str
    timing: Timing | None
    left_out: str | None = None


@dataclasses.dataclass(frozen=True)
class Case(Compared[Row]):
    """One model in one section. Sizes are in bytes.

    Attributes:
        section: One of the command line's sections.
        name: Of the model.
        described: The model's size in a few words.
        rows: One per contender; the first that was timed is what the others are compared with.
    """

    section: ClassVar[str]
    name: str
    described: str
    rows: tuple[Row, ...]

    def of_first(self, name: str) -> float | None:
        """Return a contender's time over that of the first, if both were timed."""
        first = next((row.name for row in self.rows if row.timing is not None), None)
        return None if first is None else self.ratio(first, name)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, fit for JSON."""
        rows = [{**dataclasses.asdict(row), "of_first": self.of_first(row.name)} for row in self.rows]
        return {"section": self.section, **dataclasses.asdict(self), "rows": rows}


@dataclasses.dataclass(frozen=True)
class Saved(Case):
    """What ``inspect.saved`` found, which hooks on saved tensors found as well.

    Attributes:
        tensors: Saved slots.
        storages: That they show.
        nbytes: Of these storages.
        expected: Bytes by which the allocator should grow: activations, and outputs that no slot shows.
        grown: By which it grew.
    """

    section = "saved"
    tensors: int
    storages: int
    nbytes: int
    expected: int
    grown: int

    @property
    def agreement(self) -> float:
        """Bytes that the allocator grew by over what was expected."""
        return self.grown / self.expected


@dataclasses.dataclass(frozen=True)
class Drawn(Case):
    """What ``inspect.graph`` found.

    Attributes:
        nodes: Of the graph.
        edges: The same as torchviz's, where that took part.
        text_bytes: Of the DOT text of all nodes.
    """

    section = "graph"
    nodes: int
    edges: int
    text_bytes: int


@dataclasses.dataclass(frozen=True)
class Memory(Case):
    """What ``inspect.timeline`` found.

    Attributes:
        peak: The most that was allocated.
        counted: The same from torch's own events.
    """

    section = "timeline"
    peak: int
    counted: int

    @property
    def agreement(self) -> float:
        """The peak over what was counted."""
        return self.peak / self.counted


@dataclasses.dataclass(frozen=True)
class Profiled(Case):
    """What ``inspect.profile`` found.

    Attributes:
        self_ms: Sum of the self times of all modules.
        recorded_ms: The time recorded, from the trace.
        entry_ns: What entering and leaving ``profile(enabled=False)`` takes.
    """

    section = "profile"
    self_ms: float
    recorded_ms: float
    entry_ns: float

    @property
    def agreement(self) -> float:
        """The sum over what was recorded."""
        return self.self_ms / self.recorded_ms


@dataclasses.dataclass(frozen=True)
class Written:
    """What is in a page.

    Attributes:
        nbytes: Of the file.
        before: Held for backward without a manager.
        after: Held with it.
    """

    nbytes: int
    before: int
    after: int


@dataclasses.dataclass(frozen=True)
class Page(Case):
    """What ``inspect.report`` wrote.

    Attributes:
        written: What is in it; ``None`` where it was left out.
    """

    section = "page"
    written: Written | None
