"""Four bits an element, and a scale for each block."""

import torch
from torch import Tensor

from torchadx.memory.codecs._symmetric import Symmetric


class Int4(Symmetric):
    """Rounds to multiples of 1/7 of the block's largest element: 0.141 of float32's bytes in blocks of 64."""

    bits = 4
    largest, marked_largest, nan_number = 7, 6, -8
    special_codes = (0x7, 0x9, 0x8)
    _kind, _default_block = "int4", 64

    def _to_codes(self, numbers: Tensor, codes: Tensor) -> None:
        codes.view(torch.int8).copy_(numbers.round_())
        codes &= 0xF

    def _to_numbers(self, codes: Tensor, out: Tensor) -> None:
        # two's complement: the highest bit counts -8
        out.copy_((codes ^ 8).view(torch.int8).sub_(8))
