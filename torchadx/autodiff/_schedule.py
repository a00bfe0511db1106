"""What a plan does, as a list of moves: plain numbers that outlive the function and the process."""

import dataclasses
import math
from collections.abc import Iterator

from torchadx.autodiff._cost import ChainCosts
from torchadx.autodiff._dynamic import Action, Step


@dataclasses.dataclass(frozen=True)
class Move:
    """One thing to do with a stack of Jacobians.

    Attributes:
        action: ``"known"``, ``"forward"`` and ``"reverse"`` put a Jacobian on the stack; ``"push"`` and ``"pull"``
            replace the top; ``"multiply"`` replaces the two on top, the left factor being the upper.
        start: First segment of the Jacobian that results.
        end: Behind its last.
        first: First segment that directions move through.
        last: Behind the last.
        chunk: Directions at once.
        seconds: Predicted, for this move alone.
        peak: Bytes alive at most while it is made, the result of all apart.
    """

    action: Action
    start: int
    end: int
    first: int
    last: int
    chunk: int
    seconds: float
    peak: float


def schedule(step: Step, costs: ChainCosts, limit: float) -> tuple[Move, ...]:
    """Write a solution of the dynamic programme as moves, with as many directions at once as fit."""
    return tuple(_moves(step, costs, limit, 0.0))


def _moves(step: Step, costs: ChainCosts, limit: float, beside: float) -> Iterator[Move]:
    """Yield the moves of a step; ``beside`` bytes are held for others meanwhile."""
    own = costs.block(step.start, step.end)
    if step.action == "known":
        yield Move("known", step.start, step.end, step.start, step.end, 0, 0.0, beside)
    elif step.action == "multiply":
        right, left = step.parts
        right_bytes = costs.block(right.start, right.end)
        yield from _moves(right, costs, limit, beside)
        yield from _moves(left, costs, limit, beside + right_bytes)
        seconds = costs.multiply(costs.width(step.end), costs.width(left.start), costs.width(step.start))
        peak = beside + right_bytes + costs.block(left.start, left.end) + own
        yield Move("multiply", step.start, step.end, left.start, left.start, 0, seconds, peak)
    else:
        yield from _sweep(step, costs, limit, beside, own)


def _sweep(step: Step, costs: ChainCosts, limit: float, beside: float, own: float) -> Iterator[Move]:
    adjoint = step.action in ("reverse", "pull")
    count = costs.width(step.end if adjoint else step.start)
    for base in (_base(step), next(iter(step.parts), None)):
        if base is None:
            first, last, held = step.start, step.end, beside
        else:
            first, last = (step.start, base.start) if adjoint else (base.end, step.end)
            held = beside + costs.block(base.start, base.end)
        space = limit - held - own
        chunk = costs.chunk(first, last, count, adjoint, space)
        # sweeps that follow each other are one, unless a direction of the longer one does not fit
        if chunk >= 1:
            break
    if base is not None:
        yield from _moves(base, costs, limit, beside)
    seconds = costs.sweep(first, last, count, adjoint, base is None, space)
    action: Action = ("reverse" if adjoint else "forward") if base is None else ("pull" if adjoint else "push")
    peak = held + own + costs.bytes_for(first, last, chunk)
    yield Move(action, step.start, step.end, first, last, chunk, seconds, peak)


def _base(step: Step) -> Step | None:
    """Return what a sweep starts from, passing by those in the same direction."""
    same = {"push": ("push", "forward"), "pull": ("pull", "reverse")}.get(step.action, ())
    while step.parts:
        (part,) = step.parts
        if part.action not in same:
            return part
        step = part
    return None


def seconds(moves: tuple[Move, ...]) -> float:
    """Return what all moves are predicted to take."""
    return math.fsum(move.seconds for move in moves)


def peak(moves: tuple[Move, ...]) -> float:
    """Return how many bytes are alive at most."""
    return max((move.peak for move in moves), default=0.0)
