"""Cotangents of ``z`` and ``tz`` from those of ``y, z, ty, tz``: what backward through a tangent does between products.

Elementwise, one read of every operand and one write of each result, where ATen would take a dozen passes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchadx.activations import Activation
from torchadx.kernels._launch import Launch, check, check_operands, check_shape, interpreting, strides
from torchadx.kernels._tile import grid_offsets, narrow, span, widen
from torchadx.kernels._translate import device_function

_BLOCK_ROWS, _BLOCK_COLS = 4, 256


@triton.jit
def _read(ptr, offsets, mask, INTERPRET: tl.constexpr):
    return widen(tl.load(ptr + offsets, mask=mask, other=0.0), INTERPRET)


@triton.jit
def dual_cotangents_kernel(
    gy_ptr, gz_ptr, gty_ptr, gtz_ptr, kept_ptr, tz_ptr, g_ptr, a_ptr, M, N, T,
    gy_row, gy_col, gz_row, gz_col, gty_step, gty_row, gty_col, gtz_step, gtz_row, gtz_col, kept_row, kept_col,
    tz_step, tz_row, tz_col, DERIVATIVE: tl.constexpr, SECOND: tl.constexpr, INTERPRET: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Compute one (BM, BN) tile of g, and of a for every tangent."""
    rows = span(tl.program_id(0), BM, True)
    cols = span(tl.program_id(1), BN, True)
    mask = (rows[:, None] < M) & (cols[None, :] < N)
    kept = _read(kept_ptr, grid_offsets(rows, cols, kept_row, kept_col), mask, INTERPRET)
    slope = DERIVATIVE(kept)
    curvature = SECOND(kept)
    out = grid_offsets(rows, cols, N, 1)
    g = tl.zeros((BM, BN), tl.float32)
    if gy_ptr is not None:
        g += _read(gy_ptr, grid_offsets(rows, cols, gy_row, gy_col), mask, INTERPRET) * slope
    if gz_ptr is not None:
        g += _read(gz_ptr, grid_offsets(rows, cols, gz_row, gz_col), mask, INTERPRET)
    for t in range(0, T):
        step = tl.cast(t, tl.int64)
        gty = _read(gty_ptr + step * gty_step, grid_offsets(rows, cols, gty_row, gty_col), mask, INTERPRET)
        tz = _read(tz_ptr + step * tz_step, grid_offsets(rows, cols, tz_row, tz_col), mask, INTERPRET)
        g += gty * tz * curvature
        a = gty * slope
        if gtz_ptr is not None:
            a += _read(gtz_ptr + step * gtz_step, grid_offsets(rows, cols, gtz_row, gtz_col), mask, INTERPRET)
        tl.store(a_ptr + step * M * N + out, narrow(a, a_ptr.dtype.element_ty, INTERPRET), mask=mask)
    tl.store(g_ptr + out, narrow(g, g_ptr.dtype.element_ty, INTERPRET), mask=mask)


def linear_dual_cotangents(
    gy: Tensor | None,
    gz: Tensor | None,
    gty: Tensor,
    gtz: Tensor | None,
    kept: Tensor,
    tz: Tensor,
    row: Activation,
) -> tuple[Tensor, Tensor]:
    """Compute ``g = gy f' + gz + sum over T of gty tz f''`` and ``a = gty f' + gtz``.

    Args:
        gy: ``(M, N)``, gradient of y; fp32, fp16 or bf16, any strides; ``None`` for zero.
        gz: ``(M, N)``, gradient of z, same dtype; ``None`` for zero.
        gty: ``(M, N)`` or ``(T, M, N)``, gradient of ty, same dtype.
        gtz: Gradient of tz, as gty; ``None`` for zero.
        kept: ``(M, N)``, what ``row.keeps`` names, same dtype.
        tz: Tangent of z, as gty.
        row: The activation, of which the second derivative can be translated too.

    Returns:
        ``(g, a)``: ``(M, N)`` and gty's shape, in its dtype, contiguous.

    Raises:
        ValueError: Shapes, dtypes or devices do not fit, or a formula cannot be translated.
    """
    op = "linear_dual_cotangents"
    check_operands(op, gy=gy, gz=gz, gty=gty, gtz=gtz, kept=kept, tz=tz)
    check(gty.dim() in (2, 3), f"{op}: gty must be (M, N) or (T, M, N), got {tuple(gty.shape)}")
    for name, tensor in {"gy": gy, "gz": gz, "kept": kept}.items():
        check_shape(op, name, tensor, *gty.shape[-2:])
    for name, tensor in {"gtz": gtz, "tz": tz}.items():
        check_shape(op, name, tensor, *gty.shape)
    g = torch.empty(kept.shape, dtype=kept.dtype, device=kept.device)
    a = torch.empty(gty.shape, dtype=gty.dtype, device=gty.device)
    plan_dual_cotangents(gy, gz, gty, gtz, kept, tz, g, a, row).run()
    return g, a


def plan_dual_cotangents(
    gy: Tensor | None,
    gz: Tensor | None,
    gty: Tensor,
    gtz: Tensor | None,
    kept: Tensor,
    tz: Tensor,
    g: Tensor,
    a: Tensor,
    row: Activation,
) -> Launch:
    """Describe the launch that fills g and a."""
    m, n = kept.shape
    batch = gty.shape[0] if gty.dim() == 3 else 1
    gty, gtz, tz = (t if t is None or t.dim() == 3 else t.unsqueeze(0) for t in (gty, gtz, tz))
    return Launch(
        dual_cotangents_kernel,
        (triton.cdiv(m, _BLOCK_ROWS), triton.cdiv(n, _BLOCK_COLS)),
        {
            "gy_ptr": gy, "gz_ptr": gz, "gty_ptr": gty, "gtz_ptr": gtz, "kept_ptr": kept, "tz_ptr": tz,
            "g_ptr": g, "a_ptr": a, "M": m, "N": n, "T": batch,
            **strides(gy, "gy_row", "gy_col"), **strides(gz, "gz_row", "gz_col"),
            **strides(gty, "gty_step", "gty_row", "gty_col"), **strides(gtz, "gtz_step", "gtz_row", "gtz_col"),
            **strides(kept, "kept_row", "kept_col"), **strides(tz, "tz_step", "tz_row", "tz_col"),
        },
        {
            "DERIVATIVE": device_function(row.derivative), "SECOND": device_function(row.second_derivative),
            "INTERPRET": interpreting(), "BM": _BLOCK_ROWS, "BN": _BLOCK_COLS,
        },
        warps=4,
        stages=1,
    )  # fmt: skip
