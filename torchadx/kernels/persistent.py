"""The forward kernel for GPUs with a tensor memory accelerator (sm_90 and up).

As many programs as there are multiprocessors walk over the output tiles, and move tiles through tensor descriptors:
the hardware computes addresses and bounds, and the next tile's loads overlap this tile's epilogue.
"""

import contextvars

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchadx.activations import Activation
from torchadx.kernels._configs import Config
from torchadx.kernels._launch import Launch, check, interpreting, slices, strides, tile_constants, tiles
from torchadx.kernels._tile import add_bias, dot, halves, narrow, span, swizzle
from torchadx.kernels._translate import device_function


@triton.jit
def _finish(
    acc, first_row, first_col, b_ptr, y, z, N, b_step,
    SAVE: tl.constexpr, SLICES: tl.constexpr, VALUE: tl.constexpr, DTYPE: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """Add the bias, apply the activation and store, slice after slice: the whole tile at once would spill."""
    if SLICES > 1:
        left, right = halves(acc)
        half: tl.constexpr = acc.shape[1] // 2
        _finish(left, first_row, first_col, b_ptr, y, z, N, b_step, SAVE, SLICES // 2, VALUE, DTYPE, INTERPRET)
        _finish(right, first_row, first_col + half, b_ptr, y, z, N, b_step, SAVE, SLICES // 2, VALUE, DTYPE, INTERPRET)
    else:
        acc = add_bias(acc, b_ptr, span(0, acc.shape[1], False) + first_col, N, b_step, INTERPRET)
        if SAVE:
            z.store([first_row, first_col], narrow(acc, DTYPE, INTERPRET))
        y.store([first_row, first_col], narrow(VALUE(acc), DTYPE, INTERPRET))


@triton.jit
def persistent_kernel(
    x_ptr, w_ptr, b_ptr, y_ptr, z_ptr, M, N, K, x_row, w_row, b_step,
    SLICES: tl.constexpr, VALUE: tl.constexpr, PRECISION: tl.constexpr, INTERPRET: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Compute the tiles of y, and of z where z_ptr is given, that are this program's: every one in so many programs."""
    SAVE: tl.constexpr = z_ptr is not None
    x = tl.make_tensor_descriptor(x_ptr, [M, K], [x_row, 1], [BM, BK])
    w = tl.make_tensor_descriptor(w_ptr, [N, K], [w_row, 1], [BN, BK])
    y = tl.make_tensor_descriptor(y_ptr, [M, N], [N, 1], [BM, BN // SLICES])
    z = y
    if SAVE:
        z = tl.make_tensor_descriptor(z_ptr, [M, N], [N, 1], [BM, BN // SLICES])
    blocks_m, blocks_n = tl.cdiv(M, BM), tl.cdiv(N, BN)
    for tile in tl.range(tl.program_id(0), blocks_m * blocks_n, tl.num_programs(0), flatten=True):
        block_m, block_n = swizzle(tile, blocks_m, blocks_n, GROUP)
        acc = tl.zeros((BM, BN), tl.float32)
        for start in range(0, K, BK):
            x_tile = x.load([block_m * BM, start])
            w_tile = w.load([block_n * BN, start])
            acc = dot(x_tile, tl.trans(w_tile), acc, PRECISION, INTERPRET)
        _finish(
            acc, block_m * BM, block_n * BN, b_ptr, y, z, N, b_step,
            SAVE, SLICES, VALUE, y_ptr.dtype.element_ty, INTERPRET,
        )  # fmt: skip


def persistent_applies(x: Tensor, w: Tensor) -> bool:
    """Say whether the persistent kernel can read x ``(M, K)`` and w ``(N, K)`` and write y ``(M, N)``.

    Tensor descriptors need contiguous rows that start at multiples of 16 bytes, and at least one column. The device
    is not looked at: :func:`configs` offers persistent configs only where the hardware has descriptors.
    """
    aligned = all(
        tensor.stride(1) == 1
        and tensor.shape[1] > 0
        and tensor.data_ptr() % 16 == 0
        and tensor.stride(0) > 0
        and tensor.stride(0) * tensor.element_size() % 16 == 0
        for tensor in (x, w)
    )
    return aligned and w.shape[0] * x.element_size() % 16 == 0


def plan_persistent(
    x: Tensor, w: Tensor, b: Tensor | None, y: Tensor, z: Tensor | None, row: Activation, config: Config
) -> Launch:
    """Describe the launch that fills y, and z if given."""
    check(
        persistent_applies(x, w),
        f"config {config.name} reads rows through tensor descriptors, which need 16-byte aligned, contiguous rows; "
        f"got strides {x.stride()} and {w.stride()}, N={w.shape[0]}: use a config that is not persistent",
    )
    (m, k), n = x.shape, w.shape[0]
    constants = tile_constants(config, x.dtype, k, ())
    return _DescriptorLaunch(
        persistent_kernel,
        (min(tiles(m, n, config), _multiprocessors(x.device)),),
        {
            "x_ptr": x, "w_ptr": w, "b_ptr": b, "y_ptr": y, "z_ptr": z, "M": m, "N": n, "K": k,
            "x_row": x.stride(0), "w_row": w.stride(0), **strides(b, "b_step"),
        },
        {
            "VALUE": device_function(row.value), "SLICES": slices(config),
            **{name: value for name, value in constants.items() if name not in ("WIDE", "EVEN")},
        },
        config.warps,
        config.stages,
    )  # fmt: skip


class _DescriptorLaunch(Launch):
    """A launch whose kernel makes tensor descriptors, which Triton keeps in memory that the caller provides."""

    def run(self) -> None:
        """Start the kernel, with an allocator that lasts for this launch only."""
        device = self.arguments["x_ptr"].device

        def start() -> None:
            triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device=device))
            super(_DescriptorLaunch, self).run()

        # Triton reads its allocator from a context variable: a copied context leaves the user's own in place
        contextvars.copy_context().run(start)


def _multiprocessors(device: torch.device) -> int:
    if interpreting() or device.type != "cuda":
        return 3  # few, so that a program gets several tiles even of a small test
    return torch.cuda.get_device_properties(device).multi_processor_count
