"""Work on large tensors in pieces whose temporaries stay in the processor's cache."""

from collections.abc import Iterator

import torch
from torch import Tensor

from torchadx import dispatch

# a few temporaries of this size fit the cache that each core has for itself
_CACHED_BYTES = 1 << 20
# accelerators want much work at once; this keeps temporaries small beside the tensors that are worth encoding
_ACCELERATOR_BYTES = 1 << 26


def chunk_numel(tensor: Tensor, dtype: torch.dtype) -> int:
    """Return how many elements to treat at once where temporaries have this dtype; a multiple of 4096."""
    if dispatch.on_accelerator(tensor):
        return _ACCELERATOR_BYTES // dtype.itemsize
    # ATen divides an op among its threads, and each should get as much as one would alone
    return _CACHED_BYTES // dtype.itemsize * torch.get_num_threads()


def spans(numel: int, chunk: int) -> Iterator[tuple[int, int]]:
    """Yield the starts and ends of chunks."""
    for start in range(0, numel, chunk):
        yield start, min(start + chunk, numel)
