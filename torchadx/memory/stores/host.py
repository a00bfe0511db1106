"""The store in host memory."""

import threading

import torch
from torch import Tensor

from torchadx import dispatch
from torchadx.memory.stores._copies import Copies, CopiesItem
from torchadx.memory.stores._meter import InMemory, Meter, MeteredStore, owned
from torchadx.memory.stores._pool import SlabPool
from torchadx.memory.stores.store import Stored, same_device

_WINDOW = 256 << 20


class HostStore(MeteredStore):
    """Keeps tensors in host memory.

    Those of a GPU are copied there and back by streams of the store's own, while the GPU computes: into pinned memory,
    which is cut out of slabs that are used again and again, and back shortly before backward needs them. Those that are
    in host memory already are held by reference, or copied if they are borrowed; they can still be read after
    :meth:`close`.

    Args:
        pool_bytes: The most bytes of pinned memory. What exceeds it is put into pageable memory, which is slower:
            see ``pageable_bytes``.
        slab_bytes: Pinned memory is made this much at a time (a power of two), or more where one tensor needs more.
        window_bytes: For each device, the most bytes that are being copied out (one larger tensor may, alone; ``put``
            waits where more would be), and the most that are copied back ahead.
        pin: ``False`` to use pageable memory only.

    Raises:
        ValueError: ``slab_bytes`` is no power of two, or a number is negative.

    >>> store = HostStore()
    >>> stored = store.put((torch.ones(256),))
    >>> store.bytes_now, store.resident_now, store.pinned_bytes
    (1024, 1024, 0)
    """

    name = "host"

    def __init__(
        self,
        *,
        pool_bytes: int = 4 << 30,
        slab_bytes: int = 64 << 20,
        window_bytes: int = _WINDOW,
        pin: bool = True,
    ) -> None:
        """Make a store without any pinned memory yet."""
        super().__init__()
        if pool_bytes < 0 or window_bytes < 0:
            raise ValueError(f"expected pool_bytes >= 0 and window_bytes >= 0; got {pool_bytes=}, {window_bytes=}")
        self._new_pool = lambda: SlabPool(pool_bytes, slab_bytes, pin)
        self._window = window_bytes
        self._adopted = Meter(total=self._meter)
        self._opening = threading.Lock()
        self._pool = self._new_pool()
        self._copies: dict[torch.device, Copies] = {}

    @classmethod
    def within(cls, window_bytes: int | None) -> "HostStore":
        """Make one with the usual settings, and at most so many bytes under way."""
        return cls() if window_bytes is None else cls(window_bytes=min(window_bytes, _WINDOW))

    @property
    def pinned_bytes(self) -> int:
        """Bytes of pinned memory, in use or kept for use."""
        return self._pool.pinned_bytes

    @property
    def pageable_bytes(self) -> int:
        """Bytes of a GPU's tensors in pageable memory, for which the pool had no room."""
        return self._pool.pageable_bytes

    @property
    def resident_now(self) -> int:
        """Bytes of tensors that were in host memory from the start, and of copies in flight on a GPU."""
        return self._adopted.now() + sum(copies.on_device() for copies in list(self._copies.values()))

    def put(self, parts: tuple[Tensor, ...], borrowed: Tensor | None = None) -> Stored:
        """Hold tensors, or begin to copy them. Waits while the window is full.

        Raises:
            ValueError: The parts are on several devices.
            RuntimeError: They are on a device for which PyTorch has no streams.
        """
        device = same_device(parts)
        if not any(part.nbytes for part in parts) or not dispatch.on_accelerator(parts[0]):
            return InMemory(owned(parts, borrowed), self._adopted)
        copies = self._open(device)
        return _OnHost(copies, copies.put(parts, borrowed))

    def _open(self, device: torch.device) -> Copies:
        with self._opening:
            if device not in self._copies:
                self._copies[device] = Copies(device, self._pool, self._window, self._meter)
            return self._copies[device]

    def flush(self) -> None:
        """Wait for the copies under way."""
        for copies in list(self._copies.values()):
            copies.flush()

    def close(self) -> None:
        """Free pinned memory, and with it what was copied there."""
        with self._opening:
            closing, self._copies, self._pool = self._copies, {}, self._new_pool()
        for copies in closing.values():
            copies.close()

    def _settle(self) -> None:
        for copies in list(self._copies.values()):
            copies.settle()


class _OnHost(Stored):
    """Tensors of an accelerator in host memory."""

    __slots__ = ("_copies", "_item")

    def __init__(self, copies: Copies, item: CopiesItem) -> None:
        self.nbytes = item.nbytes
        self._copies, self._item = copies, item

    def __del__(self) -> None:
        self._copies.drop(self._item)

    def get(self) -> tuple[Tensor, ...]:
        return self._copies.get(self._item)
