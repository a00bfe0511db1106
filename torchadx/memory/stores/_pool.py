"""Buffers cut out of a few large slabs, because pinned memory is slow to get and comes in powers of two."""

import bisect
import threading
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# what copies of any element type, and of several at once, are content with
ALIGNMENT = 256


class Buffer(NamedTuple):
    """Host memory for one tensor or several.

    Attributes:
        memory: ``(nbytes,)`` in ``uint8``.
        slab: Where it was cut out of; ``None`` if it is pageable memory of its own.
        start: Where it begins there.
    """

    memory: Tensor
    slab: "Slab | None" = None
    start: int = 0


class Slab:
    """A stretch of memory, parts of which are in use.

    Attributes:
        memory: ``(size,)`` in ``uint8``.
        size: Its bytes.
        holes: Beginnings and ends of what is free, in order; two never touch.
    """

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory
        self.size = memory.numel()
        self.holes = [(0, self.size)]

    @property
    def unused(self) -> bool:
        """Whether all of it is free."""
        return self.holes == [(0, self.size)]

    def tightest(self, nbytes: int) -> int | None:
        """Return the size of the smallest hole that ``nbytes`` fit into."""
        return min((end - start for start, end in self.holes if end - start >= nbytes), default=None)

    def cut(self, nbytes: int) -> int:
        """Take ``nbytes`` from the smallest hole they fit into, and return where they begin."""
        place, (start, end) = min(
            ((place, hole) for place, hole in enumerate(self.holes) if hole[1] - hole[0] >= nbytes),
            key=lambda candidate: candidate[1][1] - candidate[1][0],
        )
        self.holes[place : place + 1] = [(start + nbytes, end)] if start + nbytes < end else []
        return start

    def give(self, start: int, end: int) -> None:
        """Free a stretch; it grows together with the holes that it touches."""
        place = bisect.bisect(self.holes, (start, end))
        if place < len(self.holes) and self.holes[place][0] == end:
            end = self.holes.pop(place)[1]
        if place and self.holes[place - 1][1] == start:
            place -= 1
            start = self.holes.pop(place)[0]
        self.holes.insert(place, (start, end))


class SlabPool:
    """Hands out buffers, from pinned slabs up to a cap and from pageable memory above it. Thread-safe.

    Args:
        pool_bytes: The most bytes of all slabs.
        slab_bytes: Bytes of a slab, a power of two. What is larger gets a slab of the next power of two.
        pin: Whether there are slabs at all.
        allocate: Makes the memory of a slab.

    Attributes:
        pinned_bytes: Bytes of all slabs, in use or not.
        pageable_bytes: Bytes of the buffers now in use that are outside of slabs.

    Raises:
        ValueError: ``slab_bytes`` is no power of two.
    """

    def __init__(
        self, pool_bytes: int, slab_bytes: int, pin: bool = True, allocate: Callable[[int], Tensor] | None = None
    ) -> None:
        if slab_bytes < ALIGNMENT or slab_bytes & (slab_bytes - 1):
            raise ValueError(
                f"slab_bytes={slab_bytes}: expected a power of two, {ALIGNMENT} at least: pinned memory comes in these"
            )
        self.pinned_bytes = 0
        self.pageable_bytes = 0
        self._cap = pool_bytes if pin else 0
        self._slab_bytes = slab_bytes
        self._allocate = allocate or _pinned
        self._lock = threading.Lock()
        self._slabs: list[Slab] = []

    def take(self, nbytes: int) -> Buffer:
        """Return a buffer of ``nbytes`` bytes, one at least."""
        size = -(-nbytes // ALIGNMENT) * ALIGNMENT
        with self._lock:
            fitting = [(hole, place) for place, slab in enumerate(self._slabs) if (hole := slab.tightest(size))]
            slab = self._slabs[min(fitting)[1]] if fitting else self._grow(size)
            if slab is not None:
                start = slab.cut(size)
                return Buffer(slab.memory[start : start + nbytes], slab, start)
            memory = torch.empty(nbytes, dtype=torch.uint8, device="cpu")
            self.pageable_bytes += nbytes
            return Buffer(memory)

    def give(self, buffer: Buffer) -> None:
        """Take a buffer back, which nobody reads or writes any more."""
        nbytes = buffer.memory.numel()
        with self._lock:
            if buffer.slab is None:
                self.pageable_bytes -= nbytes
            else:
                buffer.slab.give(buffer.start, buffer.start + -(-nbytes // ALIGNMENT) * ALIGNMENT)

    def _grow(self, size: int) -> Slab | None:
        """Add a slab for ``size`` bytes, in place of unused ones that are too small if need be."""
        wanted = max(self._slab_bytes, 1 << (size - 1).bit_length())
        used = [slab for slab in self._slabs if not slab.unused]
        if sum(slab.size for slab in used) + wanted > self._cap:
            return None
        if self.pinned_bytes + wanted > self._cap:
            self._slabs = used
            self.pinned_bytes = sum(slab.size for slab in used)
        slab = Slab(self._allocate(wanted))
        self._slabs.append(slab)
        self.pinned_bytes += wanted
        return slab


def _pinned(nbytes: int) -> Tensor:
    return torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=True)
