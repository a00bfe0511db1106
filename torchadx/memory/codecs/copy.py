"""The elements as they are, in memory of their own."""

import torch
from torch import Tensor

from torchadx.memory.codecs.codec import Codec, Encoded


class Copy(Codec):
    """A snapshot: its source may change in place afterwards, or be freed with the large storage that it is part of."""

    name = "copy"
    lossless = True

    def accepts(self, dtype: torch.dtype) -> bool:
        """Any type."""
        return True

    def encode(self, flat: Tensor) -> Encoded:
        """Copy."""
        return Encoded((flat.clone(),), flat.numel(), flat.dtype)

    def decode(self, encoded: Encoded) -> Tensor:
        """Copy again, so that what is given out may be written to."""
        return encoded.parts[0].clone()

    def bound(self, flat: Tensor) -> Tensor:
        """No error."""
        return torch.zeros(flat.shape, dtype=torch.float64, device=flat.device)
