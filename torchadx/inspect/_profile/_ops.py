"""Sum the operators of a trace up by name, and the ranges that others than modules opened."""

import collections
import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar

from torchadx.inspect._modules import RANGE
from torchadx.inspect._trace._nest import Nest
from torchadx.inspect._trace._trace import Op, Range, Trace

Named = TypeVar("Named", bound=Op | Range)


@dataclasses.dataclass(frozen=True)
class OpRow:
    """What all calls of one operator cost. Times are in milliseconds, sizes in bytes.

    Attributes:
        name: Such as ``"aten::mm"``, or the name of a backward node.
        calls: How many there were; of one that redispatches to its own name, as ``aten::div_`` does, each.
        self_ms: Host time without the operators that it called, and the ranges that it opened.
        total_ms: Host time with these.
        device_ms: Time of the kernels and copies that it launched itself.
        self_bytes: What it allocated less what it freed itself, on every device.
    """

    name: str
    calls: int
    self_ms: float
    total_ms: float
    device_ms: float
    self_bytes: int


@dataclasses.dataclass(frozen=True)
class RangeRow:
    """What ran in all ``record_function`` ranges of one name, those of modules apart.

    Attributes:
        name: Such as ``"Optimizer.step#SGD.step"``.
        calls: How many there were.
        total_ms: Host time.
        ops: How many operators ran in them that no other operator called.
        names: The names of these operators.
    """

    name: str
    calls: int
    total_ms: float
    ops: int
    names: frozenset[str]


def op_rows(trace: Trace) -> tuple[OpRow, ...]:
    """Sum up the operators of a trace, by name, as they first ran."""
    # what ran in a range inside of an operator, such as a module that is run again, is not the operator's own
    nest: Nest[Op | Range] = Nest([*trace.ranges, *trace.ops])
    sums: dict[str, dict[str, Any]] = collections.defaultdict(lambda: collections.defaultdict(int))
    for index, spent in enumerate(nest.self_times()):
        op = nest.items[index]
        if isinstance(op, Range):
            continue
        columns = sums[op.name]
        columns["calls"] += 1
        columns["self_ms"] += spent / 1e3
        if _outermost(nest, index):
            columns["total_ms"] += (nest.ends[index] - op.start) / 1e3
    for kernel in trace.kernels:
        if kernel.launched is not None and kernel.thread is not None:
            launching = nest.at(kernel.thread, kernel.launched)
            if isinstance(launching, Op):
                sums[launching.name]["device_ms"] += (kernel.end - kernel.start) / 1e3
    for event in trace.memory:
        allocating = nest.at(event.thread, event.time)
        if isinstance(allocating, Op):
            sums[allocating.name]["self_bytes"] += event.bytes
    zeros = {"total_ms": 0.0, "device_ms": 0.0, "self_bytes": 0}
    return tuple(OpRow(name, **{**zeros, **columns}) for name, columns in sums.items())


def range_rows(trace: Trace) -> tuple[RangeRow, ...]:
    """Sum up the ranges of a trace that modules did not open, by name."""
    ranges = [span for span in trace.ranges if not span.name.startswith(RANGE)]
    ops, nest = Nest(trace.ops), Nest(ranges)
    inside: dict[str, list[str]] = collections.defaultdict(list)
    for op, parent in zip(ops.items, ops.parents, strict=True):
        if parent < 0:
            around = nest.outwards(nest.index(op.thread, op.start))
            for name in {nest.items[outer].name for outer in around}:
                inside[name].append(op.name)
    times: dict[str, list[float]] = collections.defaultdict(list)
    for index, span in enumerate(nest.items):
        outermost = _outermost(nest, index)
        times[span.name].append((nest.ends[index] - span.start) / 1e3 if outermost else 0.0)
    return tuple(
        RangeRow(name, len(spent), sum(spent), len(inside[name]), frozenset(inside[name]))
        for name, spent in times.items()
    )


def busy_ms(spans: Iterable[tuple[float, float]]) -> float:
    """Return for how long at least one of these spans, from start to end in microseconds, ran."""
    total, until = 0.0, -float("inf")
    for start, end in sorted(spans):
        total += max(end - max(start, until), 0.0)
        until = max(until, end)
    return total / 1e3


def _outermost(nest: Nest[Named], index: int) -> bool:
    """Say whether no other of its name is around it."""
    return all(nest.items[outer].name != nest.items[index].name for outer in nest.outwards(nest.parents[index]))
