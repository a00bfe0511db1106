"""What stores count, and the simplest thing that they hand out: tensors in memory."""

import threading

from torch import Tensor

from torchadx.memory._account import Account
from torchadx.memory.stores.store import Store, Stored


class Meter:
    """Bytes held, time waited and reloads of one store. Thread-safe; finalizers may call :meth:`release`.

    Args:
        total: Counts the same bytes, among others.
    """

    def __init__(self, total: "Meter | None" = None) -> None:
        self._total = total
        self._account = Account()
        self._lock = threading.Lock()
        self.waited = 0.0
        self.reloads = 0

    def hold(self, nbytes: int) -> None:
        """Count bytes in."""
        self._account.hold(nbytes)
        if self._total is not None:
            self._total.hold(nbytes)

    def release(self, nbytes: int) -> None:
        """Count bytes out."""
        self._account.release(nbytes)
        if self._total is not None:
            self._total.release(nbytes)

    def now(self) -> int:
        """Return the bytes held."""
        return self._account.now()

    def peak(self) -> int:
        """Return the most bytes that were ever held."""
        return self._account.peak()

    def add_wait(self, seconds: float) -> None:
        """Count time that a caller waited."""
        with self._lock:
            self.waited += seconds

    def add_reload(self) -> None:
        """Count contents that were brought back again."""
        with self._lock:
            self.reloads += 1


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

    def in_memory(self) -> tuple[Tensor, ...]:
        """Return the tensors themselves."""
        return self._parts

    def get(self) -> tuple[Tensor, ...]:
        """Return the tensors themselves."""
        return self._parts


def total_bytes(parts: tuple[Tensor, ...]) -> int:
    """Sum the bytes of tensors."""
    return sum(part.nbytes for part in parts)


def owned(parts: tuple[Tensor, ...], borrowed: Tensor | None) -> tuple[Tensor, ...]:
    """Return the parts, or copies of them if they are borrowed: what they hold now, whatever their owner does."""
    return parts if borrowed is None else tuple(part.clone() for part in parts)
