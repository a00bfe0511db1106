"""Tensors of one accelerator in host memory: copied out, and back ahead of their use, while the device computes."""

import collections
import threading
import time
from typing import NamedTuple

import torch
from torch import Tensor

from torchadx.memory.stores._meter import Meter, total_bytes
from torchadx.memory.stores._pool import ALIGNMENT, Buffer, SlabPool
from torchadx.memory.stores._read_ahead import Item, ReadAhead
from torchadx.memory.stores._streams import Event, Streams
from torchadx.memory.stores.store import StaleCopyError


class _OnDevice(NamedTuple):
    """Tensors that may be used once an event has happened."""

    parts: tuple[Tensor, ...]
    ready: Event


class CopiesItem(Item):
    """Tensors of an accelerator in host memory.

    Attributes:
        buffer: The host memory.
        copies: The tensors in it.
        copied: Happens when they are all there.
        busy: Happens when the host memory is last used, as far as known.
        source: Where they are copied from, until it is known that they are.
        borrowed: Whose memory that is, if not the store's own.
        version: Its version when the copy began.
        stale: Whether that was changed before the copy was known to be complete.
        reload: What is back on the device ahead of its use.
        dropped: Whether nobody wants them any more.
        loads: How many times they were copied back.
    """

    __slots__ = (
        "borrowed", "buffer", "busy", "copied", "copies", "dropped", "loads", "reload", "source", "stale", "version",
    )  # fmt: skip

    def __init__(self, buffer: Buffer, copies: tuple[Tensor, ...], source: _OnDevice, borrowed: Tensor | None) -> None:
        super().__init__(total_bytes(copies))
        self.buffer: Buffer | None = buffer
        self.copies = copies
        self.copied: Event = None
        self.busy: Event = None
        self.source: _OnDevice | None = source
        self.borrowed = borrowed
        self.version = 0 if borrowed is None else borrowed._version
        self.stale = self.dropped = False
        self.reload: _OnDevice | None = None
        self.loads = 0

    def observe(self) -> None:
        """Look whether the source was changed. Versions move in the host's thread, before the device can change it."""
        if self.borrowed is not None and self.borrowed._version != self.version:
            self.stale = True


class Copies:
    """What a host store holds of one accelerator.

    A copy out is known to be complete when someone asks its event: whatever is called here does that first. Until then
    its source is held, and a change of a borrowed one makes the copy stale: it may be of either state, or of both.

    Finalizers only append to a deque, because they may run in the thread that has the lock.

    Args:
        device: Which one.
        pool: Where host memory comes from.
        window_bytes: The most bytes being copied out (one larger tensor may, alone), and the most copied back ahead.
        meter: What counts.
    """

    def __init__(self, device: torch.device, pool: SlabPool, window_bytes: int, meter: Meter) -> None:
        self._streams = Streams(device)
        self._pool, self._window, self._meter = pool, window_bytes, meter
        self._lock = threading.Lock()
        self._items = ReadAhead[CopiesItem](window_bytes)
        self._leaving: collections.deque[CopiesItem] = collections.deque()
        self._dropped: collections.deque[CopiesItem] = collections.deque()
        self._retired: collections.deque[tuple[Event, Buffer]] = collections.deque()
        self._leaving_bytes = self._reloaded_bytes = 0
        self._closed = False

    def put(self, parts: tuple[Tensor, ...], borrowed: Tensor | None) -> CopiesItem:
        """Begin to copy tensors to the host; may wait for other copies."""
        self._wait_for_room(total_bytes(parts))
        with self._lock:
            self._check()
            self._settle()
            buffer = self._pool.take(sum(map(_aligned, parts)))
            try:
                source = _OnDevice(parts, self._streams.mark())
                item = CopiesItem(buffer, _views(buffer, parts), source, borrowed)
                item.copied = item.busy = self._streams.copy_out(item.copies, parts, source.ready)
            except BaseException:
                self._pool.give(buffer)
                raise
            self._leaving.append(item)
            self._leaving_bytes += item.nbytes
            self._items.append(item)
            self._meter.hold(item.nbytes)
        return item

    def _wait_for_room(self, nbytes: int) -> None:
        """Let the host not run ahead of the copies so far that the memory they are to free is never free."""
        while True:
            with self._lock:
                self._settle()
                if not self._leaving or self._leaving_bytes + nbytes <= self._window:
                    return
                oldest = self._leaving[0].copied
            start = time.perf_counter()
            oldest.synchronize()
            self._meter.add_wait(time.perf_counter() - start)

    def get(self, item: CopiesItem) -> tuple[Tensor, ...]:
        """Return the tensors on the device, for use by the current stream.

        Raises:
            StaleCopyError: The source was changed before the copy was known to be complete.
            RuntimeError: The store was closed.
        """
        with self._lock:
            self._check()
            self._settle()
            self._items.take(item)
            try:
                return self._fetch(item)
            finally:
                self._let_go(item)
                self._items.advance(self._bring, self._let_go)

    def _fetch(self, item: CopiesItem) -> tuple[Tensor, ...]:
        if item.source is not None:
            item.observe()
        if item.stale:
            raise StaleCopyError("it was changed in place while it was being copied to the host. Change a copy instead")
        if item.source is not None and item.borrowed is not None:
            # quicker than there and back, and the owner may change the source again
            return self._streams.clone(*item.source)
        found = item.source or item.reload or self._copy_back(item)
        self._streams.hand_over(found.parts, found.ready)
        return found.parts

    def _copy_back(self, item: CopiesItem) -> _OnDevice:
        reload = _OnDevice(*self._streams.copy_back(item.copies, item.copied))
        item.busy = reload.ready
        item.loads += 1
        if item.loads > 1:
            self._meter.add_reload()
        return reload

    def _bring(self, item: CopiesItem) -> None:
        """Have an item on the device, where a source of the store's own still is."""
        if item.reload is None and (item.source is None or item.borrowed is not None):
            try:
                item.reload = self._copy_back(item)
            except torch.OutOfMemoryError:
                # there may be room when it is needed; if not, that is the time to say so
                return
            self._reloaded_bytes += item.nbytes

    def _let_go(self, item: CopiesItem) -> None:
        if item.reload is not None and not item.ahead:
            item.reload = None
            self._reloaded_bytes -= item.nbytes

    def drop(self, item: CopiesItem) -> None:
        """Forget an item. Called by finalizers: see the class."""
        self._dropped.append(item)

    def settle(self) -> None:
        """Do what became possible since: free sources that were copied, and the host memory of dropped items."""
        with self._lock:
            self._settle()

    def _settle(self) -> None:
        while self._leaving and self._leaving[0].copied.query():
            self._arrive(self._leaving.popleft())
        while self._dropped:
            item = self._dropped.popleft()
            if not item.dropped:
                self._forget(item)
        # buffers of copies under way must not be used for others
        while self._retired and self._retired[0][0].query():
            self._pool.give(self._retired.popleft()[1])

    def _arrive(self, item: CopiesItem) -> None:
        """Let go of what was copied; a source of the store's own that is about to be needed stays."""
        item.observe()
        if item.ahead and item.reload is None:
            item.reload = item.source
            self._reloaded_bytes += item.nbytes
        item.source = item.borrowed = None
        self._leaving_bytes -= item.nbytes

    def _forget(self, item: CopiesItem) -> None:
        self._items.remove(item)
        self._let_go(item)
        item.dropped = True
        self._meter.release(item.nbytes)
        assert item.buffer is not None
        self._retired.append((item.busy, item.buffer))
        # who still has the item must not keep the slab alive
        item.buffer, item.copies = None, ()

    def on_device(self) -> int:
        """Bytes on the device: not yet known to be copied out, or copied back ahead and not yet taken."""
        with self._lock:
            self._settle()
            return self._leaving_bytes + self._reloaded_bytes

    def flush(self) -> None:
        """Wait until all is copied, and buffers of dropped items are free again."""
        with self._lock:
            self._settle()
            pending = [item.copied for item in self._leaving] + [busy for busy, _ in self._retired]
        for event in pending:
            event.synchronize()
        self.settle()

    def close(self) -> None:
        """Wait for copies under way and free all host memory."""
        with self._lock:
            self._closed = True
            for item in list(self._items):
                self._forget(item)
        self.flush()

    def _check(self) -> None:
        if self._closed:
            raise RuntimeError("the HostStore was closed; close it (or its ActivationManager) after the last backward")


def _aligned(part: Tensor) -> int:
    return -(-part.nbytes // ALIGNMENT) * ALIGNMENT


def _views(buffer: Buffer, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Show a buffer as tensors like ``parts``, one behind the other."""
    views, start = [], 0
    for part in parts:
        views.append(buffer.memory[start : start + part.nbytes].view(part.dtype).view(part.shape))
        start += _aligned(part)
    return tuple(views)
