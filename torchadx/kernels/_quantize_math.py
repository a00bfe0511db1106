"""Codes of a tile of blocks, ``(ROWS, B)``: what :mod:`torchadx.kernels.quantize` does between reading and writing.

Codes are int32 here, of which the lowest bits count.

Float8 is converted in integer arithmetic: Triton refuses e4m3 before compute capability 8.9, and its interpreter
rounds halves away from zero and loses carries into the exponent.
"""

from typing import NamedTuple

import triton
import triton.language as tl

_LARGEST_FLOAT = tl.constexpr(3.4028234663852886e38)
# the reciprocals of smaller scales may overflow
_SMALLEST_SCALE = tl.constexpr(2.0**-126)
# 1.5 * 2**23: an fp32 number near it has no fraction, so that adding it rounds to an integer, halves to even
_ROUNDER = tl.constexpr(12582912.0)
_ROUNDER_BITS = tl.constexpr(0x4B400000)


class Format(NamedTuple):
    """One kind of code.

    Attributes:
        bits: Size of a code; two or four small ones share a byte, the first in the lowest bits.
        steps: How many steps the largest element of a block is away from zero; in ``int2``, from the block's middle.
        marked_steps: The same for blocks with infinities or NaN, whose finite elements leave codes to those.
        infinity: Code of infinity in marked blocks.
        minus_infinity: Code of minus infinity in marked blocks.
        nan: Code of NaN in marked blocks.
        fraction: Bits of the fraction of a float8; 0 where codes are integers.
    """

    bits: int
    steps: float
    marked_steps: float
    infinity: int
    minus_infinity: int
    nan: int
    fraction: int = 0

    def constants(self) -> dict[str, float]:
        """Return the compile-time constants that describe it."""
        # rounded down by so much, scale * steps stays at or under the largest element through three roundings
        nudge = 1 - 2**-22
        return {
            "BITS": self.bits,
            "FACTOR": nudge / self.steps,
            "MARKED_FACTOR": nudge / self.marked_steps,
            "INFINITY": self.infinity,
            "MINUS_INFINITY": self.minus_infinity,
            "NAN": self.nan,
            "FRACTION": self.fraction,
        }


FORMATS = {
    "int8": Format(8, 127, 126, infinity=0x7F, minus_infinity=0x81, nan=0x80),
    "int4": Format(4, 7, 6, infinity=0x7, minus_infinity=0x9, nan=0x8),
    "int2": Format(2, 1.5, 1.5, infinity=1, minus_infinity=2, nan=3),
    "e4m3": Format(8, 448, 240, infinity=0x7E, minus_infinity=0xFE, nan=0x7F, fraction=3),
    "e5m2": Format(8, 57344, 28672, infinity=0x7B, minus_infinity=0xFB, nan=0x7F, fraction=2),
}


@triton.jit
def is_finite(x):
    """Say where an fp32 tile is neither infinite nor NaN."""
    return tl.abs(x) <= _LARGEST_FLOAT


@triton.jit
def scales(size, marked, FACTOR: tl.constexpr, MARKED_FACTOR: tl.constexpr):
    """Return the size of a step in each block, without its mark, from the size of the block's largest element."""
    scale = size * tl.where(marked, MARKED_FACTOR, FACTOR)
    return tl.where(scale < _SMALLEST_SCALE, 0.0, scale)


@triton.jit
def mark(scale, marked):
    """Put the mark of blocks with infinities or NaN, the sign bit, on their scales, zeros too."""
    return scale * tl.where(marked, -1.0, 1.0)


@triton.jit
def is_marked(scale):
    """Say which scales have their sign bit set."""
    return scale.to(tl.int32, bitcast=True) < 0


@triton.jit
def symmetric(x, scale, FRACTION: tl.constexpr):
    """Return the codes of ``x / scale``, rounded half to even; what is not finite gets any code."""
    # one division a block instead of one an element
    inverse = tl.where(scale > 0.0, tl.div_rn(1.0, scale), 0.0)
    steps = x * inverse[:, None]
    if FRACTION > 0:
        codes = to_float8(steps, FRACTION)
    else:
        codes = (steps + _ROUNDER).to(tl.int32, bitcast=True) - _ROUNDER_BITS
    return codes


@triton.jit
def extremes(x, taken):
    """Return the least and the largest of the elements taken from each block; zeros where there are none."""
    least = tl.min(tl.where(taken, x, float("inf")), axis=1)
    most = tl.max(tl.where(taken, x, float("-inf")), axis=1)
    some = least <= most
    return tl.where(some, least, 0.0), tl.where(some, most, 0.0)


@triton.jit
def affine(x, low, step):
    """Return the codes of the levels ``low + (0, 1, 2, 3) * step`` that are nearest to x."""
    # thresholds, because x - low may overflow
    first = low + 0.5 * step
    second = first + step
    third = second + step
    above = (x > first[:, None]).to(tl.int32) + (x > second[:, None]).to(tl.int32)
    return above + (x > third[:, None]).to(tl.int32)


@triton.jit
def levels(codes, low, step):
    """Return the level of each code of :func:`affine`."""
    # in two halves, because 3 * step may overflow
    half = codes.to(tl.float32) * 0.5 * step[:, None]
    return (low[:, None] + half) + half


@triton.jit
def to_float8(x, FRACTION: tl.constexpr):
    """Round an fp32 tile that is in the format's range to the nearest float8, ties to even, and return its bits."""
    bits = x.to(tl.int32, bitcast=True)
    cut: tl.constexpr = 23 - FRACTION
    # the exponent field of the least normal number, below which spacing no longer shrinks
    least: tl.constexpr = (129 - (1 << (6 - FRACTION))) << 23
    exponent = tl.maximum(bits & 0x7F800000, least)
    # in fp32, numbers this large are as far apart as float8 numbers are around x: adding it rounds
    anchor = exponent + (cut << 23)
    rounded = tl.abs(x) + anchor.to(tl.float32, bitcast=True)
    codes = (rounded.to(tl.int32, bitcast=True) - anchor) + ((exponent - least) >> cut)
    return codes | ((bits >> 24) & 0x80)


@triton.jit
def from_float8(codes, FRACTION: tl.constexpr):
    """Return the numbers, in fp32, whose float8 bits are given, infinities and NaN excepted."""
    # the bits of an fp16 number that differs by a power of two, as the exponents' biases do
    bits = ((codes & 0x80) << 8) | ((codes & 0x7F) << (10 - FRACTION))
    half = bits.to(tl.int16).to(tl.float16, bitcast=True)
    gain: tl.constexpr = 1 << (16 - (1 << (6 - FRACTION)))
    return half.to(tl.float32) * gain


@triton.jit
def from_integer(codes, BITS: tl.constexpr):
    """Return the signed integers, in fp32, whose two's complement is in the lowest bits."""
    return ((codes << (32 - BITS)) >> (32 - BITS)).to(tl.float32)


@triton.jit
def pack(codes, BITS: tl.constexpr):
    """Put as many neighbouring codes of a row into a byte as fit, the first lowest."""
    per_byte: tl.constexpr = 8 // BITS
    if per_byte > 1:
        groups = tl.reshape(codes & ((1 << BITS) - 1), (codes.shape[0], codes.shape[1] // per_byte, per_byte))
        codes = tl.sum(groups << (BITS * tl.arange(0, per_byte))[None, None, :], axis=2)
    return codes


@triton.jit
def unpack(packed, BITS: tl.constexpr):
    """Undo :func:`pack`; codes are not negative."""
    per_byte: tl.constexpr = 8 // BITS
    if per_byte > 1:
        groups = packed[:, :, None] >> (BITS * tl.arange(0, per_byte))[None, None, :]
        packed = tl.reshape(groups, (packed.shape[0], packed.shape[1] * per_byte))
    return packed & ((1 << BITS) - 1)
