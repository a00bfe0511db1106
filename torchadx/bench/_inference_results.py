"""What the inference benchmark measured."""

import dataclasses

from torchadx.bench._harness import Timing
from torchadx.bench._results import Compared


@dataclasses.dataclass(frozen=True)
class Row:
    """One contender's results in one case.

    Attributes:
        name: The contender.
        timing: Quartiles of seconds a call; ``None`` where it was left out.
        error: Norm of the difference from float64 over the norm; ``None`` where it was left out.
        prepared: Bytes of prepared weights after the last call; ``None`` for those that do not tell.
        explanation: What the wrapper says of itself; ``None`` for the others.
        left_out: Why it was not timed.
    """

    name: str
    timing: Timing | None
    error: float | None
    prepared: int | None
    explanation: str | None
    left_out: str | None


@dataclasses.dataclass(frozen=True)
class Case(Compared[Row]):
    """One module at one batch, served by every contender.

    Attributes:
        name: The model and the batch.
        inputs: Shape of the input.
        weights: Bytes of the module's parameters.
        rows: One per contender.
    """

    name: str
    inputs: tuple[int, ...]
    weights: int
    rows: tuple[Row, ...]
