"""The gradient of a fused linear's input, with the activation's derivative applied inside the matrix product."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchadx.activations import Activation
from torchadx.kernels._configs import Config
from torchadx.kernels._cotangent import check_cotangents, cotangent, cotangent_strides, derivative_constants
from torchadx.kernels._launch import Launch, check_operands, check_shape, strides, tile_constants, tiles
from torchadx.kernels._tile import advance, dot, grid_offsets, load, narrow, span, store, swizzle


@triton.jit
def input_grad_kernel(
    gy_ptr, gz_ptr, kept_ptr, w_ptr, gx_ptr, M, N, K,
    gy_row, gy_col, gz_row, gz_col, kept_row, kept_col, w_row, w_col,
    DERIVATIVE: tl.constexpr, SETTLE: tl.constexpr, PRECISION: tl.constexpr, INTERPRET: tl.constexpr,
    WIDE: tl.constexpr, EVEN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Compute one (BM, BN) tile of ``g @ w``, which is (M, K), summed over N."""
    block_m, block_k = swizzle(tl.program_id(0), tl.cdiv(M, BM), tl.cdiv(K, BN), GROUP)
    rows = span(block_m, BM, WIDE)
    cols = span(block_k, BN, WIDE)
    inner = span(0, BK, WIDE)
    gy_offsets = grid_offsets(rows, inner, gy_row, gy_col)
    gz_offsets = grid_offsets(rows, inner, gz_row, gz_col)
    kept_offsets = grid_offsets(rows, inner, kept_row, kept_col)
    w_offsets = grid_offsets(inner, cols, w_row, w_col)
    acc = tl.zeros((BM, BN), tl.float32)
    for start in range(0, N, BK):
        within = start + inner < N
        g = cotangent(
            gy_ptr, gz_ptr, kept_ptr, gy_offsets, gz_offsets, kept_offsets, (rows < M)[:, None], within[None, :],
            DERIVATIVE, SETTLE, INTERPRET, EVEN,
        )  # fmt: skip
        w = load(w_ptr + w_offsets, (cols < K)[None, :], within[:, None], EVEN)
        acc = dot(narrow(g, w.dtype, INTERPRET), w, acc, PRECISION, INTERPRET)
        w_ptr = advance(w_ptr, BK, w_row)
        if gy_ptr is not None:
            gy_ptr = advance(gy_ptr, BK, gy_col)
        if gz_ptr is not None:
            gz_ptr = advance(gz_ptr, BK, gz_col)
        if kept_ptr is not None:
            kept_ptr = advance(kept_ptr, BK, kept_col)
    store(gx_ptr, acc, rows, cols, M, K, INTERPRET)


def linear_input_grad(
    gy: Tensor | None, gz: Tensor | None, kept: Tensor | None, w: Tensor, row: Activation, *, config: Config
) -> Tensor:
    """Compute ``(gy * f'(kept) + gz) @ w``.

    Args:
        gy: ``(M, N)``, gradient of the output; fp32, fp16 or bf16, any strides; ``None`` for zero.
        gz: ``(M, N)``, gradient of the pre-activation, same dtype; ``None`` for zero. Not both may be ``None``.
        kept: ``(M, N)``, what ``row.keeps`` names, same dtype; ``None`` if it names nothing or gy is ``None``.
        w: ``(N, K)``, same dtype.
        row: The activation, one that :func:`untranslatable` accepts.
        config: Tile sizes.

    Returns:
        ``(M, K)``, same dtype, contiguous.

    Raises:
        ValueError: Shapes, dtypes or devices do not fit, or the activation cannot be translated.
    """
    op = "linear_input_grad"
    m, n, kept = check_cotangents(op, gy, gz, kept, row)
    check_operands(op, gy=gy, gz=gz, kept=kept, w=w)
    k = w.shape[1]
    check_shape(op, "w", w, n, k)
    gx = torch.empty((m, k), dtype=w.dtype, device=w.device)
    if k > 0:
        plan_input_grad(gy, gz, kept, w, gx, row, config).run()
    return gx


def plan_input_grad(
    gy: Tensor | None, gz: Tensor | None, kept: Tensor | None, w: Tensor, gx: Tensor, row: Activation, config: Config
) -> Launch:
    """Describe the launch that fills gx."""
    (n, k), m = w.shape, gx.shape[0]
    return Launch(
        input_grad_kernel,
        (tiles(m, k, config),),
        {
            "gy_ptr": gy, "gz_ptr": gz, "kept_ptr": kept, "w_ptr": w, "gx_ptr": gx, "M": m, "N": n, "K": k,
            **cotangent_strides(gy, gz, kept), **strides(w, "w_row", "w_col"),
        },
        {**derivative_constants(row, w.device), **tile_constants(config, w.dtype, n, (gy, gz, kept, w, gx))},
        config.warps,
        config.stages,
    )  # fmt: skip
