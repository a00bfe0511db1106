"""Tensors with many zeros, such as relu's outputs, as a bit an element and the elements that are not zero."""

import torch
import torch.nn.functional as F
from torch import Tensor

from torchadx.memory.codecs._bits import WORDS, pack, packed_numel, unpack
from torchadx.memory.codecs._chunks import chunk_numel, spans
from torchadx.memory.codecs.codec import Declined, Encoded, LosslessCodec


class Sparse(LosslessCodec):
    """Leaves out the elements whose bits are all zero (so minus zero stays), and marks where they were.

    Declines a tensor that would not shrink. The size depends on the data, so a GPU is waited for.
    """

    name = "sparse"

    def accepts(self, dtype: torch.dtype) -> bool:
        """Whether it is a floating-point or complex type of up to eight bytes an element."""
        return (dtype.is_floating_point or dtype.is_complex) and dtype.itemsize in WORDS

    def encode(self, flat: Tensor) -> Encoded | Declined:
        """Return a bit for every element, the first in the lowest bit of a byte, and the elements that are not zero."""
        words = flat.view(WORDS[flat.element_size()])
        kept = int(torch.count_nonzero(words))
        nbytes = packed_numel(flat.numel(), 1) + kept * flat.element_size()
        if nbytes >= flat.nbytes:
            return Declined(f"it would not shrink: {flat.numel() - kept} of {flat.numel()} elements are zero")
        packed = torch.empty(packed_numel(flat.numel(), 1), dtype=torch.uint8, device=flat.device)
        values = torch.empty(kept, dtype=words.dtype, device=flat.device)
        filled = 0
        for start, stop in spans(flat.numel(), chunk_numel(flat, flat.dtype)):
            chunk = words[start:stop]
            # ATen compares fastest where the result has the dtype of what is compared
            present = torch.ne(chunk, 0, out=torch.empty_like(chunk)).to(torch.uint8, copy=True)
            places, count = _places(present)
            # zeros fall into place 0
            found = values.new_empty(count + 1).scatter_(0, places, chunk)
            values[filled : filled + count] = found[1:]
            filled += count
            pack(present, 1, packed[start // 8 : packed_numel(stop, 1)])
        return Encoded((packed, values), flat.numel(), flat.dtype)

    def decode(self, encoded: Encoded) -> Tensor:
        """Put the elements back among zeros."""
        (packed, values), n, dtype, _ = encoded
        words = torch.empty(n, dtype=values.dtype, device=values.device)
        taken = 0
        for start, stop in spans(n, chunk_numel(words, words.dtype)):
            places, count = _places(unpack(packed[start // 8 : packed_numel(stop, 1)], 1, stop - start))
            chosen = F.pad(values[taken : taken + count], (1, 0))
            torch.index_select(chosen, 0, places, out=words[start:stop])
            taken += count
        return words.view(dtype)


def _places(present: Tensor) -> tuple[Tensor, int]:
    """Number the elements that are present from 1, give the others 0, and count them.

    Indices instead of masks, because ATen's loops over masks branch at every element.
    """
    places = torch.cumsum(present, 0)
    count = int(places[-1])
    places *= present
    return places, count
