"""What a kernel is started with, described once: launchers run it, and the compile tests compile it for any target."""

import contextlib
import dataclasses
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from torchadx.kernels._configs import Config
from torchadx.kernels._tile import gemm

_TRITON = tuple(map(int, triton.__version__.split(".")[:2]))

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def interpreting() -> bool:
    """Say whether Triton interprets kernels on the CPU: TRITON_INTERPRET was set when this package was imported."""
    return isinstance(gemm, InterpretedFunction)


def capability(device: torch.device) -> tuple[str, int | str]:
    """Return what configs are chosen by.

    Args:
        device: Where the tensors live.

    Returns:
        ``("cuda", 90)``, ``("hip", "gfx942")`` or ``("interpreter", 0)``.

    Raises:
        ValueError: Triton cannot run there.
    """
    if interpreting():
        return "interpreter", 0
    if device.type != "cuda":
        raise ValueError(
            f"Triton cannot run on {device}: use a CUDA or ROCm device, the ATen backend, "
            "or set TRITON_INTERPRET=1 before torchadx is imported"
        )
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return "hip", properties.gcnArchName.split(":")[0]
    return "cuda", 10 * properties.major + properties.minor


def settles(capability: tuple[str, int | str]) -> bool:
    """Say whether kernels :func:`settle` an operand there: NVIDIA's, where Triton can pipeline what that takes.

    Triton before 3.9 refuses an assembly statement in a pipelined loop on sm_100 and up; kernels compile without it.
    """
    backend, arch = capability
    return backend == "cuda" and (_TRITON >= (3, 9) or arch < 100)


@dataclasses.dataclass(frozen=True)
class Launch:
    """One kernel launch.

    Attributes:
        kernel: The ``@triton.jit`` function.
        grid: Number of programs along each axis.
        arguments: Tensors, integers, and ``None`` for a tensor that is absent, which Triton compiles out.
        constants: Compile-time constants.
        warps: Warps per program.
        stages: Depth of the software pipeline.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Tensor | int | None]
    constants: dict[str, Any]
    warps: int
    stages: int

    def run(self) -> None:
        """Start the kernel on the device of its tensors."""
        tensors = [value for value in self.arguments.values() if isinstance(value, Tensor)]
        device = tensors[0].device
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            self.kernel[self.grid](**self.arguments, **self.constants, num_warps=self.warps, num_stages=self.stages)


def tile_constants(config: Config, dtype: torch.dtype, reduced: int, tensors: "tuple[Tensor | None, ...]") -> dict:
    """Return the compile-time constants that every tiled kernel takes.

    Args:
        config: Tile sizes and grouping.
        dtype: What the operands of the matrix products are.
        reduced: Size of the dimension that the products sum over.
        tensors: Everything the kernel addresses, to tell whether 32-bit offsets suffice.
    """
    return {
        "PRECISION": _precision(dtype),
        "INTERPRET": interpreting(),
        "WIDE": any(_extent(tensor) >= 2**31 for tensor in tensors if tensor is not None),
        "EVEN": reduced % config.BK == 0,
        "BM": config.BM,
        "BN": config.BN,
        "BK": config.BK,
        "GROUP": config.group,
    }


def _precision(dtype: torch.dtype) -> str:
    # the setting only means something for fp32; elsewhere it would compile every kernel twice
    if dtype != torch.float32:
        return "tf32"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def _extent(tensor: Tensor) -> int:
    """Return the offset of the last element, in elements."""
    return sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def tiles(rows: int, cols: int, config: Config) -> int:
    """Count the output tiles; a matrix without columns has some too, for the sake of the bias gradient."""
    return triton.cdiv(rows, config.BM) * max(1, triton.cdiv(cols, config.BN))


def slices(config: Config) -> int:
    """Count the column slices of a tile to finish one by one, so that a thread holds about 32 elements of each.

    AMD's processors have twice the registers, and would cut a tile through shared memory: there it stays whole.
    """
    if torch.version.hip is not None:
        return 1
    per_thread = config.BM * config.BN // (32 * config.warps)
    return max(1, min(4, per_thread // 32, config.BN // 16))


def strides(tensor: Tensor | None, *names: str) -> dict[str, int]:
    """Name the strides of a tensor for the kernel; zeros where there is no tensor."""
    return dict(zip(names, tensor.stride() if tensor is not None else (0,) * len(names), strict=True))


def check(condition: bool, message: str) -> None:
    """Raise ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def check_operands(op: str, **tensors: Tensor | None) -> torch.dtype:
    """Check that all tensors given share one device and one dtype that Triton kernels take, and return the dtype."""
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    kinds = {(tensor.dtype, tensor.device) for tensor in given.values()}
    got = ", ".join(f"{name} {tensor.dtype} on {tensor.device}" for name, tensor in given.items())
    check(len(kinds) == 1, f"{op}: tensors must share one dtype and device, got {got}; cast or move them first")
    ((dtype, _),) = kinds
    check(dtype in DTYPES, f"{op}: dtype must be float32, float16 or bfloat16, got {dtype}; use the ATen backend")
    return dtype


def check_shape(op: str, name: str, tensor: Tensor | None, *shape: int) -> None:
    """Check the shape of a tensor, if there is one."""
    if tensor is not None:
        check(tensor.shape == shape, f"{op}: {name} must have shape {shape}, got {tuple(tensor.shape)}")
