"""A fused linear and its tangents in one launch: the value is computed once, however many tangents there are."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchadx.activations import Activation
from torchadx.kernels._configs import Config
from torchadx.kernels._launch import Launch, check, check_operands, check_shape, slices, strides, tile_constants, tiles
from torchadx.kernels._tile import add_bias, advance, dot, gemm, grid_offsets, halves, load, span, store, swizzle
from torchadx.kernels._translate import device_function


@triton.jit
def _dual_gemm(
    x_ptr, w_ptr, tx_ptr, tw_ptr, x_offsets, w_offsets, tx_offsets, tw_offsets, row_mask, col_mask, K,
    x_col, w_col, tx_col, tw_col, PRECISION: tl.constexpr, INTERPRET: tl.constexpr, EVEN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Return tiles of ``x @ w.T`` and of ``tx @ w.T + x @ tw.T``; both read each tile of x and w once."""
    z = tl.zeros((BM, BN), tl.float32)
    tz = tl.zeros((BM, BN), tl.float32)
    inner = tl.arange(0, BK)
    for start in range(0, K, BK):
        within = start + inner < K
        x = load(x_ptr + x_offsets, row_mask, within[None, :], EVEN)
        w = load(w_ptr + w_offsets, col_mask, within[:, None], EVEN)
        z = dot(x, w, z, PRECISION, INTERPRET)
        x_ptr = advance(x_ptr, BK, x_col)
        w_ptr = advance(w_ptr, BK, w_col)
        if tx_ptr is not None:
            tz = dot(load(tx_ptr + tx_offsets, row_mask, within[None, :], EVEN), w, tz, PRECISION, INTERPRET)
            tx_ptr = advance(tx_ptr, BK, tx_col)
        if tw_ptr is not None:
            tz = dot(x, load(tw_ptr + tw_offsets, col_mask, within[:, None], EVEN), tz, PRECISION, INTERPRET)
            tw_ptr = advance(tw_ptr, BK, tw_col)
    return z, tz


@triton.jit
def _value_slice(
    z, b_ptr, y_ptr, z_ptr, rows, cols, M, N, b_step, first,
    READS_OUTPUT: tl.constexpr, VALUE: tl.constexpr, DERIVATIVE: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """Add the bias, apply the activation, store y and z if this is the first program of the tile; return f'."""
    z = add_bias(z, b_ptr, cols, N, b_step, INTERPRET)
    y = VALUE(z)
    if first == 0:
        store(y_ptr, y, rows, cols, M, N, INTERPRET)
        store(z_ptr, z, rows, cols, M, N, INTERPRET)
    if READS_OUTPUT:
        slope = DERIVATIVE(y)
    else:
        slope = DERIVATIVE(z)
    return slope


@triton.jit
def _tangent_slice(tz, slope, t, tb_ptr, ty_ptr, tz_ptr, rows, cols, M, N, tb_step, tb_col, INTERPRET: tl.constexpr):
    """Add the bias' tangent, apply the derivative, and store tangent number t."""
    if tb_ptr is not None:
        tz = add_bias(tz, tb_ptr + t * tb_step, cols, N, tb_col, INTERPRET)
    if tz_ptr is not None:
        store(tz_ptr + t * M * N, tz, rows, cols, M, N, INTERPRET)
    store(ty_ptr + t * M * N, slope * tz, rows, cols, M, N, INTERPRET)


@triton.jit
def _finish_tangent(
    tz, slope, other_slope, t, tb_ptr, ty_ptr, tz_ptr, rows, cols, other_cols, M, N, tb_step, tb_col,
    HALVED: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """Finish a tangent, half a tile at a time where HALVED."""
    if HALVED:
        tz, other = halves(tz)
        _tangent_slice(
            other, other_slope, t, tb_ptr, ty_ptr, tz_ptr, rows, other_cols, M, N, tb_step, tb_col, INTERPRET
        )
    _tangent_slice(tz, slope, t, tb_ptr, ty_ptr, tz_ptr, rows, cols, M, N, tb_step, tb_col, INTERPRET)


@triton.jit
def dual_kernel(
    x_ptr, w_ptr, b_ptr, tx_ptr, tw_ptr, tb_ptr, y_ptr, z_ptr, ty_ptr, tz_ptr, M, N, K, T, tangents_per_program,
    x_row, x_col, w_row, w_col, b_step, tx_step, tx_row, tx_col, tw_step, tw_row, tw_col, tb_step, tb_col,
    BATCHED: tl.constexpr, HALVED: tl.constexpr, READS_OUTPUT: tl.constexpr,
    VALUE: tl.constexpr, DERIVATIVE: tl.constexpr,
    PRECISION: tl.constexpr, INTERPRET: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Compute one (BM, BN) tile of y and z, and of ty and tz for some of the T tangents.

    A program keeps the derivative in registers and walks over its tangents, which takes the fewest operations: 1 + T
    products. Where there are too few tiles to fill the device, programs along the second axis of the grid share the
    tangents and compute the value anew: more operations, on multiprocessors that would idle. The first one stores it.
    """
    block_m, block_n = swizzle(tl.program_id(0), tl.cdiv(M, BM), tl.cdiv(N, BN), GROUP)
    rows = span(block_m, BM, WIDE)
    cols = span(block_n, BN, WIDE)
    inner = span(0, BK, WIDE)
    x_offsets = grid_offsets(rows, inner, x_row, x_col)
    w_offsets = grid_offsets(inner, cols, w_col, w_row)
    tx_offsets = grid_offsets(rows, inner, tx_row, tx_col)
    tw_offsets = grid_offsets(inner, cols, tw_col, tw_row)
    row_mask = rows < M
    col_mask = cols < N
    first = tl.program_id(1) * tangents_per_program
    t = first.to(tl.int64)
    tx_first = tx_ptr
    tw_first = tw_ptr
    if tx_ptr is not None:
        tx_first = advance(tx_ptr, t, tx_step)
    if tw_ptr is not None:
        tw_first = advance(tw_ptr, t, tw_step)
    z, tz = _dual_gemm(
        x_ptr, w_ptr, tx_first, tw_first, x_offsets, w_offsets, tx_offsets, tw_offsets,
        row_mask[:, None], col_mask[None, :], K, x_col, w_col, tx_col, tw_col,
        PRECISION, INTERPRET, EVEN, BM, BN, BK,
    )  # fmt: skip
    if HALVED:  # all of a large tile at once would spill
        cols = span(block_n * 2, BN // 2, WIDE)
        other_cols = span(block_n * 2 + 1, BN // 2, WIDE)
        z, other = halves(z)
        other_slope = _value_slice(
            other, b_ptr, y_ptr, z_ptr, rows, other_cols, M, N, b_step, first,
            READS_OUTPUT, VALUE, DERIVATIVE, INTERPRET,
        )  # fmt: skip
    slope = _value_slice(
        z, b_ptr, y_ptr, z_ptr, rows, cols, M, N, b_step, first, READS_OUTPUT, VALUE, DERIVATIVE, INTERPRET
    )
    if not HALVED:
        other_cols = cols
        other_slope = slope
    _finish_tangent(
        tz, slope, other_slope, t, tb_ptr, ty_ptr, tz_ptr, rows, cols, other_cols, M, N, tb_step, tb_col,
        HALVED, INTERPRET,
    )  # fmt: skip
    if BATCHED:
        for later in range(first + 1, min(first + tangents_per_program, T)):
            t = tl.cast(later, tl.int64)
            tz = tl.zeros((BM, BN), tl.float32)
            if tx_ptr is not None:
                tz = gemm(
                    tz, advance(tx_ptr, t, tx_step), w_ptr, tx_offsets, w_offsets, row_mask, col_mask, K, tx_col, w_col,
                    PRECISION, INTERPRET, EVEN, BK,
                )  # fmt: skip
            if tw_ptr is not None:
                tz = gemm(
                    tz, x_ptr, advance(tw_ptr, t, tw_step), x_offsets, tw_offsets, row_mask, col_mask, K, x_col, tw_col,
                    PRECISION, INTERPRET, EVEN, BK,
                )  # fmt: skip
            _finish_tangent(
                tz, slope, other_slope, t, tb_ptr, ty_ptr, tz_ptr, rows, cols, other_cols, M, N, tb_step, tb_col,
                HALVED, INTERPRET,
            )  # fmt: skip


def linear_dual(
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    tx: Tensor | None,
    tw: Tensor | None,
    tb: Tensor | None,
    row: Activation,
    *,
    save: bool,
    config: Config,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Compute ``y = act(z)``, ``z = x @ w.T + b``, and their tangents, in one launch.

    ``tz = tx @ w.T + x @ tw.T + tb`` and ``ty = f'(z) * tz``, all from fp32 accumulators. Absent tangents cost
    nothing, and the value is computed once for a whole batch of tangents.

    Args:
        x: ``(M, K)``, fp32, fp16 or bf16, any strides.
        w: ``(N, K)``, same dtype.
        b: ``(N,)``, same dtype, or ``None``.
        tx: ``(M, K)`` or ``(T, M, K)``, same dtype, or ``None`` for zero.
        tw: ``(N, K)`` or ``(T, N, K)``, same dtype, or ``None`` for zero.
        tb: ``(N,)`` or ``(T, N)``, same dtype, or ``None`` for zero.
        row: The activation, one that :func:`untranslatable` accepts.
        save: Whether to return z and tz too.
        config: Tile sizes; ``config.split`` programs share the tangents of each tile.

    Returns:
        ``(y, z, ty, tz)``, contiguous and in x's dtype: y and z ``(M, N)``; ty and tz ``(M, N)``, or ``(T, M, N)``
        if any tangent has T, which those without then share. z and tz are ``None`` unless ``save``.

    Raises:
        ValueError: Shapes, dtypes or devices do not fit, all tangents are ``None``, T is 0 or differs between
            tangents, or the activation cannot be translated.
    """
    op = "linear_dual"
    (m, k), n = x.shape, w.shape[0]
    check_operands(op, x=x, w=w, b=b, tx=tx, tw=tw, tb=tb)
    check_shape(op, "w", w, n, k)
    check_shape(op, "b", b, n)
    batch = _batch(tx, tw, tb)
    tx, tw, tb = _batched(tx, 2, batch), _batched(tw, 2, batch), _batched(tb, 1, batch)
    count = batch[0] if batch else 1
    check_shape(op, "tx, over the batch of tangents,", tx, count, m, k)
    check_shape(op, "tw, over the batch of tangents,", tw, count, n, k)
    check_shape(op, "tb, over the batch of tangents,", tb, count, n)
    y = torch.empty((m, n), dtype=x.dtype, device=x.device)
    ty = torch.empty((*batch, m, n), dtype=x.dtype, device=x.device)
    z, tz = (torch.empty_like(y), torch.empty_like(ty)) if save else (None, None)
    plan_dual(x, w, b, tx, tw, tb, y, z, ty, tz, row, config).run()
    return y, z, ty, tz


def plan_dual(
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    tx: Tensor | None,
    tw: Tensor | None,
    tb: Tensor | None,
    y: Tensor,
    z: Tensor | None,
    ty: Tensor,
    tz: Tensor | None,
    row: Activation,
    config: Config,
) -> Launch:
    """Describe the launch that fills y and ty, and z and tz if given; every tangent given has a leading T."""
    (m, k), n = x.shape, w.shape[0]
    count = ty.shape[0] if ty.dim() == 3 else 1
    per_program = triton.cdiv(count, min(config.split, count))
    return Launch(
        dual_kernel,
        (tiles(m, n, config), triton.cdiv(count, per_program)),
        {
            "x_ptr": x, "w_ptr": w, "b_ptr": b, "tx_ptr": tx, "tw_ptr": tw, "tb_ptr": tb,
            "y_ptr": y, "z_ptr": z, "ty_ptr": ty, "tz_ptr": tz,
            "M": m, "N": n, "K": k, "T": count, "tangents_per_program": per_program,
            **strides(x, "x_row", "x_col"), **strides(w, "w_row", "w_col"), **strides(b, "b_step"),
            **strides(tx, "tx_step", "tx_row", "tx_col"), **strides(tw, "tw_step", "tw_row", "tw_col"),
            **strides(tb, "tb_step", "tb_col"),
        },
        {
            "BATCHED": count > 1, "HALVED": slices(config) > 1, "READS_OUTPUT": row.keeps == "output",
            "VALUE": device_function(row.value), "DERIVATIVE": device_function(row.derivative),
            **tile_constants(config, x.dtype, k, (x, w, y, tx, tw)),
        },
        config.warps,
        config.stages,
    )  # fmt: skip


def _batch(*tangents: Tensor | None) -> tuple[int, ...]:
    """Return ``(T,)`` where some tangent has a batch of T, else ``()``."""
    given = [(tangent, dims) for tangent, dims in zip(tangents, (2, 2, 1), strict=True) if tangent is not None]
    check(bool(given), "linear_dual: tx, tw and tb are all None, so there is no tangent; call linear_forward instead")
    batches = {tuple(tangent.shape[:1]) for tangent, dims in given if tangent.dim() > dims}
    check(len(batches) <= 1, f"linear_dual: tangents must share one batch size, got {sorted(batches)}")
    batch = batches.pop() if batches else ()
    check(batch != (0,), "linear_dual: the batch of tangents is empty; call linear_forward instead")
    return batch


def _batched(tangent: Tensor | None, dims: int, batch: tuple[int, ...]) -> Tensor | None:
    """Give a tangent a leading batch: its own, one of size 1, or one of stride 0 where it is shared."""
    if tangent is None or tangent.dim() > dims:
        return tangent
    return tangent.expand(*(batch or (1,)), *tangent.shape)
