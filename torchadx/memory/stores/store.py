"""The contract of a store: a place for the parts of encoded tensors."""

import abc

import torch
from torch import Tensor


class StaleCopyError(RuntimeError):
    """A tensor changed in place while its copy was under way, so that the copy may be of neither state."""


class Stored(abc.ABC):
    """Some tensors in a store. Whoever holds it keeps them there: dropping the last reference frees their place.

    It may be dropped in any thread and at any moment (by garbage collection), which never blocks.

    Attributes:
        nbytes: Bytes of the tensors.
    """

    __slots__ = ("__weakref__", "nbytes")
    nbytes: int

    def in_memory(self) -> tuple[Tensor, ...]:
        """Return the tensors as far as they are in memory as such; this starts nothing, and counts nothing."""
        return ()

    @abc.abstractmethod
    def get(self) -> tuple[Tensor, ...]:
        """Return the tensors on the device they came from. Repeatable, from any thread; must not be written to.

        Raises:
            StaleCopyError: A borrowed tensor changed in place before its copy was complete.
            RuntimeError: The store was closed.
        """


class Store(abc.ABC):
    """Holds tensors in one kind of memory. Thread-safe.

    Attributes:
        name: As policy strings write it.
    """

    name: str

    @classmethod
    def within(cls, window_bytes: int | None) -> "Store":
        """Make one with the usual settings, but for at most so many bytes under way, where it copies beside others."""
        return cls()

    @property
    @abc.abstractmethod
    def bytes_now(self) -> int:
        """Bytes of what it holds now."""

    @property
    @abc.abstractmethod
    def bytes_peak(self) -> int:
        """The most bytes it ever held."""

    @property
    @abc.abstractmethod
    def resident_now(self) -> int:
        """Bytes that it takes up now in the memory of the device its tensors came from.

        For a store elsewhere these are copies in flight: not yet written, or read ahead of their use.
        """

    @property
    @abc.abstractmethod
    def seconds_waited(self) -> float:
        """Sum of the time that callers of ``put`` and ``get`` spent waiting for copies."""

    @property
    @abc.abstractmethod
    def reloads(self) -> int:
        """How many times contents were brought back that had been brought back before."""

    @abc.abstractmethod
    def put(self, parts: tuple[Tensor, ...], borrowed: Tensor | None = None) -> Stored:
        """Take tensors in, all of them on one device. What is held is not changed if it raises.

        Args:
            parts: Contiguous, detached tensors without a lazy conjugation or negation.
            borrowed: ``None`` if the parts are the store's own from now on. Otherwise a tensor that shares memory and
                version counter with the parts, whose owner may change it in place at any time.

        Raises:
            ValueError: The parts are on several devices.
        """

    @abc.abstractmethod
    def flush(self) -> None:
        """Wait until all writing and freeing under way is done."""

    @abc.abstractmethod
    def close(self) -> None:
        """Free threads, buffers and files; what needs these to be read cannot be read any more.

        Repeatable. The next ``put`` opens the store again.
        """


def same_device(parts: tuple[Tensor, ...]) -> torch.device:
    """Return the one device the parts are on, the CPU for none.

    Raises:
        ValueError: They are on several.
    """
    devices = {part.device for part in parts}
    if len(devices) > 1:
        raise ValueError(f"parts of one tensor are on one device; got {sorted(map(str, devices))}")
    return devices.pop() if devices else torch.device("cpu")
