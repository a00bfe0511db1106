"""Run code under torch's profiler, and read from the trace it exports what ran when, and what the allocator did."""

import collections
import dataclasses
import functools
import gc
import json
import pathlib
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from torchadx.inspect._trace._nest import Nest
from torchadx.ops import profiling

# the range around what is recorded: its start is the time zero of a trace
RECORDING = "torchadx.inspect recording"
_NODE = "autograd::engine::evaluate_function: "
_ACCUMULATE = "torch::autograd::AccumulateGrad"
_DEVICES = {0: "cpu", 1: "cuda", 12: "xpu", 13: "mps"}
_ON_DEVICE = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
_LAUNCHES = frozenset({"cuda_runtime", "cuda_driver", "xpu_runtime"})
_TAKEN = (
    "the profiler's trace does not hold what was recorded: another torch.profiler ran before the recording was over, "
    "and torch has one profiler for the process; use one at a time"
)

_busy = threading.Lock()
# profilers of recordings, which may have failed
_own = weakref.WeakSet[torch.autograd.profiler.profile]()


@dataclasses.dataclass(frozen=True, slots=True)
class Op:
    """An operator, or a function of autograd, as it ran on the host.

    Attributes:
        sequence: Number of the node that it made, or of the backward node that it is; ``None`` without a graph.
        external: The profiler's number of it.
    """

    name: str
    start: float
    end: float
    thread: int
    sequence: int | None
    external: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class Range:
    """A ``record_function`` range: of a module's run, of an optimizer's step, of the user."""

    name: str
    start: float
    end: float
    thread: int


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """A node of the graph as the engine ran it.

    Attributes:
        name: Such as ``"AddmmBackward0"``.
        sequence: Its sequence number. ``AccumulateGrad`` has none and goes by that of the node that ended last in its
            thread: the engine runs it right after the node that made the gradient.
        forward_thread: The thread whose forward made it, in which its number counts; ``None`` where the trace does
            not link it to a forward.
    """

    name: str
    start: float
    end: float
    thread: int
    sequence: int | None
    forward_thread: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class MemoryEvent:
    """What an allocator did.

    Attributes:
        bytes: Allocated, or freed if negative.
        address: Of the block.
        total: Allocated after this. A GPU's counts what was allocated before the recording, the host's does not.
        device: ``"cpu"``, ``"cuda:0"``.
    """

    time: float
    bytes: int
    address: int
    total: int
    device: str
    thread: int


@dataclasses.dataclass(frozen=True, slots=True)
class Kernel:
    """What ran on a device: a kernel, a copy, a fill.

    Attributes:
        launched: When the host launched it; ``None`` where the trace does not say.
        thread: That launched it.
    """

    name: str
    start: float
    end: float
    device: str
    launched: float | None
    thread: int | None


@dataclasses.dataclass(frozen=True)
class Trace:
    """What was recorded. Times are in microseconds since the recording began; all tuples are sorted by time.

    Attributes:
        end: When the recording ended.
        thread: The thread that recorded.
    """

    ops: tuple[Op, ...]
    ranges: tuple[Range, ...]
    nodes: tuple[Node, ...]
    memory: tuple[MemoryEvent, ...]
    kernels: tuple[Kernel, ...]
    end: float
    thread: int

    def range_at(self, thread: int, time: float) -> Range | None:
        """Return the innermost range that was open in this thread at this time."""
        return self._ranges.at(thread, time)

    def node_at(self, thread: int, time: float) -> Node | None:
        """Return the innermost node of the graph that ran in this thread at this time."""
        return self._nodes.at(thread, time)

    @functools.cached_property
    def _ranges(self) -> Nest[Range]:
        return Nest(self.ranges)

    @functools.cached_property
    def _nodes(self) -> Nest[Node]:
        return Nest(self.nodes)


class Recording:
    """While entered, torch's profiler records; afterwards ``trace`` is what it recorded, even if the code raised.

    Args:
        memory: Record what the allocators do.
        shapes: Record the operators' shapes.
        stacks: Record the Python functions that ran.
        keep: Keep the profiler (``profiler``) and the trace it exported (``chrome``, JSON as bytes).

    Raises:
        RuntimeError: Another recording is running, or a profiler of torch warms up: the process has one profiler.
    """

    trace: Trace
    chrome: bytes
    profiler: torch.profiler.profile

    def __init__(self, *, memory: bool = True, shapes: bool = False, stacks: bool = False, keep: bool = False) -> None:
        self._memory, self._shapes, self._stacks = memory, shapes, stacks
        self._keep = keep

    def __enter__(self) -> "Recording":
        if profiling() and not _busy.locked():
            raise RuntimeError(
                "a torch.profiler is running, and torch has one profiler for the process: leave it first, or look at "
                "what it records by itself"
            )
        if not _busy.acquire(blocking=False):
            raise RuntimeError(
                "torch has one profiler for the process, and torchadx.inspect is recording with it: "
                "profile() and timeline() cannot run inside of each other, leave the outer one first"
            )
        try:
            if _warming_up():
                raise RuntimeError(
                    "a torch.profiler with a schedule is warming up, and torch has one profiler for the process: leave "
                    "it first, or wait until its cycle is over"
                )
            self._profiler = torch.profiler.profile(
                profile_memory=self._memory, record_shapes=self._shapes, with_stack=self._stacks
            )
            self._profiler.__enter__()
            if self._profiler.profiler is not None:
                _own.add(self._profiler.profiler)
        except BaseException:
            _busy.release()
            raise
        self._range = torch.profiler.record_function(RECORDING)
        self._range.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        try:
            self._range.__exit__(kind, error, traceback)
            self._profiler.__exit__(kind, error, traceback)
        except RuntimeError as failure:
            # torch 2.11 says it here, later versions leave it to whoever exports
            if "not running" not in str(failure):
                raise
            raise RuntimeError(_TAKEN) from failure
        finally:
            _busy.release()
        # whoever interrupts does not wait for a trace to be read
        if error is None or isinstance(error, Exception):
            self._read()

    def _read(self) -> None:
        inner = self._profiler.profiler
        # exporting what another profiler took away crashes torch
        if inner is None or inner.kineto_results is None or not inner.kineto_results.trace_start_ns():
            raise RuntimeError(_TAKEN)
        with tempfile.TemporaryDirectory(prefix="torchadx-") as folder:
            path = pathlib.Path(folder) / "trace.json"
            self._profiler.export_chrome_trace(str(path))
            text = path.read_bytes()
        self.trace = read(json.loads(text, strict=False)["traceEvents"])
        if self._keep:
            self.chrome, self.profiler = text, self._profiler
        del self._profiler


def _warming_up() -> bool:
    """Whether another profiler was made ready to record, which torch tells nobody: it crashes if one runs meanwhile."""
    kind = torch.autograd.profiler.profile
    profilers = [each for each in gc.get_referrers(kind) if isinstance(each, kind)]
    others = (each for each in profilers if each.enabled and each not in _own)
    return any(each.entered and each.kineto_results is None for each in others)


def record(run: Callable[[], object], *, memory: bool = True, shapes: bool = False, stacks: bool = False) -> Trace:
    """Call a function under the profiler, and return what was recorded; see `Recording`."""
    with Recording(memory=memory, shapes=shapes, stacks=stacks) as recording:
        run()
    return recording.trace


def read(events: Iterable[Mapping[str, Any]]) -> Trace:
    """Read the events of a trace in Chrome's format, as torch's profiler exports them.

    Raises:
        RuntimeError: There is no recording among them: another profiler took over while this one ran.
    """
    spans: dict[str, list[Mapping[str, Any]]] = collections.defaultdict(list)
    flows: dict[str, list[Mapping[str, Any]]] = collections.defaultdict(list)
    instants = []
    for event in events:
        if event["ph"] == "X":
            spans[event.get("cat", "")].append(event)
        elif event.get("cat") == "fwdbwd":
            flows[event["ph"]].append(event)
        elif event.get("name") == "[memory]":
            instants.append(event)
    whole = next((event for event in spans["user_annotation"] if event["name"] == RECORDING), None)
    if whole is None:
        raise RuntimeError(_TAKEN)
    origin = whole["ts"]
    ranges = (Range(*_span(event, origin)) for event in spans["user_annotation"] if event is not whole)
    return Trace(
        ops=_sorted(_op(event, origin) for event in spans["cpu_op"]),
        ranges=_sorted(ranges),
        nodes=_nodes(spans["cpu_op"], _forward_threads(spans["cpu_op"], flows), origin),
        memory=_memory(instants, origin),
        kernels=_kernels(spans, origin),
        end=whole["dur"],
        thread=whole["tid"],
    )


def _span(event: Mapping[str, Any], origin: float) -> tuple[str, float, float, int]:
    start = event["ts"] - origin
    return event["name"], start, start + event["dur"], event["tid"]


def _sorted(items: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(sorted(items, key=lambda item: (item.start, -item.end)))


def _op(event: Mapping[str, Any], origin: float) -> Op:
    args = event["args"]
    return Op(*_span(event, origin), args.get("Sequence number"), args.get("External id"))


def _forward_threads(
    ops: Iterable[Mapping[str, Any]], flows: Mapping[str, Iterable[Mapping[str, Any]]]
) -> dict[int, int]:
    """Map the profiler's own numbers of forward threads to the system's, by the arrows from forward to backward."""
    begins = {flow["id"]: flow["tid"] for flow in flows.get("s", ())}
    ends = {(flow["tid"], flow["ts"]): begins.get(flow["id"]) for flow in flows.get("f", ())}
    votes: dict[int, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    for event in ops:
        thread = ends.get((event["tid"], event["ts"]))
        if thread is not None and event["args"].get("Fwd thread id"):
            votes[event["args"]["Fwd thread id"]][thread] += 1
    return {number: counter.most_common(1)[0][0] for number, counter in votes.items()}


def _nodes(ops: Iterable[Mapping[str, Any]], threads: Mapping[int, int], origin: float) -> tuple[Node, ...]:
    nodes: list[Node] = []
    for event in ops:
        name, start, end, thread = _span(event, origin)
        if name.startswith(_NODE):
            args = event["args"]
            forward = threads.get(args.get("Fwd thread id", 0))
            name = name.removeprefix(_NODE).removeprefix("torch::autograd::")
            nodes.append(Node(name, start, end, thread, args.get("Sequence number"), forward))
    ordered, last = sorted(nodes, key=lambda node: node.end), dict[int, Node]()
    for place, node in enumerate(ordered):
        before = last.get(node.thread)
        if node.sequence is None and before is not None:
            node = dataclasses.replace(node, sequence=before.sequence, forward_thread=before.forward_thread)
            ordered[place] = node
        last[node.thread] = node
    return _sorted(ordered)


def _memory(events: Iterable[Mapping[str, Any]], origin: float) -> tuple[MemoryEvent, ...]:
    found = []
    for event in sorted(events, key=lambda event: (event["ts"], event["args"].get("Ev Idx", 0))):
        args = event["args"]
        kind, index = args["Device Type"], args["Device Id"]
        device = _DEVICES.get(kind, f"device{kind}") + ("" if index < 0 else f":{index}")
        time, number = event["ts"] - origin, args["Bytes"]
        found.append(MemoryEvent(time, number, args["Addr"], args["Total Allocated"], device, event["tid"]))
    return tuple(found)


def _kernels(spans: Mapping[str, Iterable[Mapping[str, Any]]], origin: float) -> tuple[Kernel, ...]:
    launches = {
        event["args"]["correlation"]: event
        for kind in _LAUNCHES
        for event in spans.get(kind, ())
        if "correlation" in event["args"]
    }
    kernels = []
    for kind in _ON_DEVICE:
        for event in spans.get(kind, ()):
            name, start, end, _ = _span(event, origin)
            launch = launches.get(event["args"].get("correlation"))
            device = f"{'xpu' if 'xpu_runtime' in spans else 'cuda'}:{event['args'].get('device', 0)}"
            time, thread = (None, None) if launch is None else (launch["ts"] - origin, launch["tid"])
            kernels.append(Kernel(name, start, end, device, time, thread))
    return _sorted(kernels)
