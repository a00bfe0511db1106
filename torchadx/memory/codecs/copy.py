"""The elements as they are, in memory of their own."""

import torch
from torch import Tensor

from torchadx.memory.codecs.codec import Encoded, LosslessCodec


class Copy(LosslessCodec):
    """A snapshot: its source may change in place afterwards, or be freed with the large storage that it is part of."""

    name = "copy"

    def accepts(self, dtype: torch.dtype) -> bool:
        """Any type."""
        return True

    def encode(self, flat: Tensor) -> Encoded:
        """Copy."""
        return Encoded((flat.clone(),), flat.numel(), flat.dtype)

    def decode(self, encoded: Encoded) -> Tensor:
        """Copy again, so that what is given out may be written to."""
        return encoded.parts[0].clone()
