"""The store that moves nothing."""

from torch import Tensor

from torchadx.memory.stores._meter import InMemory, MeteredStore, owned
from torchadx.memory.stores.store import Stored, same_device


class DeviceStore(MeteredStore):
    """Keeps tensors where they are: for what a codec made small enough.

    It has no threads, buffers or files, so what it holds can still be read after :meth:`close`.

    >>> import torch
    >>> store = DeviceStore()
    >>> stored = store.put((torch.ones(256),))
    >>> store.bytes_now
    1024
    >>> del stored
    >>> store.bytes_now, store.bytes_peak
    (0, 1024)
    """

    name = "device"

    @property
    def resident_now(self) -> int:
        """Bytes of all it holds."""
        return self.bytes_now

    def put(self, parts: tuple[Tensor, ...], borrowed: Tensor | None = None) -> Stored:
        """Hold tensors by reference, or copies of borrowed ones."""
        same_device(parts)
        return InMemory(owned(parts, borrowed), self._meter)

    def flush(self) -> None:
        """Return at once: nothing is ever under way."""

    def close(self) -> None:
        """Return at once: there is nothing to free."""
