"""The gradients of a fused linear's weight and bias, in one pass over the rows and without atomics."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchadx.activations import Activation
from torchadx.kernels._configs import Config
from torchadx.kernels._cotangent import check_cotangents, cotangent, cotangent_strides, derivative_constants
from torchadx.kernels._launch import Launch, check_operands, check_shape, interpreting, strides, tile_constants, tiles
from torchadx.kernels._tile import dot, grid_offsets, load, narrow, span, store, swizzle


@triton.jit
def _sum_over_rows(
    gy_ptr, gz_ptr, kept_ptr, x_ptr, first, last, N, K, out_rows, out_cols,
    gy_row, gy_col, gz_row, gz_col, kept_row, kept_col, x_row, x_col,
    BIAS: tl.constexpr, DERIVATIVE: tl.constexpr, SETTLE: tl.constexpr, PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Return a tile of ``g.T @ x`` over rows first to last and, where BIAS, the sums of g over the same rows."""
    acc = tl.zeros((BM, BN), tl.float32)
    bias = tl.zeros((BM,), tl.float32)
    for start in range(first, last, BK):
        inner = span(0, BK, WIDE) + start
        within = (inner < last)[:, None]
        g = cotangent(
            gy_ptr, gz_ptr, kept_ptr, grid_offsets(inner, out_rows, gy_row, gy_col),
            grid_offsets(inner, out_rows, gz_row, gz_col), grid_offsets(inner, out_rows, kept_row, kept_col),
            (out_rows < N)[None, :], within, DERIVATIVE, SETTLE, INTERPRET, EVEN,
        )  # fmt: skip
        x = load(x_ptr + grid_offsets(inner, out_cols, x_row, x_col), (out_cols < K)[None, :], within, EVEN)
        if BIAS:
            bias += tl.sum(g, axis=0)
        acc = dot(tl.trans(narrow(g, x.dtype, INTERPRET)), x, acc, PRECISION, INTERPRET)
    return acc, bias


@triton.jit
def weight_grad_kernel(
    gy_ptr, gz_ptr, kept_ptr, x_ptr, gw_ptr, gb_ptr, M, N, K,
    gy_row, gy_col, gz_row, gz_col, kept_row, kept_col, x_row, x_col, rows_per_split, partial_step,
    DERIVATIVE: tl.constexpr, SETTLE: tl.constexpr, PRECISION: tl.constexpr, INTERPRET: tl.constexpr,
    WIDE: tl.constexpr, EVEN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Compute one (BM, BN) tile of ``g.T @ x``, which is (N, K), over one part of the M rows; with it, sums of g."""
    # without input features there still is a bias
    block_n, block_k = swizzle(tl.program_id(0), tl.cdiv(N, BM), tl.maximum(tl.cdiv(K, BN), 1), GROUP)
    out_rows = span(block_n, BM, WIDE)
    out_cols = span(block_k, BN, WIDE)
    part = tl.program_id(1)
    first = part * rows_per_split
    last = min(first + rows_per_split, M)
    gw_ptr += part.to(tl.int64) * partial_step
    if gb_ptr is None:
        acc, _ = _sum_over_rows(
            gy_ptr, gz_ptr, kept_ptr, x_ptr, first, last, N, K, out_rows, out_cols, gy_row, gy_col, gz_row, gz_col,
            kept_row, kept_col, x_row, x_col, False, DERIVATIVE, SETTLE, PRECISION, INTERPRET, WIDE, EVEN, BM, BN, BK,
        )  # fmt: skip
    elif block_k == 0:
        # one program per block of N sums the bias; the others run a loop without the reduction
        acc, bias = _sum_over_rows(
            gy_ptr, gz_ptr, kept_ptr, x_ptr, first, last, N, K, out_rows, out_cols, gy_row, gy_col, gz_row, gz_col,
            kept_row, kept_col, x_row, x_col, True, DERIVATIVE, SETTLE, PRECISION, INTERPRET, WIDE, EVEN, BM, BN, BK,
        )  # fmt: skip
        gb_ptrs = gb_ptr + part.to(tl.int64) * partial_step + out_rows
        tl.store(gb_ptrs, narrow(bias, gb_ptr.dtype.element_ty, INTERPRET), mask=out_rows < N)
    else:
        acc, _ = _sum_over_rows(
            gy_ptr, gz_ptr, kept_ptr, x_ptr, first, last, N, K, out_rows, out_cols, gy_row, gy_col, gz_row, gz_col,
            kept_row, kept_col, x_row, x_col, False, DERIVATIVE, SETTLE, PRECISION, INTERPRET, WIDE, EVEN, BM, BN, BK,
        )  # fmt: skip
    store(gw_ptr, acc, out_rows, out_cols, N, K, INTERPRET)


@triton.jit
def add_parts_kernel(
    parts_ptr, gw_ptr, gb_ptr, weights, biases, parts, WIDE: tl.constexpr, INTERPRET: tl.constexpr, BLOCK: tl.constexpr
):
    """Add partial gradients, always in the same order, so that results repeat bit by bit."""
    index = span(tl.program_id(0), BLOCK, WIDE)
    size = weights + biases
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in range(0, parts):
        total += tl.load(parts_ptr + index, mask=index < size, other=0.0)
        parts_ptr += size
    total = narrow(total, gw_ptr.dtype.element_ty, INTERPRET)
    tl.store(gw_ptr + index, total, mask=index < weights)
    if gb_ptr is not None:
        tl.store(gb_ptr + (index - weights), total, mask=(index >= weights) & (index < size))


def linear_weight_grad(
    gy: Tensor | None,
    gz: Tensor | None,
    kept: Tensor | None,
    x: Tensor,
    row: Activation,
    *,
    with_bias: bool,
    dtype: torch.dtype,
    config: Config,
) -> tuple[Tensor, Tensor | None]:
    """Compute ``g.T @ x`` and ``g.sum(0)`` for ``g = gy * f'(kept) + gz``, reproducibly.

    Args:
        gy: ``(M, N)``, gradient of the output; fp32, fp16 or bf16, any strides; ``None`` for zero.
        gz: ``(M, N)``, gradient of the pre-activation, same dtype; ``None`` for zero. Not both may be ``None``.
        kept: ``(M, N)``, what ``row.keeps`` names, same dtype; ``None`` if it names nothing or gy is ``None``.
        x: ``(M, K)``, same dtype.
        row: The activation, one that :func:`untranslatable` accepts.
        with_bias: Whether to compute the bias gradient, in the same launch.
        dtype: Of the results: the weight's.
        config: Tile sizes; ``config.split`` parts of the rows are summed by programs of their own.

    Returns:
        ``(gw, gb)``: ``(N, K)`` and ``(N,)``, or ``None`` for gb unless ``with_bias``; contiguous.

    Raises:
        ValueError: Shapes, dtypes or devices do not fit, or the activation cannot be translated.
    """
    op = "linear_weight_grad"
    m, n, kept = check_cotangents(op, gy, gz, kept, row)
    check_operands(op, gy=gy, gz=gz, kept=kept, x=x)
    k = x.shape[1]
    check_shape(op, "x", x, m, k)
    gw = torch.empty((n, k), dtype=dtype, device=x.device)
    gb = torch.empty((n,), dtype=dtype, device=x.device) if with_bias else None
    for launch in plan_weight_grad(gy, gz, kept, x, gw, gb, row, config):
        launch.run()
    return gw, gb


def plan_weight_grad(
    gy: Tensor | None,
    gz: Tensor | None,
    kept: Tensor | None,
    x: Tensor,
    gw: Tensor,
    gb: Tensor | None,
    row: Activation,
    config: Config,
) -> list[Launch]:
    """Describe the launches that fill gw, and gb if given: one, or two where the rows are split."""
    (m, k), n = x.shape, gw.shape[0]
    steps = triton.cdiv(m, config.BK)
    steps_per_split = triton.cdiv(steps, min(config.split, steps))
    split = triton.cdiv(steps, steps_per_split)
    biases = n if gb is not None else 0
    parts, gw_part, gb_part = None, gw, gb
    if split > 1:
        parts = torch.empty((split, n * k + biases), dtype=torch.float32, device=x.device)
        gw_part, gb_part = parts[0, : n * k], parts[0, n * k :] if gb is not None else None
    main = Launch(
        weight_grad_kernel,
        (tiles(n, k, config), split),
        {
            "gy_ptr": gy, "gz_ptr": gz, "kept_ptr": kept, "x_ptr": x, "gw_ptr": gw_part, "gb_ptr": gb_part,
            "M": m, "N": n, "K": k, **cotangent_strides(gy, gz, kept), **strides(x, "x_row", "x_col"),
            "rows_per_split": steps_per_split * config.BK, "partial_step": n * k + biases,
        },
        {**derivative_constants(row, x.device), **tile_constants(config, x.dtype, m, (gy, gz, kept, x, gw))},
        config.warps,
        config.stages,
    )  # fmt: skip
    return [main] if parts is None else [main, _plan_add_parts(parts, gw, gb)]


def _plan_add_parts(parts: Tensor, gw: Tensor, gb: Tensor | None) -> Launch:
    block = 1024
    return Launch(
        add_parts_kernel,
        (triton.cdiv(parts.shape[1], block),),
        {
            "parts_ptr": parts, "gw_ptr": gw, "gb_ptr": gb, "weights": gw.numel(),
            "biases": gb.numel() if gb is not None else 0, "parts": parts.shape[0],
        },
        {"WIDE": parts.shape[1] + block > 2**31, "INTERPRET": interpreting(), "BLOCK": block},
        warps=4,
        stages=1,
    )  # fmt: skip
