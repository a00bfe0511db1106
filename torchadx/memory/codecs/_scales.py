"""Scales of blocks: too small ones, and the mark of blocks with infinities or NaN."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from torchadx import dispatch

# scales are rounded down by so much that code * scale stays at or under the largest element through three roundings
NUDGE = 1 - 2**-22


def all_finite(size: Tensor) -> bool:
    """Whether numbers that are not negative, at least one, are seen to be neither infinite nor NaN.

    Looking would make an accelerator wait, which costs more there than to treat them as if they were.
    """
    return not dispatch.on_accelerator(size) and math.isfinite(size.amax().item())


def finite_or(number: float, x: Tensor, out: Tensor | None = None) -> Tensor:
    """Put a number in the place of infinities and NaN."""
    return torch.nan_to_num(x, number, number, number, out=out)


def flush(scale: Tensor) -> None:
    """Replace scales whose reciprocals may overflow by 0."""
    info = torch.finfo(scale.dtype)
    F.threshold(scale, info.tiny * (1 - info.eps), 0, inplace=True)


def mark(scale: Tensor, marked: Tensor) -> None:
    """Put the mark of blocks with infinities or NaN, the sign bit, on their scales, zeros too."""
    scale *= 1 - 2 * marked.to(scale.dtype)


def restore_special(codes: Tensor, scale: Tensor, special_codes: tuple[int, int, int], out: Tensor) -> None:
    """Write infinity, minus infinity and NaN where blocks are marked and their codes, in this order, say so."""
    marked = scale.signbit()
    on_accelerator = dispatch.on_accelerator(scale)
    if on_accelerator or marked.any():
        for code, number in zip(special_codes, (torch.inf, -torch.inf, torch.nan), strict=True):
            # ATen compares fastest where the result has the dtype of what is compared
            found = torch.eq(codes, code, out=torch.empty_like(codes)).mul_(marked.view(torch.uint8)[:, None])
            if on_accelerator or found.amax():
                out.masked_fill_(found.view(torch.bool), number)
