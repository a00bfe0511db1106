"""Say what a plan does and why."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What a plan does, segment by segment; ``str()`` lays it out."""

    text: str

    def __str__(self) -> str:
        """Lay it out as plain text."""
        return self.text


def explain(plan: Any) -> Explanation:
    """Explain a plan."""
    return Explanation("\n".join([f"mode {plan.mode}", *plan.notes, repr(plan.decision)]))
