"""Say what a plan does and why: plain numbers, laid out as text or as tables of rich."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torchadx.autodiff._planner import Decision, Layout
from torchadx.autodiff._schedule import Move
from torchadx.autodiff._segment import Segment
from torchadx.autodiff._tables import NUMBERS, duration, factor, move_table, plural, segment_table, shorten
from torchadx.memory.report import columns, size

if TYPE_CHECKING:
    from torchadx.autodiff._plan import JacobianPlan

_TANGENTS = ("forward", "push")


@dataclasses.dataclass(frozen=True)
class SegmentRow:
    """One stretch of the chain.

    Attributes:
        number: Counted from 0, in the order of evaluation.
        operations: What it does, such as ``"addmm, tanh x3"``, views apart.
        before: Shapes of the tensors that enter.
        after: Shapes of those that leave.
        width_before: Numbers that enter.
        width_after: Numbers that leave.
        action: What is done with it: ``"known"``, ``"tangents (16 at once)"``, ``"adjoints (1 at once)"``.
        flops: Floating-point operations of one direction through it, for one sample.
        seconds: Predicted, of all directions.
        tape_bytes: Held by the derivatives of its operations.
    """

    number: int
    operations: str
    before: tuple[tuple[int, ...], ...]
    after: tuple[tuple[int, ...], ...]
    width_before: int
    width_after: int
    action: str
    flops: float
    seconds: float
    tape_bytes: float


@dataclasses.dataclass(frozen=True)
class MoveRow:
    """One thing that is done; see :class:`torchadx.autodiff._schedule.Move` for ``action``, ``first`` and ``last``.

    Attributes:
        action: ``"known"``, ``"forward"``, ``"push"``, ``"reverse"``, ``"pull"`` or ``"multiply"``.
        first: First segment that directions go through; of a product the place of the cut.
        last: Behind the last.
        start: First segment of the Jacobian that results.
        end: Behind its last.
        rows: Rows of that Jacobian.
        columns: Its columns.
        directions: How many are moved.
        chunk: How many at once.
        flops: Floating-point operations, all samples included.
        seconds: Predicted.
        measured: Seconds that it took when the plan was last called; ``None`` before.
        peak_bytes: Alive at most meanwhile, the result of all apart.
    """

    action: str
    first: int
    last: int
    start: int
    end: int
    rows: int
    columns: int
    directions: int
    chunk: int
    flops: float
    seconds: float
    measured: float | None
    peak_bytes: float


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What a plan does and why; ``str()`` lays it out as text, and rich draws its tables.

    Of a function that is not taken apart, or of which there is nothing to compute, there are no rows, and what would
    be predicted is ``None``.

    Attributes:
        mode: ``"forward"``, ``"reverse"`` or ``"mixed"``.
        why: Why this way was chosen, in one sentence.
        traced: Whether the function could be taken apart.
        samples: How many samples go through at once; 1 unless the plan is batched.
        segments: One row a stretch of the chain.
        moves: What is done, in order.
        seconds: Predicted of all moves.
        evaluation: Seconds that evaluating the function took when the plan was last called; next to nothing where it is
            evaluated anew for each stretch.
        measured: Seconds that all moves took then.
        forward: Seconds predicted of pure forward mode; infinite if it does not fit into the limit.
        reverse: The same of pure reverse mode.
        limit_bytes: What may be alive at once; ``None`` without a limit.
        peak_bytes: What is predicted to be.
        recompute: Whether each stretch is evaluated anew when its turn comes.
        notes: What else is worth knowing, such as why a function is not taken apart.
    """

    mode: str
    why: str
    traced: bool
    samples: int
    segments: tuple[SegmentRow, ...]
    moves: tuple[MoveRow, ...]
    seconds: float | None
    evaluation: float | None
    measured: float | None
    forward: float | None
    reverse: float | None
    limit_bytes: float | None
    peak_bytes: float | None
    recompute: bool
    notes: tuple[str, ...]

    @property
    def cuts(self) -> tuple[int, ...]:
        """Places at which the chain is cut: tangents, adjoints and known matrices end here, and products join."""
        return tuple(sorted({row.first for row in self.moves if row.action == "multiply"}))

    def __str__(self) -> str:
        """Lay it out as plain text."""
        lines = list(self.totals())
        for table in (segment_table(self.segments), move_table(self.moves)):
            if len(table) > 1:
                lines += ["", *columns(table, NUMBERS)]
        return "\n".join(lines)

    def __rich__(self) -> Any:
        """Return tables that a rich console draws."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        parts: list[Any] = [Text(line) for line in self.totals()]
        for title, rows in (("segments", segment_table(self.segments)), ("moves", move_table(self.moves))):
            if len(rows) > 1:
                table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
                for name in rows[0]:
                    table.add_column(name, justify="right" if name in NUMBERS else "left")
                for row in rows[1:]:
                    table.add_row(*map(Text, row))
                parts.append(table)
        return Group(*parts)

    def totals(self) -> Iterator[str]:
        """Yield the lines that stand above the tables."""
        yield self.why
        if self.seconds is not None:
            yield f"predicted: {self.timing()}"
            yield f"pure modes, predicted: {self.alternatives()}"
        if self.peak_bytes is not None:
            yield f"memory: {self.memory()}"
        for note in self.notes:
            yield f"note: {note}"

    def timing(self) -> str:
        """Say what is predicted and, after a run, what was measured."""
        text = "" if self.seconds is None else duration(self.seconds)
        if self.measured is not None and self.evaluation is not None:
            evaluating = (
                "evaluating f included" if self.recompute else f"after {duration(self.evaluation)} for evaluating f"
            )
            text += f"; measured: {duration(self.measured)}, {evaluating}"
        return text

    def alternatives(self) -> str:
        """Say what the pure modes are predicted to cost."""
        pairs = (("forward", self.forward), ("reverse", self.reverse))
        return ", ".join(
            f"{name} {'does not fit' if seconds == math.inf else duration(seconds)}"
            for name, seconds in pairs
            if seconds is not None
        )

    def memory(self) -> str:
        """Say what is alive at once, and what may be."""
        text = f"{size(self.peak_bytes or 0.0)} at most"
        text += ", without a limit" if self.limit_bytes is None else f" of {size(self.limit_bytes)}"
        return text + (", f evaluated anew for each stretch" if self.recompute else "")


def explain(plan: "JacobianPlan") -> Explanation:
    """Explain a plan.

    Args:
        plan: Of any function, bound or not.

    Returns:
        Plain data: an explanation outlives its plan, compares by value and can be pickled.
    """
    decision, samples = plan.decision, _samples(plan)
    common: dict[str, Any] = {"mode": plan.mode, "traced": plan.traced, "samples": samples, "notes": tuple(plan.notes)}
    if decision is None:
        missing: dict[str, Any] = dict.fromkeys(
            ("seconds", "evaluation", "measured", "forward", "reverse", "limit_bytes", "peak_bytes")
        )
        return Explanation(why=_why_whole(plan), segments=(), moves=(), recompute=False, **common, **missing)
    # a factored run makes other moves, whose seconds say nothing of these
    measured = tuple(plan.measured) if len(plan.measured) == len(decision.moves) + 1 else ()
    moves = tuple(
        _move_row(move, number, decision.layout, samples, measured) for number, move in enumerate(decision.moves, 1)
    )
    return Explanation(
        why=_why(plan.mode, plan._options.mode, decision, moves, samples),
        segments=tuple(_segment_rows(decision, samples)),
        moves=moves,
        seconds=decision.seconds,
        evaluation=measured[0] if measured else None,
        measured=math.fsum(measured[1:]) if measured else None,
        forward=decision.forward,
        reverse=decision.reverse,
        limit_bytes=None if decision.limit == math.inf else decision.limit,
        peak_bytes=decision.peak,
        recompute=decision.recompute,
        **common,
    )


def _samples(plan: "JacobianPlan") -> int:
    problem = plan._problem or plan._statement
    return int(plan._signature[0][0][0]) if problem is not None and problem.batched else 1


def _segment_rows(decision: Decision, samples: int) -> Iterator[SegmentRow]:
    layout = decision.layout
    swept = [move for move in decision.moves if move.action != "multiply"]
    for number, segment in enumerate(layout.segments):
        (move,) = (move for move in swept if move.first <= number < move.last)
        shares = [_share(layout, move, other, samples) for other in range(move.first, move.last)]
        part = shares[number - move.first] / (math.fsum(shares) or 1.0)
        action = "known"
        if move.action != "known":
            action = f"{'tangents' if move.action in _TANGENTS else 'adjoints'} ({move.chunk} at once)"
        yield SegmentRow(
            number=number,
            operations=shorten(segment.operations),
            before=layout.shapes[number],
            after=layout.shapes[number + 1],
            width_before=layout.widths[number],
            width_after=layout.widths[number + 1],
            action=action,
            flops=segment.flops,
            seconds=move.seconds * part,
            tape_bytes=samples * segment.tape,
        )


def _share(layout: Layout, move: Move, number: int, samples: int) -> float:
    """What a segment adds to the seconds of a sweep, before rounding."""
    segment, count = layout.segments[number], _directions(move, layout)
    each = segment.forward if move.action in _TANGENTS else segment.reverse
    each *= 1.0 - _saved(move, number, segment)
    return math.ceil(count / max(move.chunk, 1)) * segment.calls + samples * count * each


def _saved(move: Move, number: int, segment: Segment) -> float:
    """Which part of a segment is spared, because a sweep begins with its known matrix rather than the identity."""
    if move.action == "forward" and number == move.first:
        return segment.head / segment.forward if segment.forward else 0.0
    if move.action == "reverse" and number == move.last - 1:
        return segment.tail / segment.reverse if segment.reverse else 0.0
    return 0.0


def _directions(move: Move, layout: Layout) -> int:
    if move.action in ("known", "multiply"):
        return 0
    return layout.widths[move.start if move.action in _TANGENTS else move.end]


def _flops(move: Move, layout: Layout, samples: int) -> float:
    widths = layout.widths
    if move.action == "multiply":
        return 2.0 * samples * widths[move.end] * widths[move.first] * widths[move.start]
    each = math.fsum(
        layout.segments[number].flops * (1.0 - _saved(move, number, layout.segments[number]))
        for number in range(move.first, move.last)
    )
    return samples * _directions(move, layout) * each


def _move_row(move: Move, number: int, layout: Layout, samples: int, measured: Sequence[float]) -> MoveRow:
    return MoveRow(
        action=move.action,
        first=move.first,
        last=move.last,
        start=move.start,
        end=move.end,
        rows=layout.widths[move.end],
        columns=layout.widths[move.start],
        directions=_directions(move, layout),
        chunk=move.chunk,
        flops=_flops(move, layout, samples),
        seconds=move.seconds,
        measured=measured[number] if measured else None,
        peak_bytes=move.peak,
    )


def _why_whole(plan: "JacobianPlan") -> str:
    if plan.traced:
        return f"{plan.mode}: there is nothing to compute, the Jacobian is made of zeros and ones"
    return f"{plan.mode}: torch.func differentiates f whole, because it cannot be taken apart"


def _why(mode: str, asked: str, decision: Decision, moves: Sequence[MoveRow], samples: int) -> str:
    body = _how(mode, decision.layout, moves)
    asked = f" (mode={asked!r} was asked for)" if asked != "auto" else ""
    return f"{mode}{asked}: {body}; {_compared(mode, decision, moves, samples)}"


def _how(mode: str, layout: Layout, moves: Sequence[MoveRow]) -> str:
    widths = layout.widths
    if mode != "mixed":
        count, other = (widths[0], widths[-1]) if mode == "forward" else (widths[-1], widths[0])
        names = ("tangent", "adjoint") if mode == "forward" else ("adjoint", "tangent")
        return f"{plural(count, names[0])} through the whole chain rather than {plural(other, names[1])}"
    cuts = sorted({row.first for row in moves if row.action == "multiply"}, key=lambda place: (widths[place], place))
    if not cuts:
        base = moves[0]
        begin = f"segment {base.first}" if base.last == base.first + 1 else f"segments {base.first}-{base.last - 1}"
        return f"the Jacobian of {begin} first, which both tangents and adjoints carry on to the ends"
    where = f"where {widths[cuts[0]]} numbers pass, before segment {cuts[0]}"
    return f"cut {where}" if len(cuts) == 1 else f"cut {len(cuts)} times, most narrowly {where}"


def _compared(mode: str, decision: Decision, moves: Sequence[MoveRow], samples: int) -> str:
    """Compare with the pure mode that comes next."""
    pure = {"forward": decision.forward, "reverse": decision.reverse}
    pure.pop(mode, None)
    following = min(pure, key=lambda name: pure[name])
    if pure[following] == math.inf:
        missing = "neither pure mode fits" if len(pure) == 2 else f"{following} mode does not fit"
        return f"{missing} into the memory limit"
    ratio = pure[following] / decision.seconds if decision.seconds else 1.0
    if 0.95 < ratio < 1.05:
        return f"predicted to take as long as {following} mode"
    if ratio < 1:
        return f"predicted to be {factor(1 / ratio)} slower than {following} mode"
    last = len(decision.layout.segments)
    whole = Move("forward" if following == "forward" else "reverse", 0, last, 0, last, 1, 0.0, 0.0)
    flops = math.fsum(row.flops for row in moves)
    less = _flops(whole, decision.layout, samples) / flops if flops else 1.0
    text = f"predicted to be {factor(ratio)} faster than {following} mode, which comes next"
    return text + (f", with {factor(less)} less arithmetic" if less > 1.05 else "")
