"""What stores count, and the simplest thing that they hand out: tensors in memory."""

import collections
import threading

from torch import Tensor

from torchadx.memory.stores.store import Store, Stored


class Meter:
    """Bytes held, time waited and reloads of one store. Thread-safe.

    What is held is often counted out by finalizers. They run in any thread and at any moment, and so perhaps in the
    middle of a method here, in the thread that has the lock: :meth:`release` takes no lock but appends to a deque,
    which is atomic, and the others do the sum.

    Args:
        total: Counts the same bytes, among others.
    """

    def __init__(self, total: "Meter | None" = None) -> None:
        self._total = total
        self.waited = 0.0
        self.reloads = 0
        self._lock = threading.Lock()
        self._held = 0
        self._peak = 0
        self._released: collections.deque[int] = collections.deque()

    def hold(self, nbytes: int) -> None:
        """Count bytes in."""
        with self._lock:
            self._held += nbytes
            self._peak = max(self._peak, self._settled())
        if self._total is not None:
            self._total.hold(nbytes)

    def release(self, nbytes: int) -> None:
        """Count bytes out."""
        self._released.append(nbytes)
        if self._total is not None:
            self._total.release(nbytes)

    def now(self) -> int:
        """Return the bytes held."""
        with self._lock:
            return self._settled()

    def peak(self) -> int:
        """Return the most bytes that were ever held."""
        return self._peak

    def add_wait(self, seconds: float) -> None:
        """Count time that a caller waited."""
        with self._lock:
            self.waited += seconds

    def add_reload(self) -> None:
        """Count contents that were brought back again."""
        with self._lock:
            self.reloads += 1

    def _settled(self) -> int:
        while self._released:
            self._held -= self._released.popleft()
        return self._held


class MeteredStore(Store):
    """A store that counts with a meter."""

    def __init__(self) -> None:
        self._meter = Meter()

    @property
    def bytes_now(self) -> int:
        """Bytes of what it holds now."""
        self._settle()
        return self._meter.now()

    @property
    def bytes_peak(self) -> int:
        """The most bytes it ever held."""
        return self._meter.peak()

    @property
    def seconds_waited(self) -> float:
        """Sum of the time that callers of ``put`` and ``get`` spent waiting for copies."""
        return self._meter.waited

    @property
    def reloads(self) -> int:
        """How many times contents were brought back that had been brought back before."""
        return self._meter.reloads

    def _settle(self) -> None:
        """Count out what was dropped, where finalizers leave that to others."""


class InMemory(Stored):
    """Tensors held by reference."""

    __slots__ = ("_meter", "_parts")

    def __init__(self, parts: tuple[Tensor, ...], meter: Meter) -> None:
        self.nbytes = total_bytes(parts)
        self._parts, self._meter = parts, meter
        meter.hold(self.nbytes)

    def __del__(self) -> None:
        self._meter.release(self.nbytes)

    def get(self) -> tuple[Tensor, ...]:
        """Return the tensors themselves."""
        return self._parts


def total_bytes(parts: tuple[Tensor, ...]) -> int:
    """Sum the bytes of tensors."""
    return sum(part.nbytes for part in parts)


def owned(parts: tuple[Tensor, ...], borrowed: Tensor | None) -> tuple[Tensor, ...]:
    """Return the parts, or copies of them if they are borrowed: what they hold now, whatever their owner does."""
    return parts if borrowed is None else tuple(part.clone() for part in parts)
