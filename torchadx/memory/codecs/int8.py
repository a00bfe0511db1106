"""Eight bits an element, and a scale for each block."""

import torch
from torch import Tensor

from torchadx.memory.codecs._symmetric import Symmetric


class Int8(Symmetric):
    """Rounds to multiples of 1/127 of the block's largest element: 0.258 of float32's bytes in blocks of 128."""

    codes_dtype = torch.int8
    largest, marked_largest, nan_number = 127, 126, -128
    special_codes = (0x7F, 0x81, 0x80)
    _kind, _default_block = "int8", 128

    def _to_codes(self, numbers: Tensor, codes: Tensor) -> None:
        codes.view(torch.int8).copy_(numbers.round_())

    def _to_numbers(self, codes: Tensor, out: Tensor) -> None:
        out.copy_(codes.view(torch.int8))
