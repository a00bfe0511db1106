"""Memory for results.

A result of a few MiB costs more to fault in, 4 KiB at a time, than to compute, and an allocator hands such memory back
as soon as it is free. So a plan keeps the memory of its last result, in huge pages where the kernel has them, and uses
it again once nobody holds that result any more.
"""

import mmap
import sys
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

_LEAST = 1 << 20
_HUGE_PAGE = 2 << 20


class Pages:
    """Memory for one result after another; what it keeps goes with it."""

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None
        self._lock = threading.Lock()

    def empty(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return an uninitialized tensor."""
        count = torch.Size(shape).numel()
        nbytes = count * dtype.itemsize
        if device.type != "cpu" or nbytes < _LEAST or not hasattr(mmap, "MADV_HUGEPAGE"):
            return torch.empty(shape, dtype=dtype, device=device)
        with self._lock:
            memory = self._free(-(-nbytes // _HUGE_PAGE) * _HUGE_PAGE)
            return torch.frombuffer(memory, dtype=dtype, count=count).view(*shape)

    def _free(self, nbytes: int) -> mmap.mmap:
        # a tensor that lies in it holds a reference; two are this object's and the call's own
        if self._memory is None or len(self._memory) != nbytes or sys.getrefcount(self._memory) > 2:
            self._memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        return self._memory
