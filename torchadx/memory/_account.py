"""Bytes that come and go, where finalizers may be who lets them go."""

import collections
import threading

# changes that wait to be summed
_MOST_CHANGES = 4096


class Account:
    """Bytes that are held, and the most that ever were.

    Finalizers release them, in any thread and at any moment, so that takes no lock: changes are noted in their order,
    and summed when someone asks.
    """

    __slots__ = ("_changes", "_held", "_lock", "_peak")

    def __init__(self) -> None:
        self._held = self._peak = 0
        self._changes: collections.deque[int] = collections.deque()
        self._lock = threading.Lock()

    def hold(self, nbytes: int) -> None:
        """Count bytes in."""
        self._changes.append(nbytes)
        if len(self._changes) >= _MOST_CHANGES:
            self.now()

    def release(self, nbytes: int) -> None:
        """Count bytes out."""
        self._changes.append(-nbytes)

    def now(self) -> int:
        """Return the bytes held."""
        with self._lock:
            while self._changes:
                self._held += self._changes.popleft()
                if self._held > self._peak:
                    self._peak = self._held
            return self._held

    def peak(self) -> int:
        """Return the most bytes held since :meth:`restart`."""
        self.now()
        return self._peak

    def restart(self) -> None:
        """Begin a new peak."""
        self._peak = self.now()
