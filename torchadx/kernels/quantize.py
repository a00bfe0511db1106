"""Blocks of a flat tensor as codes of eight, four or two bits with a scale each, and back: one launch either way.

A block with infinities or NaN is marked by the sign bit of its scale, and sets codes apart for them. All blocks thus
look alike, and nothing has to be counted or copied to the host. The arithmetic is fp32, without fused multiply-adds,
so that the ATen implementation can give the same codes and scales bit by bit.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchadx.kernels._launch import DTYPES, Launch, check, check_operands, check_shape, interpreting
from torchadx.kernels._quantize_math import (
    FORMATS,
    affine,
    extremes,
    from_float8,
    from_integer,
    is_finite,
    is_marked,
    levels,
    mark,
    pack,
    scales,
    symmetric,
    unpack,
)
from torchadx.kernels._tile import narrow, widen

# 32 elements a thread
_TILE = 4096
_WARPS = 4


@triton.jit
def _cells(ROWS: tl.constexpr, COLS: tl.constexpr):
    """Return the offsets of a contiguous tile."""
    return tl.arange(0, ROWS)[:, None] * COLS + tl.arange(0, COLS)[None, :]


@triton.jit
def _read(ptr, cells, left):
    """Read the first elements of a tile, as many as are left, and zeros."""
    # a mask that ends anywhere would make every access as narrow as an element
    if left >= cells.shape[0] * cells.shape[1]:
        tile = tl.load(ptr + cells)
    else:
        tile = tl.load(ptr + cells, mask=cells < left, other=0)
    return tile


@triton.jit
def _write(ptr, tile, cells, left):
    """Write the first elements of a tile, as many as are left."""
    if left >= cells.shape[0] * cells.shape[1]:
        tl.store(ptr + cells, tile)
    else:
        tl.store(ptr + cells, tile, mask=cells < left)


@triton.jit
def quantize_kernel(
    x_ptr, codes_ptr, scale_ptr, low_ptr, N,
    FACTOR: tl.constexpr, MARKED_FACTOR: tl.constexpr, BITS: tl.constexpr, FRACTION: tl.constexpr,
    INFINITY: tl.constexpr, MINUS_INFINITY: tl.constexpr, NAN: tl.constexpr, INTERPRET: tl.constexpr,
    ROWS: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Encode ROWS blocks of B elements: from their least element up where low_ptr is given, around zero elsewhere."""
    first_row = tl.program_id(0).to(tl.int64) * ROWS
    left = tl.minimum(N - first_row * B, ROWS * B).to(tl.int32)
    cells = _cells(ROWS, B)
    x = widen(_read(x_ptr + first_row * B, cells, left), INTERPRET)
    finite = is_finite(x)
    marked = tl.max(tl.where(finite, 0, 1), axis=1) > 0
    rows = tl.arange(0, ROWS)
    stored = rows < tl.cdiv(left, B)
    if low_ptr is None:
        size = tl.max(tl.where(finite, tl.abs(x), 0.0), axis=1)
        scale = scales(size, marked, FACTOR, MARKED_FACTOR)
        codes = symmetric(x, scale, FRACTION)
    else:
        present = cells < left
        least, most = extremes(x, finite & present)
        scale = scales(most * 0.5 - least * 0.5, marked, FACTOR, MARKED_FACTOR)
        codes = tl.where(present & ~marked[:, None], affine(x, least, scale), 0)
        low = tl.where(marked, least * 0.5 + most * 0.5, least)
        tl.store(low_ptr + first_row + rows, low, mask=stored)
    special = tl.where(x != x, NAN, tl.where(x > 0.0, INFINITY, MINUS_INFINITY))
    codes = pack(tl.where(finite, codes, special), BITS).to(codes_ptr.dtype.element_ty)
    row_bytes: tl.constexpr = B * BITS // 8
    _write(codes_ptr + first_row * row_bytes, codes, _cells(ROWS, row_bytes), tl.cdiv(left, 8 // BITS))
    tl.store(scale_ptr + first_row + rows, mark(scale, marked), mask=stored)


@triton.jit
def dequantize_kernel(
    codes_ptr, scale_ptr, low_ptr, x_ptr, N,
    BITS: tl.constexpr, FRACTION: tl.constexpr,
    INFINITY: tl.constexpr, MINUS_INFINITY: tl.constexpr, NAN: tl.constexpr, INTERPRET: tl.constexpr,
    ROWS: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Decode ROWS blocks of B elements."""
    first_row = tl.program_id(0).to(tl.int64) * ROWS
    left = tl.minimum(N - first_row * B, ROWS * B).to(tl.int32)
    rows = tl.arange(0, ROWS)
    stored = rows < tl.cdiv(left, B)
    scale = tl.load(scale_ptr + first_row + rows, mask=stored, other=0.0)
    row_bytes: tl.constexpr = B * BITS // 8
    packed = _read(codes_ptr + first_row * row_bytes, _cells(ROWS, row_bytes), tl.cdiv(left, 8 // BITS))
    codes = unpack(packed.to(tl.int32), BITS)
    if low_ptr is not None:
        low = tl.load(low_ptr + first_row + rows, mask=stored, other=0.0)
        x = levels(codes, low, scale)
    elif FRACTION > 0:
        x = from_float8(codes, FRACTION) * tl.abs(scale)[:, None]
    else:
        x = from_integer(codes, BITS) * tl.abs(scale)[:, None]
    marked = is_marked(scale)[:, None]
    x = tl.where(marked & (codes == INFINITY), float("inf"), x)
    x = tl.where(marked & (codes == MINUS_INFINITY), float("-inf"), x)
    x = tl.where(marked & (codes == NAN), float("nan"), x)
    _write(x_ptr + first_row * B, narrow(x, x_ptr.dtype.element_ty, INTERPRET), _cells(ROWS, B), left)


def quantize(flat: Tensor, block: int, kind: str) -> tuple[Tensor, ...]:
    """Encode a flat tensor block by block.

    With ``s`` the scale of an element's block, which :func:`dequantize` multiplies codes by, and ``tiny = 2**-126``,
    finite elements come back with an error, in units of the elements, of at most:

    * ``int8``, ``int4``: ``|s| / 2``, because codes are rounded to nearest; the largest element, whose code is L = 127
      or 7, only misses what scales are rounded down by. ``L * tiny`` where ``s`` is 0, which takes smaller elements.
    * ``e4m3``: ``max(2**-4 * |x|, 2**-10 * |s|)``, half the distance of neighbouring float8 numbers; ``e5m2``:
      ``max(2**-3 * |x|, 2**-17 * |s|)``. Where ``s`` is 0, ``448 * tiny`` and ``57344 * tiny``.
    * ``int2``: ``|s| / 2``, or ``1.5 * |s|`` in a block with infinities or NaN; where ``s`` is 0, ``3 * tiny``.

    On top come roundings of the arithmetic, below ``2**-20`` of the block's largest element, and of the cast to the
    dtype. Infinities and NaN come back as such, and finite elements finite.

    Args:
        flat: ``(n,)``, fp32, fp16 or bf16, contiguous. It may be empty.
        block: Elements that share a scale: a power of two from 16 to 4096. The last block may be shorter.
        kind: ``"int8"``, ``"int4"``, ``"int2"``, ``"e4m3"`` or ``"e5m2"``.

    Returns:
        ``(codes, scales)``. Codes are ``(n,)`` int8 for ``int8`` and ``(n,)`` uint8 for float8 bits; they are uint8
        ``(ceil(n / 2),)`` for ``int4`` and ``(ceil(n / 4),)`` for ``int2``, earlier elements in lower bits, zeros after
        the last. Scales are fp32, one a block, with their sign bit set where a block has infinities or NaN. ``int2``
        has ``(codes, steps, lows)``: codes 0 to 3 stand for ``low + code * step``.

    Raises:
        ValueError: The tensor, the block size or the kind is none of the above.
    """
    _check("quantize", block, kind)
    check_operands("quantize", flat=flat)
    check(
        flat.dim() == 1 and flat.is_contiguous(),
        f"quantize: flat must be one-dimensional and contiguous, got shape {tuple(flat.shape)} with strides "
        f"{flat.stride()}; pass tensor.contiguous().view(-1)",
    )
    parts = tuple(
        torch.empty(size, dtype=dtype, device=flat.device) for size, dtype in _layout(flat.numel(), block, kind)
    )
    if flat.numel():
        plan_quantize(flat, parts, block, kind).run()
    return parts


def dequantize(parts: tuple[Tensor, ...], numel: int, dtype: torch.dtype, block: int, kind: str) -> Tensor:
    """Decode what :func:`quantize` returned.

    Args:
        parts: Codes, scales, and lows where there are any.
        numel: How many elements were encoded.
        dtype: fp32, fp16 or bf16. Numbers too large for a dtype that is not the encoded tensor's become infinite.
        block: Elements that share a scale, as encoded.
        kind: As encoded.

    Returns:
        ``(numel,)`` in the dtype, in new memory. Numbers are computed in fp32 and rounded once to the dtype.

    Raises:
        ValueError: The dtype, the block size or the kind cannot be, or the parts do not fit them.
    """
    _check("dequantize", block, kind)
    check(dtype in DTYPES, f"dequantize: dtype must be float32, float16 or bfloat16, got {dtype}; use the ATen backend")
    _check_parts(parts, numel, block, kind)
    flat = torch.empty(numel, dtype=dtype, device=parts[0].device)
    if numel:
        plan_dequantize(parts, flat, block, kind).run()
    return flat


def _layout(numel: int, block: int, kind: str) -> list[tuple[int, torch.dtype]]:
    """Return the size and dtype of each part."""
    codes = (triton.cdiv(numel, 8 // FORMATS[kind].bits), torch.int8 if kind == "int8" else torch.uint8)
    per_block = (triton.cdiv(numel, block), torch.float32)
    return [codes, per_block, per_block] if kind == "int2" else [codes, per_block]


def _check(op: str, block: int, kind: str) -> None:
    check(kind in FORMATS, f"{op}: kind must be one of {', '.join(FORMATS)}, got {kind!r}")
    check(
        16 <= block <= _TILE and block & (block - 1) == 0,
        f"{op}: block must be a power of two from 16 to {_TILE}, got {block}",
    )


def _check_parts(parts: tuple[Tensor, ...], numel: int, block: int, kind: str) -> None:
    expected = _layout(numel, block, kind)
    check(len(parts) == len(expected), f"dequantize: {kind} has {len(expected)} parts, got {len(parts)}")
    for i, (part, (size, dtype)) in enumerate(zip(parts, expected, strict=True)):
        check_shape("dequantize", f"parts[{i}] of {numel} elements in blocks of {block}", part, size)
        check(part.dtype == dtype, f"dequantize: parts[{i}] of {kind} must be {dtype}, got {part.dtype}")
        check(part.is_contiguous(), f"dequantize: parts[{i}] must be contiguous, got strides {part.stride()}")


def plan_quantize(flat: Tensor, parts: tuple[Tensor, ...], block: int, kind: str) -> Launch:
    """Describe the launch that fills the parts; flat has elements."""
    return _plan(quantize_kernel, flat, parts, block, FORMATS[kind].constants())


def plan_dequantize(parts: tuple[Tensor, ...], flat: Tensor, block: int, kind: str) -> Launch:
    """Describe the launch that fills flat, which has elements."""
    constants = FORMATS[kind].constants()
    decoding = {name: constants[name] for name in constants if name not in ("FACTOR", "MARKED_FACTOR")}
    return _plan(dequantize_kernel, flat, parts, block, decoding)


def _plan(kernel: triton.JITFunction, flat: Tensor, parts: tuple[Tensor, ...], block: int, constants: dict) -> Launch:
    codes, scale, *low = parts
    rows = _TILE // block
    return Launch(
        kernel,
        (triton.cdiv(flat.numel(), rows * block),),
        {"x_ptr": flat, "codes_ptr": codes, "scale_ptr": scale, "low_ptr": low[0] if low else None, "N": flat.numel()},
        {
            **constants, "INTERPRET": interpreting(), "ROWS": rows, "B": block,
            # an option of Triton's: a multiplication and an addition round twice, as in ATen
            "enable_fp_fusion": False,
        },
        _WARPS,
        1,
    )  # fmt: skip
