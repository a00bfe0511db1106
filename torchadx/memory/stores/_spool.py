"""What stands behind a disk store from its first tensor until it is closed: a directory, and threads that use it."""

import collections
import functools
import os
import threading
import time
import weakref

from torch import Tensor

from torchadx.memory.stores._files import DiskFullError, Files, Spec, remove_directory
from torchadx.memory.stores._meter import Meter, total_bytes
from torchadx.memory.stores._read_ahead import ReadAhead
from torchadx.memory.stores._spool_items import Load, SpoolItem
from torchadx.memory.stores._workers import Workers


class Spool:
    """Writes tensors to files in the background, and reads them back ahead of their use.

    One lock guards all state, and no file is touched under it. Finalizers never take it: they may run at any moment in
    the very thread that has it. They leave a note in a deque, where appending is atomic, and wake a worker.

    A spool that nobody uses any more is collected while its workers sleep; with it go the threads and the directory.

    Attributes:
        pid: The process it belongs to.
        directory: Where its files are.
    """

    def __init__(self, files: Files, window_bytes: int, threads: int, meter: Meter) -> None:
        self.pid = os.getpid()
        self.directory = files.directory
        self._files, self._window, self._meter = files, window_bytes, meter
        self._changed = threading.Condition()
        self._dropped: collections.deque[SpoolItem] = collections.deque()
        self._items = ReadAhead[SpoolItem](window_bytes)
        self._unwritten = self._resident = self._removing = 0
        self._failure: Exception | None = None
        self._closed = False
        self._workers = Workers(threads)
        # at interpreter exit, too
        self._finish = weakref.finalize(self, _finish, self.pid, self.directory, self._workers)

    def put(self, parts: tuple[Tensor, ...], borrowed: Tensor | None, resident: bool) -> SpoolItem:
        """Take tensors in, at least one byte of them; may wait for others to be written.

        Raises:
            DiskFullError: There is no room for them.
            OSError: The file cannot be made, or one could not be written earlier.
        """
        nbytes = total_bytes(parts)
        item = SpoolItem(Spec.of(parts), nbytes, nbytes if resident else 0)
        self._claim_room(nbytes)
        try:
            item.path = self._make_file(nbytes)
            try:
                load = Load(item, tuple(part.to("cpu", copy=borrowed is not None) for part in parts))
                self._enter(item, load)
            except BaseException:
                self._files.remove(item.path, nbytes)
                raise
        except BaseException:
            with self._changed:
                self._unwritten -= nbytes
                self._changed.notify_all()
            raise
        return item

    def _claim_room(self, nbytes: int) -> None:
        """Wait until what is unwritten fits into the window with ``nbytes`` more, or is nothing but these."""
        with self._changed:
            self._check()
            self._settle()
            if self._unwritten and self._unwritten + nbytes > self._window:
                start = time.perf_counter()
                while self._unwritten and self._unwritten + nbytes > self._window:
                    self._changed.wait()
                    self._settle()
                self._meter.add_wait(time.perf_counter() - start)
                self._check()
            self._unwritten += nbytes

    def _make_file(self, nbytes: int) -> str:
        try:
            return self._files.make(nbytes)
        except DiskFullError:
            # files of tensors that were dropped already may make room
            with self._changed:
                self._settle()
                self._changed.wait_for(lambda: not self._removing)
            return self._files.make(nbytes)

    def _enter(self, item: SpoolItem, load: Load) -> None:
        with self._changed:
            self._check()
            item.load = load
            item.waiting = True
            self._resident += item.resident
            self._items.append(item)
            self._meter.hold(item.nbytes)
            self._workers.submit(functools.partial(self._write, item))

    def _write(self, item: SpoolItem) -> None:
        with self._changed:
            if item.load is None:
                return
            parts = item.load.parts
            item.waiting = False
        error: Exception | None = None
        try:
            self._files.write(item.path, parts, lambda: item.dropped)
        except Exception as problem:
            error = problem
        del parts
        with self._changed:
            self._unwritten -= item.nbytes
            if error is None:
                item.written = True
                self._let_go(item)
            elif not item.dropped:
                self._failure = self._failure or error
            self._changed.notify_all()

    def get(self, item: SpoolItem) -> tuple[Tensor, ...]:
        """Return the tensors, from memory or from the file.

        Raises:
            OSError: The file cannot be read.
            RuntimeError: The store was closed, or this is another process.
        """
        if os.getpid() != self.pid:
            raise RuntimeError(
                f"a tensor that process {self.pid} put into a DiskStore was asked for in its fork {os.getpid()}, which "
                "cannot read it; run backward in the process that ran forward"
            )
        with self._changed:
            if item.dropped:
                raise RuntimeError(_CLOSED)
            self._settle()
            load = item.load or Load(item)
            self._items.take(item)
            self._let_go(item)
            self._items.advance(self._bring, self._let_go)
        if not load.done:
            start = time.perf_counter()
            self._complete(load)
            self._meter.add_wait(time.perf_counter() - start)
        if load.error is not None:
            raise load.error
        return load.parts

    def _complete(self, load: Load) -> None:
        """Read what no other thread has begun to read; else wait for it."""
        if self._claim(load):
            self._read(load)
        else:
            with self._changed:
                self._changed.wait_for(lambda: load.done)

    def _claim(self, load: Load) -> bool:
        with self._changed:
            if load.claimed:
                return False
            load.claimed = True
            load.item.reads += 1
            if load.item.reads > 1:
                self._meter.add_reload()
            return True

    def _read(self, load: Load) -> None:
        try:
            load.parts = self._files.read(load.item.path, load.item.specs)
        except Exception as error:
            # raised by who asked for it
            load.error = error
        with self._changed:
            load.done = True
            self._changed.notify_all()

    def _bring(self, item: SpoolItem) -> None:
        """Have an item read in the background, unless it is still in memory."""
        if item.load is None:
            item.load = Load(item)
            self._resident += item.resident
            self._workers.submit(functools.partial(self._read_ahead, weakref.ref(item.load)))

    def _read_ahead(self, reference: "weakref.ref[Load]") -> None:
        load = reference()
        # nobody wants one that is gone
        if load is not None and self._claim(load):
            self._read(load)

    def _let_go(self, item: SpoolItem) -> None:
        """Free the memory of an item that the file has and that is not read ahead."""
        if item.load is not None and item.written and not item.ahead:
            item.load = None
            self._resident -= item.resident

    def drop(self, item: SpoolItem) -> None:
        """Forget an item. Called by finalizers: see the class."""
        # what was closed is forgotten already
        if not item.dropped:
            self._dropped.append(item)
            self._workers.submit(self.settle)

    def settle(self) -> None:
        """Do for all that were dropped what could not be done at once."""
        with self._changed:
            self._settle()

    def _settle(self) -> None:
        gone = []
        while self._dropped:
            item = self._dropped.popleft()
            if not item.dropped:
                self._forget(item)
                gone.append(item)
        if gone:
            self._removing += len(gone)
            self._workers.submit(functools.partial(self._remove, gone))
            self._changed.notify_all()

    def _forget(self, item: SpoolItem) -> None:
        self._items.remove(item)
        item.dropped = True
        if item.waiting:
            item.waiting = False
            self._unwritten -= item.nbytes
        if item.load is not None:
            item.load = None
            self._resident -= item.resident
        self._meter.release(item.nbytes)

    def _remove(self, items: list[SpoolItem]) -> None:
        try:
            for item in items:
                self._files.remove(item.path, item.nbytes)
        except OSError as error:
            self._failure = self._failure or error
        finally:
            with self._changed:
                self._removing -= len(items)
                self._changed.notify_all()

    def resident_now(self) -> int:
        """Bytes in the memory that the tensors came from: unwritten, or read ahead and not yet taken."""
        with self._changed:
            self._settle()
            return self._resident

    def flush(self) -> None:
        """Wait until all is written and all that was dropped is removed.

        Raises:
            OSError: Something could not be written.
        """
        with self._changed:
            self._settle()
            self._changed.wait_for(lambda: not self._unwritten and not self._removing)
            self._check()

    def _check(self) -> None:
        if self._closed:
            raise RuntimeError(_CLOSED)
        failure, self._failure = self._failure, None
        if failure is not None:
            raise OSError(
                getattr(failure, "errno", None),
                f"DiskStore could not write or remove a file in {self.directory!r}: {failure}. What was not "
                "written stays in memory, and nothing is lost; free space there, or choose another directory with "
                "DiskStore(directory=...)",
            ) from failure

    def close(self) -> None:
        """Stop the threads, after what they are doing right now, and remove the directory."""
        with self._changed:
            self._closed = True
            self._settle()
            for item in list(self._items):
                self._forget(item)
            self._changed.notify_all()
        self._finish()
        self._workers.join()


_CLOSED = "the DiskStore was closed; close it (or its ActivationManager) after the last backward"


def _finish(pid: int, directory: str, workers: Workers) -> None:
    """Stop the threads and remove the directory; in the process that made it, not in its forks."""
    if os.getpid() == pid:
        workers.stop()
        remove_directory(directory)
