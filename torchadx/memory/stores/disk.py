"""The store in files."""

import os
import threading

import torch
from torch import Tensor

from torchadx import dispatch
from torchadx.memory.stores._files import Files
from torchadx.memory.stores._meter import InMemory, Meter, MeteredStore
from torchadx.memory.stores._spool import Spool
from torchadx.memory.stores._spool_items import SpoolItem
from torchadx.memory.stores.store import Stored, same_device

_WINDOW = 16 << 20


class DiskStore(MeteredStore):
    """Writes tensors to files, in the background, and reads them back shortly before backward needs them.

    Space is set aside when a tensor is put, so that a full disk shows there and then. The files lie in a directory of
    the store's own, named ``torchadx-<pid>-...``, which is made at the first ``put`` and removed with all that is in it
    by :meth:`close`, when nobody uses the store and what it holds any more, and when the interpreter exits. (A process
    that is killed leaves it behind.) The next ``put`` after :meth:`close`, or in a fork of the process, starts anew.

    Args:
        directory: An existing directory to make the store's own in, on a disk rather than in a file system that lives
            in memory; ``None`` for the system's place for temporary files.
        capacity_bytes: The most bytes of all files; ``None`` for as many as the disk takes.
        window_bytes: The most bytes that wait in memory to be written (one larger tensor may, alone), and the most that
            are read ahead. ``put`` waits where more would.
        threads: How many write and read.

    Raises:
        ValueError: A number is negative, or there are no threads.

    >>> import torch
    >>> store = DiskStore()
    >>> stored = store.put((torch.ones(256),))
    >>> store.flush()
    >>> store.bytes_now, store.resident_now
    (1024, 0)
    >>> stored.get()[0].sum()
    tensor(256.)
    >>> store.close()
    """

    name = "disk"

    def __init__(
        self,
        *,
        directory: str | os.PathLike[str] | None = None,
        capacity_bytes: int | None = None,
        window_bytes: int = _WINDOW,
        threads: int = 2,
    ) -> None:
        """Make a store that is not yet open: no directory, no threads."""
        super().__init__()
        if window_bytes < 0 or threads < 1 or (capacity_bytes is not None and capacity_bytes < 0):
            raise ValueError(
                f"expected window_bytes >= 0, capacity_bytes >= 0 and threads >= 1; got {window_bytes=}, "
                f"{capacity_bytes=}, {threads=}"
            )
        self._directory, self._capacity = directory, capacity_bytes
        self._window, self._threads = window_bytes, threads
        self._opening = threading.Lock()
        self._spool: Spool | None = None

    @classmethod
    def within(cls, window_bytes: int | None, *, directory: str | os.PathLike[str] | None = None) -> "DiskStore":
        """Make one with the usual settings, and at most so many bytes under way."""
        window = _WINDOW if window_bytes is None else min(window_bytes, _WINDOW)
        return cls(directory=directory, window_bytes=window)

    @property
    def directory(self) -> str | None:
        """The store's own directory, ``None`` unless it is open."""
        spool = self._own()
        return None if spool is None else spool.directory

    @property
    def resident_now(self) -> int:
        """Bytes not yet written, or read ahead and not yet taken; none of those that a GPU's memory held."""
        spool = self._own()
        return 0 if spool is None else spool.resident_now()

    def put(self, parts: tuple[Tensor, ...], borrowed: Tensor | None = None) -> Stored:
        """Take tensors in, to be written soon. Waits while the window is full.

        Raises:
            DiskFullError: The disk or ``capacity_bytes`` has no room for them.
            OSError: The directory or the file cannot be made, or an earlier tensor could not be written (that one is
                still in memory).
            ValueError: The parts are on several devices.
        """
        device = same_device(parts)
        if not any(part.nbytes for part in parts):
            return InMemory(parts, self._meter)
        spool = self._open()
        return _OnDisk(spool, spool.put(parts, borrowed, not dispatch.on_accelerator(parts[0])), device)

    def _open(self) -> Spool:
        with self._opening:
            spool = self._own()
            if spool is None:
                if self._spool is not None:
                    # what was counted is the parent's
                    self._meter = Meter()
                files = Files(self._directory, self._capacity, self._window)
                spool = self._spool = Spool(files, self._window, self._threads, self._meter)
            return spool

    def _own(self) -> Spool | None:
        """Return the spool, unless it is that of the process that forked this one: it has no threads here."""
        spool = self._spool
        return spool if spool is not None and spool.pid == os.getpid() else None

    def flush(self) -> None:
        """Wait until all is written, and what was dropped is removed.

        Raises:
            OSError: Something could not be written, or removed.
        """
        spool = self._own()
        if spool is not None:
            spool.flush()

    def close(self) -> None:
        """Remove all files, unwritten tensors too, and stop the threads."""
        with self._opening:
            spool, self._spool = self._own(), None
        if spool is not None:
            spool.close()

    def _settle(self) -> None:
        spool = self._own()
        if spool is not None:
            spool.settle()


class _OnDisk(Stored):
    """Tensors in a file."""

    __slots__ = ("_device", "_item", "_spool")

    def __init__(self, spool: Spool, item: SpoolItem, device: torch.device) -> None:
        self.nbytes = item.nbytes
        self._spool, self._item, self._device = spool, item, device

    def __del__(self) -> None:
        self._spool.drop(self._item)

    def in_memory(self) -> tuple[Tensor, ...]:
        """Return the contents if they are not written yet, or were read ahead."""
        load = self._item.load
        return load.parts if load is not None and load.done else ()

    def get(self) -> tuple[Tensor, ...]:
        return tuple(part.to(self._device) for part in self._spool.get(self._item))
