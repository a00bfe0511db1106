"""By how much torch's allocators grow while something runs."""

import collections
from collections.abc import Callable
from typing import TypeVar

from torchadx.inspect._trace._trace import Recording

T = TypeVar("T")


def growth_of(run: Callable[[], T]) -> tuple[T, int, int]:
    """Call a function under torch's profiler.

    Returns:
        What it returned; bytes that the allocators of all devices together had grown by when it was done, its results
        alive; the most by which they had grown at once.
    """
    with Recording() as recording:
        result = run()
    now = peak = 0
    # blocks from before may be freed inside, which the allocator of the host does not tell
    alive: collections.Counter[tuple[str, int]] = collections.Counter()
    for event in recording.trace.memory:
        if event.time > recording.trace.end:
            break
        block = event.device, event.address
        if event.bytes < 0 and block not in alive:
            continue
        now += event.bytes
        peak = max(peak, now)
        alive[block] += event.bytes
        if not alive[block]:
            del alive[block]
    return result, now, peak
