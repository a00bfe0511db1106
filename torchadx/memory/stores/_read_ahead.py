"""Which of the things in a store to bring back before they are asked for. No I/O, no clock, no thread."""

import collections
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar


class Item:
    """Something in a store, between what was put before it and after it.

    Attributes:
        nbytes: Its size, as the window counts it.
        ahead: Whether it is brought back, or about to be, and not yet taken.
    """

    __slots__ = ("_newer", "_older", "_serial", "_sweep", "ahead", "nbytes")

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.ahead = False
        self._serial = 0
        self._sweep = 0
        self._older: Any = None
        self._newer: Any = None


ItemT = TypeVar("ItemT", bound=Item)
# depth stops doubling here: the window in bytes is the real bound
_DEEPEST = 1 << 20


class ReadAhead(Generic[ItemT]):
    """Brings items back in the reverse of the order in which they were put, as backward takes them.

    A sweep starts where an item is taken that nobody foresaw, and goes on to older ones. How many items it runs ahead
    begins with one and doubles with every item that it foresaw, as long as their bytes fit into the window, so that
    another order brings little in vain. One surprise alone (a tensor that several ops saved) does not end a sweep; a
    second in a row does, and so does an item newer than the sweep. What earlier sweeps brought back stays until the
    room is needed.

    Its owner calls it under a lock.

    Attributes:
        nbytes: Bytes of the items ahead, never more than the window.

    Args:
        window_bytes: The most bytes ahead.
    """

    def __init__(self, window_bytes: int) -> None:
        self.nbytes = 0
        self._window = window_bytes
        self._newest: ItemT | None = None
        self._serials = 0
        # those of earlier sweeps come first
        self._ahead: collections.OrderedDict[ItemT, None] = collections.OrderedDict()
        self._sweep = 0
        self._start = 0
        self._depth, self._deepest = 0, 1
        self._next: ItemT | None = None
        self._surprised = False

    def __iter__(self) -> Iterator[ItemT]:
        """Iterate over all items, newest first."""
        item = self._newest
        while item is not None:
            yield item
            item = item._older

    def append(self, item: ItemT) -> None:
        """Note that an item was put."""
        self._serials += 1
        item._serial = self._serials
        item._older = self._newest
        if self._newest is not None:
            self._newest._newer = item
        self._newest = item

    def remove(self, item: ItemT) -> None:
        """Forget an item for good; it is ahead no longer."""
        if item.ahead:
            self._leave(item)
        if self._next is item:
            self._next = item._older
        if item._newer is not None:
            item._newer._older = item._older
        else:
            self._newest = item._older
        if item._older is not None:
            item._older._newer = item._newer
        item._older = item._newer = None

    def take(self, item: ItemT) -> None:
        """Note that an item is needed now; it is ahead no longer."""
        if item.ahead:
            self._leave(item)
            self._surprised = False
            self._deepest = min(2 * self._deepest, _DEEPEST)
        elif item is self._next:
            # foreseen, only that there was no room for it
            self._surprised = False
            self._next = item._older
        else:
            self._surprise(item)

    def _surprise(self, item: ItemT) -> None:
        if self._surprised or self._depth == 0 or item._serial > self._start:
            self._sweep += 1
            self._start = item._serial
            self._next = item._older
            self._depth, self._deepest = 0, 1
        self._surprised = True

    def advance(self, bring: Callable[[ItemT], None], let_go: Callable[[ItemT], None]) -> None:
        """Bring back older items, as far as the sweep goes now.

        Args:
            bring: Starts to bring an item back.
            let_go: Told that an item is ahead no longer, though nobody took it.
        """
        while (item := self._next) is not None and self._depth < self._deepest:
            if item.ahead:
                self._ahead.move_to_end(item)
            elif self._make_room(item.nbytes, let_go):
                self._ahead[item] = None
                item.ahead = True
                self.nbytes += item.nbytes
                bring(item)
            else:
                return
            item._sweep = self._sweep
            self._depth += 1
            self._next = item._older

    def _make_room(self, nbytes: int, let_go: Callable[[ItemT], None]) -> bool:
        """Let go of items of earlier sweeps, the ones that came first, as far as that makes room."""
        if nbytes > self._window:
            return False
        while self.nbytes + nbytes > self._window and len(self._ahead) > self._depth:
            stale = next(iter(self._ahead))
            self._leave(stale)
            let_go(stale)
        return self.nbytes + nbytes <= self._window

    def _leave(self, item: ItemT) -> None:
        del self._ahead[item]
        item.ahead = False
        self.nbytes -= item.nbytes
        if item._sweep == self._sweep:
            self._depth -= 1
