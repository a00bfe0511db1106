"""Which memory a tensor shows: what of its storage stands for it, and how the tensor is made from that again."""

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

# a tensor that shows at least this share of its storage is encoded with all of it: so the views of one storage
# (query, key and value of one projection) share one encoding, which never takes more than autograd itself would hold
_WHOLE = 1 / 4


def memory_of(tensor: Tensor) -> torch.UntypedStorage | str:
    """Return the memory that a tensor shows, or why there is none to manage."""
    if type(tensor) is not Tensor and type(tensor) is not nn.Parameter:
        return f"a tensor subclass ({type(tensor).__name__})"
    if tensor.is_nested:
        return "a nested tensor"
    try:
        return tensor.untyped_storage()
    except NotImplementedError:
        if tensor.layout is not torch.strided:
            return f"its layout is {tensor.layout}"
        return "a tensor inside of a transform of torch.func, without memory of its own"


def has_memory(storage: torch.UntypedStorage) -> bool:
    """Whether there are bytes to read; forward mode makes tensors of zeros for which there are none."""
    try:
        return storage.data_ptr() != 0
    except RuntimeError:
        return False


@dataclasses.dataclass(frozen=True, slots=True)
class Region:
    """The elements that stand for a tensor.

    Attributes:
        start: The first one's place in the storage, in elements.
        numel: How many.
        gathered: ``None`` if they are consecutive in the storage; otherwise the sizes and strides by which they were
            picked out of it.
    """

    start: int
    numel: int
    gathered: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    @classmethod
    def of(cls, tensor: Tensor, storage_bytes: int) -> "Region":
        """Choose what stands for ``tensor``: all of its storage, the stretch it spans, or its own elements only."""
        offset = int(tensor.storage_offset())
        if tensor.numel() == 0:
            return cls(offset, 0)
        strides = tensor.stride()
        sizes = tuple(1 if stride == 0 else size for size, stride in zip(tensor.shape, strides, strict=True))
        distinct = math.prod(sizes)
        span = 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        stored = storage_bytes // tensor.element_size()
        if min(distinct, span) >= _WHOLE * stored:
            return cls(0, stored)
        if span <= 2 * distinct or _overlaps(sizes, strides):
            return cls(offset, span)
        return cls(offset, distinct, (sizes, strides))

    def covers(self, other: "Region") -> bool:
        """Whether ``other`` can be made from these elements."""
        if self.gathered or other.gathered:
            return self == other
        return self.start <= other.start and other.start + other.numel <= self.start + self.numel

    def elements(self, tensor: Tensor, storage: torch.UntypedStorage) -> tuple[Tensor, bool]:
        """Return the elements ``(numel,)``, free of autograd's bookkeeping, and whether they are the storage's own."""
        # set_ instead of detach(): a detached dual tensor is still dual, and every op on it would compute tangents
        bare = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        if self.gathered is None:
            return bare.set_(storage, self.start, (self.numel,), (1,)), True
        sizes, strides = self.gathered
        return bare.set_(storage, self.start, sizes, strides).reshape(-1).clone(), False


def _overlaps(sizes: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether two indices may mean one element (sufficient and, for views that PyTorch makes, necessary)."""
    reached = 0
    for stride, size in sorted((stride, size) for size, stride in zip(sizes, strides, strict=True) if size > 1):
        if stride <= reached:
            return True
        reached += (size - 1) * stride
    return False


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """How a tensor shows its storage."""

    size: torch.Size
    stride: tuple[int, ...]
    offset: int
    conjugated: bool
    negated: bool

    @classmethod
    def of(cls, tensor: Tensor) -> "View":
        """Describe ``tensor``."""
        return cls(tensor.size(), tensor.stride(), int(tensor.storage_offset()), tensor.is_conj(), tensor.is_neg())

    def restore(self, flat: Tensor, region: Region) -> Tensor:
        """Make the tensor from the elements of ``region``; the offset too, where all of the storage stands for it."""
        if self.negated:
            # negating a strided view would make it contiguous
            flat = flat.neg()
        if region.gathered is None:
            offset = int(flat.storage_offset()) + self.offset - region.start
            tensor = flat.as_strided(self.size, self.stride, offset)
        else:
            sizes, strides = region.gathered
            spread = torch.empty_strided(sizes, strides, dtype=flat.dtype, device=flat.device)
            tensor = spread.copy_(flat.view(sizes)).as_strided(self.size, self.stride, 0)
        return tensor.conj() if self.conjugated else tensor
