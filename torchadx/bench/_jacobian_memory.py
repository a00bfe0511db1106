"""How much memory a Jacobian takes while it is computed, from the profiler's record of every allocation."""

import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

#: how the profiler numbers devices
DEVICE_NUMBERS = {"cpu": 0, "cuda": 1}


def peak_besides_result(run: Callable[[], Tensor], device: torch.device) -> int:
    """Return the most bytes that ``run`` had allocated at once, the storage of its result not counted.

    The allocator sees what modes of Python do not: the inside of a functorch transform, and compiled code.
    """
    # otherwise it writes two lines to stderr each time
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    run()
    with profile(activities=activities, profile_memory=True) as profiler:
        result = run()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return peak(_changes(events, DEVICE_NUMBERS[device.type]), result)


def _changes(events: Iterable[dict[str, Any]], device_number: int) -> list[tuple[int, int]]:
    """Return address and bytes of every allocation, and of every release, which has less than zero bytes, in order."""
    memory = [event for event in events if event.get("name") == "[memory]"]
    mine = [event for event in memory if event["args"]["Device Type"] == device_number]
    mine.sort(key=lambda event: event["args"]["Ev Idx"])
    return [(event["args"]["Addr"], event["args"]["Bytes"]) for event in mine]


def peak(changes: list[tuple[int, int]], result: Tensor) -> int:
    """Return the largest sum of changes so far; what the result's storage has beyond the result counts from its birth.

    Args:
        changes: Address and bytes, in order.
        result: Still alive, so that its address was last handed out to it.
    """
    storage = result.untyped_storage()
    own = max((i for i, (at, size) in enumerate(changes) if at == storage.data_ptr() and size > 0), default=None)
    live = most = 0
    for i, (_, size) in enumerate(changes):
        live += size - result.nbytes if i == own else size
        most = max(most, live)
    return most
