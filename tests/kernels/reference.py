"""What kernels are compared with: the formulas in float64, and the plain PyTorch route in the dtype under test."""

import dataclasses
import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from torchadx.activations import Activation

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = ("contiguous", "transposed", "stepped")


@dataclasses.dataclass
class Inputs:
    """Random tensors on the CPU in one dtype; what a test leaves out is None."""

    x: Tensor
    w: Tensor
    b: Tensor | None
    gy: Tensor | None
    gz: Tensor | None
    kept: Tensor | None
    tx: Tensor | None
    tw: Tensor | None
    tb: Tensor | None

    def on(self, device: torch.device, *names: str) -> list[Tensor | None]:
        """Return some of the tensors on a device, with their strides."""
        return [move(getattr(self, name), device) for name in names]

    def exact(self) -> "Inputs":
        """Return the same values in float64."""
        tensors = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Inputs(**{name: t.double() if t is not None else None for name, t in tensors.items()})


def move(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    """Copy a tensor to a device, strides and all."""
    if tensor is None or tensor.device == device:
        return tensor
    extent = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    flat = tensor.as_strided((extent,), (1,)) if tensor.numel() else tensor.reshape(-1)
    return flat.to(device).as_strided(tensor.shape, tensor.stride())


def random(*shape: int, dtype: torch.dtype, layout: str, seed: int) -> Tensor:
    """Return a normal tensor whose last two dimensions have a given layout."""
    generator = torch.Generator().manual_seed(seed)
    *batch, rows, cols = shape if len(shape) > 1 else (1, *shape)
    if layout == "transposed":
        tensor = torch.randn(*batch, cols, rows, generator=generator).to(dtype).mT
    elif layout == "stepped":
        tensor = torch.randn(*batch, 2 * rows, 3 * cols, generator=generator).to(dtype)[..., ::2, 1::3]
    else:
        tensor = torch.randn(*batch, rows, cols, generator=generator).to(dtype)
    return tensor if len(shape) > 1 else tensor[0]


def inputs(
    row: Activation,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    *,
    layout: str = "contiguous",
    leave_out: tuple[str, ...] = (),
    batch: int = 0,
    shared: str = "",
) -> Inputs:
    """Make random inputs for ``M, N, K = shape``; tangents get a batch of that size except those named in shared."""
    m, n, k = shape
    shapes = {"x": (m, k), "w": (n, k), "b": (n,), "gy": (m, n), "gz": (m, n), "kept": (m, n)}
    for name, primal in (("tx", "x"), ("tw", "w"), ("tb", "b")):
        lead = (batch,) if batch and name not in shared else ()
        shapes[name] = (*lead, *shapes[primal])
    layouts = itertools.cycle((layout, *LAYOUTS) if layout != "contiguous" else (layout,))
    made = {
        name: None if name in leave_out else random(*size, dtype=dtype, layout=next(layouts), seed=seed)
        for seed, (name, size) in enumerate(shapes.items())
    }
    made["x"], made["w"] = made["x"] / 2, made["w"] / 2
    if row.keeps == "nothing" or "kept" in leave_out:
        made["kept"] = None
    elif row.keeps == "output":
        made["kept"] = row.value(made["kept"].float()).to(dtype)
    return Inputs(**made)


def forward(row: Activation, i: Inputs) -> dict[str, Tensor]:
    """Plain PyTorch: a linear layer, then ATen's activation, in the dtype of the inputs."""
    z = F.linear(i.x, i.w, i.b)
    return {"y": row.forward(z), "z": z}


def cotangent(row: Activation, i: Inputs) -> Tensor:
    """Plain PyTorch: the gradient of the pre-activation."""
    parts = [row.backward(i.gy, i.kept)] if i.gy is not None else []
    parts += [i.gz] if i.gz is not None else []
    return sum(parts[1:], parts[0])


def backward(row: Activation, i: Inputs) -> dict[str, Tensor]:
    """Plain PyTorch: gradients of input, weight and bias."""
    g = cotangent(row, i)
    return {"gx": g @ i.w, "gw": g.mT @ i.x, "gb": g.sum(0)}


def dual(row: Activation, i: Inputs) -> dict[str, Tensor]:
    """Plain PyTorch: a linear layer and its tangents."""
    made = forward(row, i)
    parts = []
    if i.tx is not None:
        parts.append(i.tx @ i.w.mT)
    if i.tw is not None:
        parts.append(i.x @ i.tw.mT)
    if i.tb is not None:
        bias = i.tb.unsqueeze(-2)
        parts.append(bias.expand(*bias.shape[:-2], i.x.shape[0], bias.shape[-1]))
    tz = sum(parts[1:], parts[0])
    kept = row.kept(made["y"], made["z"])
    slope = row.derivative(made["z"] if kept is None else kept)
    return {**made, "tz": tz, "ty": slope * tz}


def assert_near(got: dict[str, Tensor | None], plain: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    """Require of every result an error against float64 of at most twice that of plain PyTorch, plus 1e-6."""
    for name, tensor in got.items():
        if tensor is None:
            continue
        assert tensor.shape == exact[name].shape, name
        ours, theirs = distance(tensor.cpu(), exact[name]), distance(plain[name], exact[name])
        assert ours <= 2 * theirs + 1e-6, f"{name}: error {ours:.2e}, plain PyTorch {theirs:.2e}"


def distance(tensor: Tensor, exact: Tensor) -> float:
    """Return the relative norm of the difference; absolute where exact is zero."""
    error, size = (tensor.double() - exact).norm().item(), exact.norm().item()
    return error / size if size > 0 else error
