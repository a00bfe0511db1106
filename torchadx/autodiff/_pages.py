"""Memory for large results.

Beyond 32 MiB an allocator hands pages back at once, so that every result is faulted in anew, 4 KiB at a time: more work
than the product that fills it. Asked for huge pages, the kernel does it in a five-hundredth of the faults.
"""

import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

_LARGE = 32 << 20
_HUGE_PAGE = 2 << 20


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return an uninitialized tensor; a large one on a CPU lies in huge pages where the kernel has them."""
    count = torch.Size(shape).numel()
    nbytes = count * dtype.itemsize
    if device.type != "cpu" or nbytes < _LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    whole = -(-nbytes // _HUGE_PAGE) * _HUGE_PAGE
    memory = mmap.mmap(-1, whole, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype, count=count).view(*shape)
