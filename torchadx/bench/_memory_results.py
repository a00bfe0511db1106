"""What the memory benchmark measured."""

import dataclasses
from collections.abc import Mapping

from torchadx.bench._harness import Timing
from torchadx.bench._language import Size


@dataclasses.dataclass(frozen=True)
class Check:
    """What a strategy does to the gradient of one batch.

    Attributes:
        bitwise: Whether the gradient of every parameter equals plain PyTorch's, bit for bit.
        error: ``||gradient - plain|| / ||plain||``, over all parameters.
        bound: The most that was allowed; 0 where it had to be bitwise equal.
    """

    bitwise: bool
    error: float
    bound: float


@dataclasses.dataclass(frozen=True)
class Row:
    """One strategy's results.

    Attributes:
        name: The strategy.
        check: What was checked before anything was timed.
        saved: Bytes held for backward, wherever that is, parameters not counted: the most of all steps.
        peak: The most bytes of that in the memory of the device at once.
        timing: Quartiles of seconds a step.
        codec_share: Of the time of a step, the part spent in codecs, median; ``None`` without a manager.
        store_share: The part spent in stores, waiting included, median; ``None`` without a manager.
        loss: On text held out, after the last step, in nats a character.
    """

    name: str
    check: Check
    saved: int
    peak: int
    timing: Timing
    codec_share: float | None
    store_share: float | None
    loss: float


@dataclasses.dataclass(frozen=True)
class Steps:
    """Training steps of every strategy, in turns.

    Attributes:
        size: Of the model and its batches.
        parameters: How many numbers the model has.
        characters: In the text.
        vocabulary: Different ones among them.
        steps: How many each took.
        rows: One per strategy.
        left_out: Strategies that did not take part, and why.
    """

    size: Size
    parameters: int
    characters: int
    vocabulary: int
    steps: int
    rows: tuple[Row, ...]
    left_out: Mapping[str, str]

    def row(self, name: str) -> Row | None:
        """Return the row of a strategy, if it took part."""
        return next((row for row in self.rows if row.name == name), None)


@dataclasses.dataclass(frozen=True)
class Loss:
    """A longer training of a few strategies: loss on text held out, in nats a character, by strategy."""

    size: Size
    steps: int
    losses: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Overhead:
    """What hooks cost where the tensors are too small for anything else to count.

    Attributes:
        tensors: Saved in one call, all of them small.
        timings: Seconds per call, forward and backward, by kind of hooks.
    """

    tensors: int
    timings: Mapping[str, Timing]

    def microseconds(self, name: str, over: str) -> float:
        """Return the median that ``name`` takes beyond ``over``, in microseconds a saved tensor."""
        return (self.timings[name].median - self.timings[over].median) / self.tensors * 1e6


@dataclasses.dataclass(frozen=True)
class Count:
    """What exists in the process at one moment; ``None`` where the system does not tell.

    Attributes:
        tensors: That Python sees.
        held_bytes: In the store.
        files: In the directory of the disk store.
        open_files: Of the process.
        pinned_bytes: Of the host store.
        threads: Of the process.
        rss: Bytes of the process in memory.
    """

    tensors: int
    held_bytes: int
    files: int
    open_files: int | None
    pinned_bytes: int
    threads: int
    rss: int | None


@dataclasses.dataclass(frozen=True)
class Growth:
    """Many steps of a small model under one store: what there was early on, and at the end."""

    store: str
    policy: str
    steps: int
    seconds: float
    early: Count
    late: Count

    def grown(self) -> list[str]:
        """Name what there is more of at the end; memory in use is reported, but allocators keep what they like."""
        early, late = dataclasses.asdict(self.early), dataclasses.asdict(self.late)
        return [name for name in early if name != "rss" and (late[name] or 0) > (early[name] or 0)]
