"""``act(x @ weight.T + bias)`` in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchadx.activations import Activation
from torchadx.kernels._configs import Config
from torchadx.kernels._launch import Launch, check_operands, check_shape, slices, strides, tile_constants, tiles
from torchadx.kernels._tile import add_bias, gemm, grid_offsets, halves, span, store, swizzle
from torchadx.kernels._translate import device_function
from torchadx.kernels.persistent import plan_persistent


@triton.jit
def _finish(
    z, first_col, rows, b_ptr, y_ptr, z_ptr, M, N, b_step,
    SLICES: tl.constexpr, VALUE: tl.constexpr, INTERPRET: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Add the bias, apply the activation and store, slice after slice: the whole tile at once would spill."""
    if SLICES > 1:
        left, right = halves(z)
        half: tl.constexpr = z.shape[1] // 2
        _finish(left, first_col, rows, b_ptr, y_ptr, z_ptr, M, N, b_step, SLICES // 2, VALUE, INTERPRET, WIDE)
        _finish(right, first_col + half, rows, b_ptr, y_ptr, z_ptr, M, N, b_step, SLICES // 2, VALUE, INTERPRET, WIDE)
    else:
        cols = span(0, z.shape[1], WIDE) + first_col
        z = add_bias(z, b_ptr, cols, N, b_step, INTERPRET)
        store(z_ptr, z, rows, cols, M, N, INTERPRET)
        store(y_ptr, VALUE(z), rows, cols, M, N, INTERPRET)


@triton.jit
def linear_kernel(
    x_ptr, w_ptr, b_ptr, y_ptr, z_ptr, M, N, K, x_row, x_col, w_row, w_col, b_step,
    SLICES: tl.constexpr, VALUE: tl.constexpr, PRECISION: tl.constexpr, INTERPRET: tl.constexpr, WIDE: tl.constexpr,
    EVEN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Compute one (BM, BN) tile of y, and of z where z_ptr is given."""
    block_m, block_n = swizzle(tl.program_id(0), tl.cdiv(M, BM), tl.cdiv(N, BN), GROUP)
    rows = span(block_m, BM, WIDE)
    cols = span(block_n, BN, WIDE)
    inner = span(0, BK, WIDE)
    z = gemm(
        tl.zeros((BM, BN), tl.float32), x_ptr, w_ptr,
        grid_offsets(rows, inner, x_row, x_col), grid_offsets(inner, cols, w_col, w_row),
        rows < M, cols < N, K, x_col, w_col, PRECISION, INTERPRET, EVEN, BK,
    )  # fmt: skip
    _finish(z, block_n * BN, rows, b_ptr, y_ptr, z_ptr, M, N, b_step, SLICES, VALUE, INTERPRET, WIDE)


def linear_forward(
    x: Tensor, w: Tensor, b: Tensor | None, row: Activation, *, save: bool, config: Config
) -> tuple[Tensor, Tensor | None]:
    """Compute ``y = act(x @ w.T + b)`` from an fp32 accumulator.

    Args:
        x: ``(M, K)``, fp32, fp16 or bf16, any strides.
        w: ``(N, K)``, same dtype.
        b: ``(N,)``, same dtype, or ``None``.
        row: The activation, one that :func:`untranslatable` accepts.
        save: Whether to return the pre-activation too.
        config: Tile sizes; ``config.persistent`` asks for the tensor-descriptor kernel.

    Returns:
        ``(y, z)``, both ``(M, N)`` in x's dtype and contiguous; ``z = x @ w.T + b`` if ``save``, else ``None``.

    Raises:
        ValueError: Shapes, dtypes or devices do not fit, the activation cannot be translated, or the config is
            persistent and :func:`persistent_applies` says no.
    """
    (m, k), n = x.shape, w.shape[0]
    check_operands("linear_forward", x=x, w=w, b=b)
    check_shape("linear_forward", "w", w, n, k)
    check_shape("linear_forward", "b", b, n)
    y = torch.empty((m, n), dtype=x.dtype, device=x.device)
    z = torch.empty_like(y) if save else None
    plan = plan_persistent if config.persistent else plan_forward
    plan(x, w, b, y, z, row, config).run()
    return y, z


def plan_forward(
    x: Tensor, w: Tensor, b: Tensor | None, y: Tensor, z: Tensor | None, row: Activation, config: Config
) -> Launch:
    """Describe the launch that fills y, and z if given."""
    (m, k), n = x.shape, w.shape[0]
    return Launch(
        linear_kernel,
        (tiles(m, n, config),),
        {
            "x_ptr": x, "w_ptr": w, "b_ptr": b, "y_ptr": y, "z_ptr": z, "M": m, "N": n, "K": k,
            **strides(x, "x_row", "x_col"), **strides(w, "w_row", "w_col"), **strides(b, "b_step"),
        },
        {
            "VALUE": device_function(row.value), "SLICES": slices(config),
            **tile_constants(config, x.dtype, k, (x, w, b, y)),
        },
        config.warps,
        config.stages,
    )  # fmt: skip
