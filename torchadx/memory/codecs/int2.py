"""Two bits an element, and a range for each block."""

import torch
from torch import Tensor

from torchadx.memory.codecs._blockwise import Blockwise
from torchadx.memory.codecs._scales import NUDGE, all_finite, finite_or, flush, mark, restore_special


class Int2(Blockwise):
    """Rounds to four levels between the block's extremes, both included: 0.094 of float32's bytes in blocks of 64.

    In a block with infinities or NaN, which need three of the codes, all finite elements become the middle of their
    range.
    """

    bits = 2
    scales_per_block = 2
    _kind, _default_block = "int2", 64
    _special_codes = (1, 2, 3)

    def _quantize(self, x: Tensor, scratch: Tensor, codes: Tensor, scales: list[Tensor]) -> None:
        step, low = scales
        high = torch.amax(x, 1)
        torch.amin(x, 1, out=low)
        # halves, because the range itself may overflow
        half = high * 0.5 - low * 0.5
        marked = None if all_finite(half) else ~half.isfinite()
        if marked is not None:
            _extremes(x, low, high, scratch)
            half = high * 0.5 - low * 0.5
        torch.mul(half, NUDGE / 1.5, out=step)
        flush(step)
        threshold = low + 0.5 * step
        if marked is not None:
            threshold.masked_fill_(marked, torch.inf)
        counts = _count_thresholds(x, threshold, step, scratch)
        if marked is not None:
            for code, number in zip(self._special_codes, (torch.inf, -torch.inf), strict=False):
                counts.add_(torch.eq(x, number, out=scratch), alpha=code)
            counts.add_(torch.ne(x, x, out=scratch), alpha=self._special_codes[2])
            low.copy_(torch.where(marked, low * 0.5 + high * 0.5, low))
            mark(step, marked)
        # conversions to signed bytes are the faster ones
        codes.view(torch.int8).copy_(counts)

    def _dequantize(self, codes: Tensor, scales: list[Tensor], out: Tensor) -> None:
        step, low = scales
        out.copy_(codes)
        # in two halves, because 3 * step may overflow
        out *= 0.5
        out *= step.abs()[:, None]
        torch.add(out + low[:, None], out, out=out)
        restore_special(codes, step, self._special_codes, out)

    def _rounding(self, x: Tensor, tiny: float) -> Tensor:
        """Bound it by half a step, a sixth of the range; in marked blocks, half of it; where the step is 0, all."""
        finite = x.isfinite()
        low = torch.where(finite, x, torch.inf).amin(1, keepdim=True)
        high = torch.where(finite, x, -torch.inf).amax(1, keepdim=True)
        half = torch.where(finite.any(1, keepdim=True), high / 2 - low / 2, 0.0)
        marked = ~finite.all(1, keepdim=True)
        flushed = half / 1.5 < 1.01 * tiny
        return torch.where(marked, half, torch.where(flushed, 2 * half, half / 3))


def _extremes(x: Tensor, low: Tensor, high: Tensor, scratch: Tensor) -> None:
    """Write the least and the largest finite element of each block; zeros where there are none."""
    torch.amin(finite_or(torch.inf, x, out=scratch), 1, out=low).nan_to_num_(posinf=0.0)
    torch.amax(finite_or(-torch.inf, x, out=scratch), 1, out=high).nan_to_num_(neginf=0.0)


def _count_thresholds(x: Tensor, threshold: Tensor, step: Tensor, scratch: Tensor) -> Tensor:
    """Return how many of three thresholds, a step apart, each element is above."""
    # ATen compares fastest where the result has the dtype of what is compared
    counts = torch.gt(x, threshold[:, None], out=torch.empty_like(x))
    for _ in range(2):
        threshold = threshold + step
        counts += torch.gt(x, threshold[:, None], out=scratch)
    return counts
