"""Truth values at one bit each."""

import torch
from torch import Tensor

from torchadx.memory.codecs._bits import WORDS, pack, packed_numel, unpack
from torchadx.memory.codecs._chunks import chunk_numel, spans
from torchadx.memory.codecs.codec import Declined, Encoded, LosslessCodec

_NUMBERS = (torch.uint8, torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Mask(LosslessCodec):
    """Packs booleans, and numbers that are all 0 or 1, eight to a byte.

    Declines numbers other than these, minus zero too. To see whether there are any, a GPU is waited for; booleans need
    no looking at.
    """

    name = "mask"

    def accepts(self, dtype: torch.dtype) -> bool:
        """Whether it is bool, uint8, float64, float32, float16 or bfloat16."""
        return dtype == torch.bool or dtype in _NUMBERS

    def encode(self, flat: Tensor) -> Encoded | Declined:
        """Pack, the first element into the lowest bit."""
        packed = torch.empty(packed_numel(flat.numel(), 1), dtype=torch.uint8, device=flat.device)
        for start, stop in spans(flat.numel(), chunk_numel(flat, flat.dtype)):
            ones = _ones(flat[start:stop])
            if ones is None:
                return Declined("it holds numbers other than 0 and 1")
            pack(ones, 1, packed[start // 8 : packed_numel(stop, 1)])
        return Encoded((packed,), flat.numel(), flat.dtype)

    def decode(self, encoded: Encoded) -> Tensor:
        """Unpack."""
        (packed,), n, dtype, _ = encoded
        flat = torch.empty(n, dtype=dtype, device=packed.device)
        target = flat.view(torch.uint8) if dtype == torch.bool else flat
        for start, stop in spans(n, chunk_numel(flat, dtype)):
            target[start:stop] = unpack(packed[start // 8 : packed_numel(stop, 1)], 1, stop - start)
        return flat


def _ones(flat: Tensor) -> Tensor | None:
    """Return where elements are 1, as new bytes 0 and 1; ``None`` if any is neither 0 nor 1."""
    if flat.dtype == torch.bool:
        # memory that nobody wrote may hold other bytes, which would spill over to their neighbours
        return torch.ne(flat.view(torch.uint8), 0, out=torch.empty(flat.shape, dtype=torch.uint8, device=flat.device))
    # bits tell 0 from minus zero
    words = flat.view(WORDS[flat.element_size()])
    one = int(torch.ones(1, dtype=flat.dtype).view(words.dtype))
    # ATen compares fastest where the result has the dtype of what is compared
    ones = torch.eq(words, one, out=torch.empty_like(words))
    others = torch.count_nonzero(words - ones * one)
    return None if others else ones.to(torch.uint8, copy=True)
