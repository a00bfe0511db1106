"""The gradient of the pre-activation, ``g = gy * f'(kept) + gz``, as both backward kernels rebuild it tile by tile.

It never reaches memory.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchadx.activations import Activation
from torchadx.kernels._launch import capability, check, check_shape, settles, strides
from torchadx.kernels._tile import load, settle, widen
from torchadx.kernels._translate import device_function


@triton.jit
def cotangent(
    gy_ptr, gz_ptr, kept_ptr, gy_offsets, gz_offsets, kept_offsets, fixed, moving,
    DERIVATIVE: tl.constexpr, SETTLE: tl.constexpr, INTERPRET: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Return a tile of ``gy * f'(kept) + gz`` in fp32, zero outside the reduced dimension."""
    if gy_ptr is None:
        g = widen(load(gz_ptr + gz_offsets, fixed, moving, EVEN), INTERPRET)
    else:
        g = widen(load(gy_ptr + gy_offsets, fixed, moving, EVEN), INTERPRET)
        if kept_ptr is None:
            g *= DERIVATIVE(g)  # a constant, which reads nothing but the shape
        else:
            g *= DERIVATIVE(widen(load(kept_ptr + kept_offsets, fixed, moving, EVEN), INTERPRET))
        if gz_ptr is not None:
            g += widen(load(gz_ptr + gz_offsets, fixed, moving, EVEN), INTERPRET)
    if not EVEN:
        # a derivative may be infinite at the zeros that fill the tile
        g = tl.where(moving, g, 0.0)
    return settle(g, SETTLE)


def cotangent_strides(gy: Tensor | None, gz: Tensor | None, kept: Tensor | None) -> dict[str, int]:
    """Name the strides for the kernels."""
    return {
        **strides(gy, "gy_row", "gy_col"),
        **strides(gz, "gz_row", "gz_col"),
        **strides(kept, "kept_row", "kept_col"),
    }


def derivative_constants(row: Activation, device: torch.device) -> dict[str, object]:
    """Return the compile-time constants of :func:`cotangent` that other kernels do not take."""
    return {
        "DERIVATIVE": device_function(row.derivative),
        "SETTLE": device.type == "cuda" and settles(capability(device)),
    }


def check_cotangents(
    op: str, gy: Tensor | None, gz: Tensor | None, kept: Tensor | None, row: Activation
) -> tuple[int, int, Tensor | None]:
    """Check that the cotangents fit together; return M, N, and what there is to read of ``kept``."""
    given = gy if gy is not None else gz
    check(given is not None, f"{op}: gy and gz are both None, so the gradient is zero; skip the call")
    m, n = given.shape
    check_shape(op, "gz", gz, m, n)
    check_shape(op, "kept", kept, m, n)
    if gy is None or row.keeps == "nothing":
        return m, n, None
    check(kept is not None, f"{op}: {row!r} needs its {row.keeps} to evaluate the derivative, got kept=None")
    return m, n, kept
