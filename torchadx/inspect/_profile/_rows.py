"""Sum the frames of a trace up to one row per module, and what lies outside of modules to one more."""

import bisect
import collections
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from torchadx.inspect._modules import ModuleWatch
from torchadx.inspect._profile._ops import busy_ms
from torchadx.inspect._trace._frames import Frame
from torchadx.inspect._trace._nest import Nest
from torchadx.inspect._trace._trace import Trace


@dataclasses.dataclass(frozen=True)
class ModuleRow:
    """What the runs of one module cost, summed over the recording. Times are in milliseconds, sizes in bytes.

    Forward is what ran while the module's forward ran. Backward is what ran in the graph's nodes that its forward
    made, and what a checkpoint recomputed of it. The row of ``None`` has, as forward, all that ran outside of modules
    and of backward (the optimizer, loading data, Python), and as backward the nodes that no module made. So the
    self times of all rows sum to the time recorded, where one thread runs at a time.

    Attributes:
        module: Path as in ``named_modules()``, ``""`` for the model; ``None`` for what is outside of modules.
        class_name: Of the module; ``None`` for what is no module, or no submodule of those that began to run.
        calls: How many times it ran, recomputing apart.
        recomputed: How many times a checkpoint ran it again in backward.
        forward_ms: Host time of its forward, with the modules that it called.
        forward_self_ms: Without these.
        backward_ms: Host time of its backward, with that of its submodules.
        backward_self_ms: Without these.
        recomputed_ms: Of ``backward_ms``, what recomputing took.
        device_forward_ms: Time of kernels and copies that its forward launched, with the modules that it called.
        device_backward_ms: Of those that its backward launched, with its submodules.
        forward_bytes: Allocated less freed while its forward ran, with the modules that it called; on the accelerator
            if that allocated anything, on the host otherwise.
        forward_peak_bytes: The most that one run rose above what was allocated when it began.
        kept_bytes: Of what its forward allocated itself, what was still allocated when the next backward began.
        backward_bytes: Allocated less freed in its backward, with its submodules.
        backward_peak_bytes: The most that one of its nodes, or of its submodules', rose above what was allocated when
            it began.
    """

    module: str | None
    class_name: str | None
    calls: int = 0
    recomputed: int = 0
    forward_ms: float = 0.0
    forward_self_ms: float = 0.0
    backward_ms: float = 0.0
    backward_self_ms: float = 0.0
    recomputed_ms: float = 0.0
    device_forward_ms: float = 0.0
    device_backward_ms: float = 0.0
    forward_bytes: int = 0
    forward_peak_bytes: int = 0
    kept_bytes: int = 0
    backward_bytes: int = 0
    backward_peak_bytes: int = 0


class _Sums:
    """Sums by module and column, of the frames of a trace."""

    def __init__(self, trace: Trace, nest: Nest[Frame], apart: set[str]) -> None:
        self._trace = trace
        # on devices, if anything is there: what the host allocates is small beside that
        host = all(event.device == "cpu" for event in trace.memory)
        self._events = [event for event in trace.memory if host or event.device != "cpu"]
        self._nest = nest
        self._apart = apart
        self.columns: dict[str | None, dict[str, Any]] = {None: collections.defaultdict(int)}
        for frame in self._nest.items:
            columns = self.columns.setdefault(frame.module, collections.defaultdict(int))
            if frame.run:
                columns["recomputed" if frame.backward else "calls"] += 1

    def _add(self, column: str, index: int, amount: float) -> None:
        """Add what happened in a frame (-1: outside of all) to its module, and to those that include it."""
        for module in self._including(index):
            self.columns[module][column.format(self._phase(index))] += amount

    def _phase(self, index: int) -> str:
        return "backward" if index >= 0 and self._nest.items[index].backward else "forward"

    def _including(self, index: int) -> set[str | None]:
        """Return the modules that a frame counts to: in forward those that run, in backward those named around it."""
        if index < 0:
            return {None}
        frame = self._nest.items[index]
        if frame.backward:
            return set(self._upwards(frame.module))
        return {self._nest.items[outer].module for outer in self._nest.outwards(index)}

    def _upwards(self, module: str | None) -> Iterator[str | None]:
        yield module
        while module and module not in self._apart:
            module = module.rpartition(".")[0]
            # what never runs, such as a list of modules, has no row
            if module in self.columns:
                yield module

    def time(self) -> None:
        """Sum up what the host spent."""
        inside = zip(self._nest.items, self._nest.ends, strict=True)
        outside = self._trace.end / 1e3 - busy_ms((frame.start, end) for frame, end in inside)
        self._add("{}_ms", -1, outside)
        self.columns[None]["forward_self_ms"] += outside
        for index, spent in enumerate(self._nest.self_times()):
            frame = self._nest.items[index]
            self._add("{}_ms", index, spent / 1e3)
            self.columns[frame.module][self._phase(index) + "_self_ms"] += spent / 1e3
            around = (self._nest.items[outer] for outer in self._nest.outwards(index))
            if any(outer.run and outer.backward for outer in around):
                self._add("recomputed_ms", index, spent / 1e3)

    def device_time(self) -> None:
        """Sum up what devices spent on what the host launched."""
        for kernel in self._trace.kernels:
            known = kernel.launched is not None and kernel.thread is not None
            index = self._nest.index(kernel.thread, kernel.launched) if known else -1  # type: ignore[arg-type]
            self._add("device_{}_ms", index, (kernel.end - kernel.start) / 1e3)

    def memory(self) -> None:
        """Sum up what allocators did."""
        net, peak = [0] * len(self._nest.items), [0] * len(self._nest.items)
        for event in self._events:
            index = self._nest.index(event.thread, event.time)
            self._add("{}_bytes", index, event.bytes)
            for outer in self._nest.outwards(index):
                net[outer] += event.bytes
                peak[outer] = max(peak[outer], net[outer])
        for index, most in enumerate(peak):
            column = self._phase(index) + "_peak_bytes"
            for module in self._including(index):
                self.columns[module][column] = max(self.columns[module][column], most)

    def kept(self) -> None:
        """Sum up what forwards allocated that backward found still there."""
        starts = sorted(frame.start for frame in self._nest.items if frame.backward)
        freed: dict[tuple[str, int], float] = {}
        # backwards, so that a block's end is known before its beginning
        for event in reversed(self._events):
            block = event.device, event.address
            if event.bytes < 0:
                freed[block] = event.time
                continue
            end = freed.pop(block, math.inf)
            index = self._nest.index(event.thread, event.time)
            following = bisect.bisect_right(starts, event.time)
            if index >= 0 and self._phase(index) == "forward" and following < len(starts) and end >= starts[following]:
                self.columns[self._nest.items[index].module]["kept_bytes"] += event.bytes


def module_rows(trace: Trace, nest: Nest[Frame], watch: ModuleWatch) -> tuple[ModuleRow, ...]:
    """Sum up a trace: a row for every module that ran or made nodes, as they first ran; ``None`` stands first."""
    classes = watch.classes()
    # nothing includes what runs beside the model
    sums = _Sums(trace, nest, set(watch.beside()))
    sums.time()
    sums.device_time()
    sums.memory()
    sums.kept()
    return tuple(
        ModuleRow(module, None if module is None else classes.get(module), **columns)
        for module, columns in sums.columns.items()
    )
