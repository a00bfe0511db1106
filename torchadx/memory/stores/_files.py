"""The files of one disk store: space is reserved first, then written, read and removed."""

import contextlib
import ctypes
import errno
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from io import FileIO
from typing import NamedTuple

import torch
from torch import Tensor

# a write looks this often whether it is still wanted
_CHUNK = 8 << 20
# what is left to others where space cannot be reserved, only looked at
_SPARE = 64 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL)


class DiskFullError(OSError):
    """A disk, a quota or ``capacity_bytes`` has no room for a tensor."""


class Spec(NamedTuple):
    """A tensor without its elements."""

    dtype: torch.dtype
    shape: torch.Size

    @classmethod
    def of(cls, parts: Sequence[Tensor]) -> "tuple[Spec, ...]":
        return tuple(cls(part.dtype, part.shape) for part in parts)


class Files:
    """Files in a new directory, one for the parts of one tensor.

    Args:
        parent: Where to make the directory; ``None`` for the system's place for temporary files.
        capacity_bytes: The most bytes of all files; ``None`` for as many as fit.
        unwritten_bytes: The most bytes of files that are made and not yet written, one larger file aside.

    Attributes:
        directory: Its path.

    Raises:
        OSError: The directory cannot be made.
    """

    def __init__(self, parent: str | os.PathLike[str] | None, capacity_bytes: int | None, unwritten_bytes: int) -> None:
        self._capacity = capacity_bytes
        self._spare = _SPARE + unwritten_bytes
        self._lock = threading.Lock()
        self._used = 0
        self._made = 0
        place = tempfile.gettempdir() if parent is None else os.fspath(parent)
        try:
            self.directory = tempfile.mkdtemp(prefix=f"torchadx-{os.getpid()}-", dir=place)
        except OSError as error:
            raise _unwritable("a directory", place, error) from error

    def make(self, nbytes: int) -> str:
        """Make a file of ``nbytes`` bytes, which the disk keeps free for it from now on, and return its path.

        Raises:
            DiskFullError: There is no room for it.
            OSError: It cannot be made.
        """
        with self._lock:
            if self._capacity is not None and self._used + nbytes > self._capacity:
                raise self._full(nbytes, self._capacity - self._used, f"capacity_bytes is {self._capacity}")
            self._used += nbytes
            self._made += 1
            path = os.path.join(self.directory, str(self._made))
        try:
            self._reserve(path, nbytes)
        except BaseException:
            self._free(nbytes)
            raise
        return path

    def _reserve(self, path: str, nbytes: int) -> None:
        try:
            with open(path, "xb", buffering=0) as file:
                try:
                    self._set_aside(file, nbytes)
                except BaseException:
                    os.unlink(path)
                    raise
        except DiskFullError:
            raise
        except OSError as error:
            raise _unwritable("a file", self.directory, error) from error

    def _set_aside(self, file: FileIO, nbytes: int) -> None:
        try:
            if not _allocated(file, nbytes) and shutil.disk_usage(self.directory).free - self._spare < nbytes:
                raise OSError(errno.ENOSPC, f"{self._spare} bytes are left to others")
        except OSError as error:
            if error.errno not in _FULL:
                raise
            free = shutil.disk_usage(self.directory).free
            raise self._full(nbytes, free, error.strerror or "full") from error

    def _full(self, nbytes: int, free: int, reason: str) -> DiskFullError:
        return DiskFullError(
            errno.ENOSPC,
            f"DiskStore needs {nbytes} bytes in {self.directory!r}, which has {free} free ({reason}). Free space "
            "there, choose another disk or a larger capacity, DiskStore(directory=..., capacity_bytes=...), or move "
            "less to the disk",
        )

    @staticmethod
    def write(path: str, parts: Sequence[Tensor], unwanted: Callable[[], bool]) -> None:
        """Write CPU tensors into a file that was made for them, unless they become unwanted meanwhile."""
        # never makes a file: one that was removed stays so
        with open(path, "r+b", buffering=0) as file:
            for part in parts:
                rest = _bytes_of(part)
                while rest and not unwanted():
                    rest = rest[file.write(rest[:_CHUNK]) :]

    @staticmethod
    def read(path: str, specs: Sequence[Spec]) -> tuple[Tensor, ...]:
        """Read tensors back, into new memory.

        Raises:
            OSError: The file is gone or too short.
        """
        with open(path, "rb", buffering=0) as file:
            return tuple(_read_one(file, spec) for spec in specs)

    def remove(self, path: str, nbytes: int) -> None:
        """Remove a file; one that is gone already is none to worry about."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._free(nbytes)

    def _free(self, nbytes: int) -> None:
        with self._lock:
            self._used -= nbytes


def remove_directory(directory: str) -> None:
    """Remove a directory of files while other threads may still remove some of them."""
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(entry)
        os.rmdir(directory)


def _unwritable(what: str, place: str, error: OSError) -> OSError:
    return OSError(
        error.errno,
        f"DiskStore cannot make {what} in {place!r}: {error.strerror}. Name an existing, writable directory: "
        "DiskStore(directory=...)",
    )


def _allocated(file: FileIO, nbytes: int) -> bool:
    """Have the file system set space aside, if it can."""
    if not hasattr(os, "posix_fallocate"):
        return False
    try:
        os.posix_fallocate(file.fileno(), 0, nbytes)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return False
    return True


def _read_one(file: FileIO, spec: Spec) -> Tensor:
    # on the CPU even under `with torch.device(...)`
    part = torch.empty(spec.shape, dtype=spec.dtype, device="cpu")
    rest = _bytes_of(part)
    while rest:
        count = file.readinto(rest)
        if not count:
            raise OSError(errno.EIO, f"{file.name!r} ends early: it was changed since a DiskStore wrote it")
        rest = rest[count:]
    return part


_WRITABLE = 0x200
_memoryview_at = ctypes.pythonapi.PyMemoryView_FromMemory
_memoryview_at.restype = ctypes.py_object
_memoryview_at.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)


def _bytes_of(tensor: Tensor) -> memoryview:
    """Show the memory of a contiguous CPU tensor, which must outlive what is returned.

    Of all ways from a tensor to a buffer only this one needs neither a copy nor numpy.
    """
    return _memoryview_at(tensor.data_ptr(), tensor.nbytes, _WRITABLE) if tensor.nbytes else memoryview(b"")
