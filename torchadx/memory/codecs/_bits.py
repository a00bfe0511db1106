"""Codes of fewer than eight bits, several to a byte, the first in the lowest bits.

The codes of one byte are seen as one integer, each code in a byte of its own. One multiplication then brings all of
them together in the highest byte, and shifts by powers of two spread them again.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

#: Integers by their size in bytes.
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def packed_numel(numel: int, bits: int) -> int:
    """Return how many bytes so many codes take."""
    return -(-numel * bits // 8)


def pack(codes: Tensor, bits: int, out: Tensor) -> None:
    """Pack codes.

    Args:
        codes: ``(n,)`` uint8, aligned to 8 bytes, all less than ``2**bits``; overwritten.
        bits: 1, 2 or 4.
        out: ``(ceil(n * bits / 8),)`` uint8; the bits after the last code become zeros.
    """
    per_byte = 8 // bits
    if codes.numel() % per_byte:
        codes = F.pad(codes, (0, -codes.numel() % per_byte))
    words = codes.view(WORDS[per_byte])
    highest = 8 * (per_byte - 1)
    words *= sum(1 << highest - i * (8 - bits) for i in range(per_byte))
    words >>= highest
    out.copy_(words)


def unpack(packed: Tensor, bits: int, numel: int) -> Tensor:
    """Undo :func:`pack`: return ``(numel,)`` uint8."""
    per_byte = 8 // bits
    words = packed.to(WORDS[per_byte])
    together = per_byte
    while together > 1:
        # the upper half of the codes that are still side by side moves to the middle of the bytes they will fill
        together //= 2
        words |= words << together * (8 - bits)
        kept = (1 << together * bits) - 1
        words &= sum(kept << 8 * i for i in range(0, per_byte, together))
    return words.view(torch.uint8)[:numel]
