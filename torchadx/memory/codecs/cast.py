"""Fewer bits by rounding to a shorter floating-point type."""

from typing import ClassVar

import torch
from torch import Tensor

from torchadx.memory.codecs._chunks import chunk_numel, spans
from torchadx.memory.codecs.codec import Codec, Declined, Encoded


class Cast(Codec):
    """Rounds float32 and float64 to a shorter type.

    Declines a tensor with a finite element that would become infinite. To know that, a GPU is waited for.
    """

    lossless = False
    _dtype: ClassVar[torch.dtype]

    def accepts(self, dtype: torch.dtype) -> bool:
        """Whether the type is longer: float32 or float64."""
        return dtype in (torch.float32, torch.float64)

    def encode(self, flat: Tensor) -> Encoded | Declined:
        """Round to nearest, ties to even."""
        info = torch.finfo(self._dtype)
        n, limit = flat.numel(), info.max
        short = torch.empty(n, dtype=self._dtype, device=flat.device)
        chunk = chunk_numel(flat, flat.dtype)
        scratch = torch.empty(min(n, chunk), dtype=flat.dtype, device=flat.device)
        for start, stop in spans(n, chunk):
            source, finite = flat[start:stop], scratch[: stop - start]
            torch.nan_to_num(source, 0, 0, 0, out=finite)
            if finite.abs_().amax() > limit:
                return Declined(f"it holds finite numbers beyond {limit:.6g}, the largest of {self._dtype}")
            short[start:stop] = source
        return Encoded((short,), n, flat.dtype)

    def decode(self, encoded: Encoded) -> Tensor:
        """Widen again."""
        return encoded.parts[0].to(encoded.dtype)

    def bound(self, flat: Tensor) -> Tensor:
        """Half the distance between neighbours in the shorter type, and what rounding twice adds to it.

        PyTorch rounds float64 to float32 first.
        """
        info = torch.finfo(self._dtype)
        relative = info.eps / 2 + (torch.finfo(torch.float32).eps if flat.dtype == torch.float64 else 0)
        return relative * flat.double().abs().clamp_min(info.tiny)


class BFloat16(Cast):
    """Rounds to bfloat16: half of float32's bytes, errors of up to 1/256 of an element."""

    name = "bf16"
    _dtype = torch.bfloat16


class Float16(Cast):
    """Rounds to float16: half of float32's bytes, errors of up to 1/2048 of an element; range up to 65504."""

    name = "fp16"
    _dtype = torch.float16
