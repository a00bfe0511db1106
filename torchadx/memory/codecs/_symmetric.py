"""Codes that are numbers around zero, in units of their block's scale: what ``int8``, ``int4`` and ``fp8`` share."""

import abc

import torch
from torch import Tensor

from torchadx.memory.codecs._blockwise import Blockwise
from torchadx.memory.codecs._scales import NUDGE, all_finite, finite_or, flush, mark, restore_special


class Symmetric(Blockwise):
    """Scales a block by its largest element, and rounds to the numbers of a code.

    Attributes:
        largest: The number that the largest element of a block becomes.
        marked_largest: The same in blocks with infinities or NaN, which leave ``largest`` to infinity.
        nan_number: What NaN is, before it is rounded to a code.
        special_codes: The codes of infinity, minus infinity and NaN in such blocks.
    """

    largest: float
    marked_largest: float
    nan_number: float
    special_codes: tuple[int, int, int]

    @abc.abstractmethod
    def _to_codes(self, numbers: Tensor, codes: Tensor) -> None:
        """Round numbers, which may be overwritten, to codes of a byte each."""

    @abc.abstractmethod
    def _to_numbers(self, codes: Tensor, out: Tensor) -> None:
        """Write the numbers that codes stand for."""

    def _quantize(self, x: Tensor, scratch: Tensor, codes: Tensor, scales: list[Tensor]) -> None:
        (scale,) = scales
        size = torch.amax(torch.abs(x, out=scratch), 1)
        marked = None if all_finite(size) else ~size.isfinite()
        if marked is None:
            torch.mul(size, NUDGE / self.largest, out=scale)
        else:
            size = torch.amax(finite_or(0, scratch, out=scratch), 1)
            scale.copy_(torch.where(marked, size * (NUDGE / self.marked_largest), size * (NUDGE / self.largest)))
        flush(scale)
        # one division a block instead of one an element; elements of a block with scale 0 become 0 in units of 1 too
        inverse = scale.reciprocal().nan_to_num_(posinf=1.0)
        torch.mul(x, inverse[:, None], out=scratch)
        if marked is not None:
            torch.nan_to_num(scratch, self.nan_number, self.largest, -self.largest, out=scratch)
            mark(scale, marked)
        self._to_codes(scratch, codes)

    def _dequantize(self, codes: Tensor, scales: list[Tensor], out: Tensor) -> None:
        (scale,) = scales
        self._to_numbers(codes, out)
        out *= scale.abs()[:, None]
        restore_special(codes, scale, self.special_codes, out)

    def _rounding(self, x: Tensor, tiny: float) -> Tensor:
        """Bound it by half a step; in blocks whose scale is 0, elements become 0 and lose all of themselves."""
        marked = ~x.isfinite().all(1, keepdim=True)
        size = finite_or(0, x).abs().amax(1, keepdim=True)
        scale = torch.where(marked, size / self.marked_largest, size / self.largest)
        # whether it was rounded down to 0 is left open close to the limit
        return torch.where(scale < 1.01 * tiny, size, 0.0).maximum(self._half_step(x, scale))

    def _half_step(self, x: Tensor, scale: Tensor) -> Tensor:
        """Return half the distance between the neighbouring numbers around each element, or more."""
        return scale / 2
