"""Steps that the kernels share, for Triton and for its interpreter.

The interpreter stores bf16 as raw bits: its ``tl.dot`` multiplies the bits, and its casts cut them off. ``INTERPRET``
is a compile-time constant, so that on a GPU none of the detours below exists.
"""

import triton
import triton.language as tl


@triton.jit
def swizzle(program, blocks_m, blocks_n, GROUP: tl.constexpr):
    """Order the output tiles in bands of GROUP rows, so that programs running together share operands in L2."""
    band = program // (GROUP * blocks_n)
    height = min(blocks_m - band * GROUP, GROUP)
    within = program % (GROUP * blocks_n)
    return band * GROUP + within % height, within // height


@triton.jit
def span(block, SIZE: tl.constexpr, WIDE: tl.constexpr):
    """Return the SIZE indices of a block, 64-bit where offsets made from them would overflow 32."""
    indices = block * SIZE + tl.arange(0, SIZE)
    if WIDE:
        indices = indices.to(tl.int64)
    return indices


@triton.jit
def grid_offsets(rows, cols, row_stride, col_stride):
    """Return the offsets of a tile of a strided matrix."""
    return rows[:, None] * row_stride + cols[None, :] * col_stride


@triton.jit
def advance(ptr, steps, stride):
    """Move a pointer by a number of strides, which together may not fit 32 bits."""
    return ptr + tl.cast(stride, tl.int64) * steps


@triton.jit
def load(pointers, fixed, moving, EVEN: tl.constexpr):
    """Load a tile, zero outside the matrix; ``moving``, the mask of the reduced dimension, is idle where EVEN."""
    if EVEN:
        tile = tl.load(pointers, mask=fixed, other=0.0)
    else:
        tile = tl.load(pointers, mask=fixed & moving, other=0.0)
    return tile


@triton.jit
def widen(tile, INTERPRET: tl.constexpr):
    """Convert to fp32."""
    if INTERPRET and tile.dtype == tl.bfloat16:
        wide = (tile.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        wide = tile.to(tl.float32)
    return wide


@triton.jit
def narrow(tile, DTYPE: tl.constexpr, INTERPRET: tl.constexpr):
    """Round an fp32 tile to the nearest DTYPE, ties to even."""
    if INTERPRET and DTYPE == tl.bfloat16:
        bits = tile.to(tl.uint32, bitcast=True)
        rounded = bits + 0x7FFF + ((bits >> 16) & 1)
        # adding would carry the payload of a NaN into its exponent
        kept = tl.where(tile == tile, rounded, bits | 0x400000) >> 16
        narrowed = kept.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        narrowed = tile.to(DTYPE)
    return narrowed


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr, INTERPRET: tl.constexpr):
    """Return ``acc + a @ b``, accumulated in fp32."""
    if INTERPRET:
        a = widen(a, INTERPRET)
        b = widen(b, INTERPRET)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def settle(tile, SETTLE: tl.constexpr):
    """Return an fp32 tile unchanged, but computed once for the whole program.

    On NVIDIA, Triton would rather compute the operand of a dot in the layout that the tensor cores read, in which
    several warps hold, and compute, the same elements: twice to four times the work, and registers that spill. It
    does not move what is computed past an assembly statement with side effects, even one without instructions.
    """
    if SETTLE:
        tile = tl.inline_asm_elementwise("", "=r,0", [tile], dtype=tl.float32, is_pure=False, pack=1)
    return tile


@triton.jit
def gemm(
    acc, a_ptr, b_ptr, a_offsets, b_offsets, a_rows, b_cols, size, a_step, b_step,
    PRECISION: tl.constexpr, INTERPRET: tl.constexpr, EVEN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Return ``acc`` plus a tile of ``a @ b`` summed over ``size``; a_rows and b_cols mask the two outer dimensions."""
    inner = tl.arange(0, BK)
    for start in range(0, size, BK):
        within = start + inner < size
        a = load(a_ptr + a_offsets, a_rows[:, None], within[None, :], EVEN)
        b = load(b_ptr + b_offsets, b_cols[None, :], within[:, None], EVEN)
        acc = dot(a, b, acc, PRECISION, INTERPRET)
        # moving two scalars leaves the tiles of offsets as they are, in 32 bits
        a_ptr = advance(a_ptr, BK, a_step)
        b_ptr = advance(b_ptr, BK, b_step)
    return acc


@triton.jit
def add_bias(acc, b_ptr, cols, N, step, INTERPRET: tl.constexpr):
    """Add one bias per column, or nothing where there is no bias."""
    if b_ptr is not None:
        acc += widen(tl.load(b_ptr + cols * step, mask=cols < N, other=0.0), INTERPRET)[None, :]
    return acc


@triton.jit
def store(ptr, tile, rows, cols, M, N, INTERPRET: tl.constexpr):
    """Round and write a tile of a contiguous (M, N) matrix; nothing where the pointer is None."""
    if ptr is not None:
        mask = (rows[:, None] < M) & (cols[None, :] < N)
        tl.store(ptr + grid_offsets(rows, cols, N, 1), narrow(tile, ptr.dtype.element_ty, INTERPRET), mask=mask)


@triton.jit
def halves(tile):
    """Cut a tile into its left and right half."""
    pairs = tl.reshape(tile, (tile.shape[0], 2, tile.shape[1] // 2))
    left, right = tl.split(tl.permute(pairs, (0, 2, 1)))
    return left, right
