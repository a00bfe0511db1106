"""From what the allocators did and what was noted to blocks of memory: how long each lived, what it was and whose."""

import bisect
import collections
import dataclasses
import math
from collections.abc import Iterator, Sequence

from torchadx.inspect._timeline._step import BACKWARD, NOTE, OPTIMIZER, STEP, Noted, Step
from torchadx.inspect._trace._frames import Frame, frames
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
    """A part of a step: ``"forward"``, ``"backward"``, ``"optimizer"`` or ``"other"``; milliseconds since it began."""

    name: str
    start: float
    end: float


def window(trace: Trace) -> Range:
    """Return the range of the step itself, after those that warmed up."""
    return next(span for span in trace.ranges if span.name == STEP)


def blocks(step: Step) -> list[Block]:
    """Return the blocks of a recording, each with its category, and the module and the op that allocated it."""
    trace = step.trace
    where = frames(trace, step.modules)
    ops = Nest(trace.ops)
    marked = [span for span in trace.ranges if span.name in _PHASES]
    found: list[Block] = []
    alive: dict[tuple[str, int], Block] = {}
    for event in trace.memory:
        key = event.device, event.address
        if event.bytes < 0:
            block = alive.pop(key, None)
            if block is not None:
                block.end = event.time
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
        block.phase = _phase(marked, event.time, frame)
        alive[key] = block
        found.append(block)
    _tell_outliving(found, where, trace)
    return found + _categorize(found, step)


def _phase(marked: Sequence[Range], time: float, frame: Frame | None) -> str:
    for span in marked:
        if span.start <= time < span.end:
            return _PHASES[span.name]
    return "other" if frame is None else "forward"


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


def _categorize(found: Sequence[Block], step: Step) -> list[Block]:
    """Give the blocks that were noted their categories, and return those that were there before the recording."""
    times = {span.name: span.start for span in step.trace.ranges if span.name.startswith(NOTE)}
    by_place: dict[tuple[str, int], list[Block]] = collections.defaultdict(list)
    for block in found:
        by_place[block.device, block.address].append(block)
    before: dict[tuple[str, int], Block] = {}
    for index, noted in enumerate(step.notes):
        time = times[f"{NOTE}{index}"]
        for note in noted:
            place = note.device, note.address
            known = [each for each in by_place[place] if each.start <= time < each.end]
            if not known:
                # what the allocator gave out later at this place means that this block was freed by then
                following = (each.start for each in by_place[place] if each.start > time)
                known = [before.setdefault(place, Block(*place, note.nbytes, 0.0, min(following, default=math.inf)))]
            _apply(known[0], note)
    return list(before.values())


def _apply(block: Block, note: Noted) -> None:
    if _PRECEDENCE.index(note.category) < _PRECEDENCE.index(block.category):
        block.category = note.category
        block.name = note.name
    elif note.category == block.category and block.name is None:
        block.name = note.name
    # whose parameter it is says more than in whose run it was made
    if note.module is not None and (block.module is None or note.name is not None):
        block.module = note.module


def phases(step: Step) -> Iterator[Phase]:
    """Yield the parts of the step itself, which cover it without a gap."""
    span = window(step.trace)
    marked = [each for each in step.trace.ranges if each.name in _PHASES and span.start <= each.start < span.end]
    runs = [each for each in frames(step.trace, step.modules).items if each.run and not each.backward]
    at = span.start
    for each in marked:
        yield from _unmarked(at, each.start, runs, span.start)
        yield Phase(_PHASES[each.name], (each.start - span.start) / 1e3, (each.end - span.start) / 1e3)
        at = each.end
    yield from _unmarked(at, span.end, runs, span.start)


def _unmarked(start: float, end: float, runs: Sequence[Frame], origin: float) -> Iterator[Phase]:
    """Divide what is between marks: from when the first module runs, it is forward, a loss included."""
    first = min((run.start for run in runs if start <= run.start < end), default=end)
    if first > start:
        yield Phase("other", (start - origin) / 1e3, (first - origin) / 1e3)
    if end > first:
        yield Phase("forward", (first - origin) / 1e3, (end - origin) / 1e3)
