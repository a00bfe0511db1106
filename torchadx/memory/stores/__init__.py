"""Where encoded tensors are kept until backward: on the device, in host memory, on disk."""

from torchadx.memory.stores._files import DiskFullError
from torchadx.memory.stores.device import DeviceStore
from torchadx.memory.stores.disk import DiskStore
from torchadx.memory.stores.host import HostStore
from torchadx.memory.stores.store import StaleCopyError, Store, Stored

#: every store by the name that policy strings use; a new one is a new line here
STORES: dict[str, type[Store]] = {store.name: store for store in (DeviceStore, HostStore, DiskStore)}

__all__ = ["STORES", "DeviceStore", "DiskFullError", "DiskStore", "HostStore", "StaleCopyError", "Store", "Stored"]
