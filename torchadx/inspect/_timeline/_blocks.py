"""From what the allocators did and what was noted to blocks of memory: how long each lived, what it was and whose."""

import bisect
import collections
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

from torchadx.inspect._timeline._step import BACKWARD, NOTE, OPTIMIZER, STEP, Noted, Step
from torchadx.inspect._trace._frames import Frame
from torchadx.inspect._trace._nest import Nest
from torchadx.inspect._trace._trace import Range, Trace

#: what memory is, as people know it
CATEGORIES = ("parameter", "optimizer state", "gradient", "activation", "input", "temporary")

# of several that a block was, the first counts: an input that the graph saves as well is no activation
_PRECEDENCE = ("parameter", "optimizer state", "gradient", "input", "activation", "temporary")
_PHASES = {BACKWARD: "backward", OPTIMIZER: "optimizer"}


@dataclasses.dataclass(slots=True)
class Block:
    """A block of memory, from when it was allocated (0 if that was before) to when it was freed (inf if never).

    Attributes:
        outlives: Whether it was alive when what allocated it was over: the module's run, the node, or the phase.
        unseen: Whether it was freed at some time before its place was used again, by a thread that is not recorded.
    """

    device: str
    address: int
    nbytes: int
    start: float
    end: float = math.inf
    category: str = "temporary"
    name: str | None = None
    module: str | None = None
    op: str | None = None
    phase: str = "other"
    outlives: bool = False
    unseen: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Phase:
    """A part of a step, from when to when: ``"forward"``, ``"backward"``, ``"optimizer"`` or ``"other"``."""

    name: str
    start: float
    end: float


def window(trace: Trace) -> Range:
    """Return the range of the step itself, after those that warmed up."""
    return next(span for span in trace.ranges if span.name == STEP)


def blocks(step: Step) -> list[Block]:
    """Return the blocks of a recording, each with its category, and the module and the op that allocated it."""
    trace = step.trace
    where = step.where
    ops = Nest(trace.ops)
    parts = _parts(trace, where)
    found: list[Block] = []
    alive: dict[tuple[str, int], Block] = {}
    freed: dict[tuple[str, int], list[float]] = collections.defaultdict(list)
    for event in trace.memory:
        key = event.device, event.address
        if event.bytes < 0:
            block = alive.pop(key, None)
            if block is not None:
                block.end = event.time
            else:
                freed[key].append(event.time)
            continue
        if key in alive:
            # freed in a thread that the profiler does not follow
            alive[key].end = event.time
            alive[key].unseen = True
        block = Block(event.device, event.address, event.bytes, event.time)
        frame = where.at(event.thread, event.time)
        op = ops.at(event.thread, event.time)
        block.op = None if op is None else op.name
        block.module = None if frame is None else frame.module
        block.phase = _phase(parts, event.time, frame)
        alive[key] = block
        found.append(block)
    _tell_outliving(found, where, trace)
    return found + _categorize(found, step, freed)


def _phase(parts: Sequence[Phase], time: float, frame: Frame | None) -> str:
    part = next((each.name for each in parts if each.start <= time < each.end), "other")
    # an optimizer may run forward and backward itself, as LBFGS does
    if part == "backward" or frame is None:
        return part
    return "backward" if frame.backward else "forward"


def _tell_outliving(found: Sequence[Block], where: Nest[Frame], trace: Trace) -> None:
    """Note which blocks outlive what allocated them; in backward these are what a checkpoint recomputed."""
    threads = {(event.device, event.address, event.time): event.thread for event in trace.memory}
    marks = sorted(time for span in trace.ranges if span.name in _PHASES for time in (span.start, span.end))
    for block in found:
        index = where.index(threads[block.device, block.address, block.start], block.start)
        following = bisect.bisect_right(marks, block.start)
        over = marks[following] if following < len(marks) else trace.end
        block.outlives = block.end > (over if index < 0 else where.ends[index])
        if index >= 0 and block.outlives and where.items[index].run and where.items[index].backward:
            block.category = "activation"


def _categorize(found: Sequence[Block], step: Step, freed: Mapping[tuple[str, int], list[float]]) -> list[Block]:
    """Give the blocks that were noted their categories, and return those whose allocation was not recorded."""
    times = {span.name: span.start for span in step.trace.ranges if span.name.startswith(NOTE)}
    by_place: dict[tuple[str, int], list[Block]] = collections.defaultdict(list)
    for block in found:
        by_place[block.device, block.address].append(block)
    before: dict[tuple[str, int], Block] = {}
    untold: list[Block] = []
    ended: set[tuple[str, int]] = set()
    for index, (noted, gone) in enumerate(zip(step.notes, step.gone, strict=True)):
        time = times.get(f"{NOTE}{index}")
        ended.update(gone)
        if time is None:
            continue
        for place in before.keys() & ended:
            before[place].end = min(before[place].end, time)
        ended.clear()
        for note in noted:
            place = note.device, note.address
            known = [each for each in by_place[place] if each.start <= time < each.end]
            if not known:
                if place not in before or before[place].end <= time:
                    start = time if place in before else 0.0
                    before[place] = Block(*place, note.nbytes, start, _following(by_place[place], freed[place], time))
                    untold.append(before[place])
                known = [before[place]]
            _apply(known[0], note)
    for block in untold:
        # no graph of this step made what was there before
        block.category = "input" if block.category == "activation" and not block.start else block.category
    return untold


def _following(at_place: Sequence[Block], freed: Sequence[float], time: float) -> float:
    """Return when a block must have been freed: what the allocator gave out later at its place says so as well."""
    return min((each for each in (*(block.start for block in at_place), *freed) if each > time), default=math.inf)


def _apply(block: Block, note: Noted) -> None:
    if _PRECEDENCE.index(note.category) < _PRECEDENCE.index(block.category):
        block.category = note.category
        block.name = note.name
    elif note.category == block.category and block.name is None:
        block.name = note.name
    # whose parameter it is says more than in whose run it was made
    if note.module is not None and (block.module is None or note.name is not None):
        block.module = note.module


def phases(step: Step) -> tuple[Phase, ...]:
    """Divide the step itself into parts; times are milliseconds since it began."""
    origin = window(step.trace).start
    parts = _parts(step.trace, step.where)
    return tuple(Phase(each.name, (each.start - origin) / 1e3, (each.end - origin) / 1e3) for each in parts)


def _parts(trace: Trace, where: Nest[Frame]) -> list[Phase]:
    """Divide the step itself, on the trace's clock: what is marked, and between marks what is before and in forward."""
    span = window(trace)
    marked = [each for each in trace.ranges if each.name in _PHASES and span.start <= each.start < span.end]
    runs = [each.start for each in where.items if each.run and not each.backward]
    bounds = sorted({span.start, span.end, *(time for each in marked for time in (each.start, each.end))})
    found: list[Phase] = []
    for start, end in itertools.pairwise(bounds):
        # of marks around each other the innermost, which began last
        mark = next((_PHASES[each.name] for each in reversed(marked) if each.start <= start < each.end), None)
        # from when the first module runs it is forward, a loss included
        first = end if mark else min((time for time in runs if start <= time < end), default=end)
        found += [Phase(mark or "other", start, first)] if first > start else []
        found += [Phase("forward", first, end)] if end > first else []
    return found
