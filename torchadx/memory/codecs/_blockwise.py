"""Blocks of elements as short codes, with a scale each: what the codecs of this kind share.

A block with infinities or NaN is marked by the sign bit of its scale, and sets codes apart for them. On a GPU the work
is done by :mod:`torchadx.kernels.quantize`; the ATen implementation gives the same parts bit by bit.
"""

import abc
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from torchadx import dispatch
from torchadx.memory.codecs._bits import pack, packed_numel, unpack
from torchadx.memory.codecs._chunks import chunk_numel
from torchadx.memory.codecs._scales import finite_or
from torchadx.memory.codecs.codec import Codec, Encoded

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Blockwise(Codec):
    """A codec that scales blocks of elements, rounds what it gets to codes, and keeps codes and scales.

    Attributes:
        bits: Size of a code.
        codes_dtype: Type of the part that holds codes.
        scales_per_block: How many numbers describe a block.
    """

    lossless = False
    bits: ClassVar[int] = 8
    codes_dtype: ClassVar[torch.dtype] = torch.uint8
    scales_per_block: ClassVar[int] = 1
    _default_block: ClassVar[int]
    _kind: str

    def __init__(self, block: int | None = None) -> None:
        """Make the codec, for blocks of other than its usual size if one is given.

        Args:
            block: Elements that share a scale: a power of two from 16 to 4096.

        Raises:
            ValueError: It is not.
        """
        self._block = self._default_block if block is None else block
        if not 16 <= self._block <= 4096 or self._block & (self._block - 1):
            raise ValueError(
                f"codec '{self._kind}:{block}': expected a power of two from 16 to 4096, the elements of a block, "
                f"e.g. '{self._kind}:{self._default_block}'"
            )
        self.name = self._kind if self._block == self._default_block else f"{self._kind}:{self._block}"

    @classmethod
    def of(cls, option: str | None) -> "Blockwise":
        """Make the codec; the option is the size of blocks, as in ``"int8:64"``.

        Raises:
            ValueError: The option is not a size that blocks can have.
        """
        if option is not None and not option.isdecimal():
            raise ValueError(f"codec '{cls._kind}:{option}': expected a number of elements, as in '{cls._kind}:64'")
        return cls(None if option is None else int(option))

    def accepts(self, dtype: torch.dtype) -> bool:
        """Whether it is float64, float32, float16 or bfloat16."""
        return dtype in _DTYPES

    def encode(self, flat: Tensor) -> Encoded:
        """Return codes, earlier elements in lower bits, and one scale for each block (``int2``: steps, then lows).

        Scales are float32, and float64 for float64 elements. Where Triton serves the tensor it takes one launch, and
        nothing waits for the device in any case.
        """
        if dispatch.select("quantize", flat).backend == "triton":
            from torchadx.kernels.quantize import quantize

            return Encoded(quantize(flat, self._block, self._kind), flat.numel(), flat.dtype)
        return Encoded(self._encode(flat), flat.numel(), flat.dtype)

    def decode(self, encoded: Encoded) -> Tensor:
        """Multiply codes by scales, and round once to the dtype."""
        codes, *scales = encoded.parts
        # its dtype tells the dtypes that Triton serves from float64, as that of the elements does
        if dispatch.select("dequantize", scales[0]).backend == "triton":
            from torchadx.kernels.quantize import dequantize

            return dequantize(encoded.parts, encoded.numel, encoded.dtype, self._block, self._kind)
        return self._decode(codes.view(torch.uint8), scales, encoded.numel, encoded.dtype)

    def bound(self, flat: Tensor) -> Tensor:
        """Bound the error, in units of the elements, by three terms.

        1. What rounding to codes changes, in exact arithmetic: :meth:`_rounding`. It is computed for the exact scale,
           of which the codec's is the rounded-down neighbour: ``scale * (1 - 2**-21) < codec's scale < scale``. So an
           element is at most ``1 + 2**-21`` times the largest code, which rounds to that code.
        2. Roundings of the arithmetic in the scales' dtype: two in the element times the reciprocal of the scale, one
           in the code times the scale (``int2``: six, in thresholds and levels), each by at most ``eps / 2`` of the
           block's largest element; together less than ``8 * eps`` of it.
        3. The last rounding, to the elements' dtype: ``eps / 2`` of the decoded number, or half a subnormal step.
        """
        if not flat.numel():
            return flat.double()
        missing = -flat.numel() % self._block
        # the last element once more changes neither the largest of a block nor the smallest
        x = torch.cat([flat, flat[-1:].expand(missing)]).double().view(-1, self._block)
        info, scale_info = torch.finfo(flat.dtype), torch.finfo(_scale_dtype(flat.dtype))
        size = finite_or(0, x).abs().amax(1, keepdim=True)
        # what is multiplied with a scale, and the scale itself, are off by a few units in the last place
        error = self._rounding(x, scale_info.tiny) + 8 * scale_info.eps * size
        error = error + info.eps / 2 * (x.abs() + error) + info.tiny * info.eps
        return error.view(-1)[: flat.numel()]

    @abc.abstractmethod
    def _rounding(self, x: Tensor, tiny: float) -> Tensor:
        """Bound what rounding to codes changes in blocks ``(nblocks, block)``, with scales under ``tiny`` being 0."""

    @abc.abstractmethod
    def _quantize(self, x: Tensor, scratch: Tensor, codes: Tensor, scales: list[Tensor]) -> None:
        """Write one byte an element, of which the lowest bits count, and the scales of blocks ``(nblocks, block)``."""

    @abc.abstractmethod
    def _dequantize(self, codes: Tensor, scales: list[Tensor], out: Tensor) -> None:
        """Undo :meth:`_quantize`, where higher bits of codes are zeros."""

    def _encode(self, flat: Tensor) -> tuple[Tensor, ...]:
        n, dtype, device = flat.numel(), _scale_dtype(flat.dtype), flat.device
        codes = torch.empty(packed_numel(n, self.bits), dtype=torch.uint8, device=device)
        scales = [torch.empty(-(-n // self._block), dtype=dtype, device=device) for _ in range(self.scales_per_block)]
        chunk = chunk_numel(flat, dtype)
        buffers = torch.empty((2, min(n, chunk)), dtype=dtype, device=device)
        byte_codes = torch.empty(min(n, chunk), dtype=torch.uint8, device=device)
        for x, packed, *part in self._chunks(chunk, flat, codes, scales):
            wide, scratch = (buffer[: x.numel()].view(x.shape) for buffer in buffers)
            to = packed if self.bits == 8 else byte_codes[: x.numel()].view(x.shape)
            self._quantize(x if x.dtype == dtype else wide.copy_(x), scratch, to, part)
            if self.bits < 8:
                pack(to.view(-1), self.bits, packed.view(-1))
        return codes.view(self.codes_dtype), *scales

    def _decode(self, codes: Tensor, scales: list[Tensor], n: int, dtype: torch.dtype) -> Tensor:
        flat = torch.empty(n, dtype=dtype, device=codes.device)
        chunk = chunk_numel(flat, scales[0].dtype)
        buffer = torch.empty(min(n, chunk), dtype=scales[0].dtype, device=codes.device)
        for x, packed, *part in self._chunks(chunk, flat, codes, scales):
            wide = x if dtype == buffer.dtype else buffer[: x.numel()].view(x.shape)
            if self.bits < 8:
                packed = unpack(packed.view(-1), self.bits, x.numel()).view(x.shape)
            self._dequantize(packed, part, wide)
            if wide is not x:
                x.copy_(wide)
        return flat

    def _chunks(self, chunk: int, flat: Tensor, codes: Tensor, scales: list[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """Yield elements ``(nblocks, block)``, up to ``chunk`` at once, with their bytes of codes and their scales.

        The last block comes by itself if it is shorter.
        """
        nblocks, rest = divmod(flat.numel(), self._block)
        end, end_codes = nblocks * self._block, nblocks * self._block * self.bits // 8
        if nblocks:
            whole = flat[:end].view(nblocks, -1), codes[:end_codes].view(nblocks, -1), *(t[:nblocks] for t in scales)
            yield from zip(*(t.split(max(1, chunk // self._block)) for t in whole), strict=True)
        if rest:
            yield flat[end:].view(1, -1), codes[end_codes:].view(1, -1), *(t[nblocks:] for t in scales)


def _scale_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
