"""The ways to differentiate a layer that are benchmarked, and the tensors they run on."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Layer = Callable[[Tensor, Tensor, Tensor], Tensor]
Shape = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Problem:
    """The tensors of a case, with M rows, K inputs and N outputs.

    Attributes:
        x: Input ``(M, K)``.
        weight: ``(N, K)``.
        bias: ``(N,)``.
        cotangent: Gradient of the output ``(M, N)``; also the target of the MeanFlow loss.
        tangent: Tangent of the input ``(M, K)``.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor
    cotangent: Tensor
    tangent: Tensor

    @classmethod
    def random(cls, shape: Shape, dtype: torch.dtype, device: torch.device) -> "Problem":
        """Draw a problem as a trained layer meets it: unit inputs, weights that keep the variance."""
        m, k, n = shape
        generator = torch.Generator().manual_seed(0)
        sizes = {"x": (m, k), "weight": (n, k), "bias": (n,), "cotangent": (m, n), "tangent": (m, k)}
        tensors = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
        tensors["weight"] /= math.sqrt(k)
        return cls(**{name: tensor.to(device, dtype) for name, tensor in tensors.items()})

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def double(self) -> "Problem":
        """Return the same problem in float64."""
        return Problem(**{name: tensor.double() for name, tensor in self.tensors().items()})

    def requiring_grad(self, *names: str) -> "Problem":
        """Return a copy whose tensors ``names``, and no others, are leaves that require a gradient."""
        return Problem(
            **{name: tensor.detach().requires_grad_(name in names) for name, tensor in self.tensors().items()}
        )


@dataclasses.dataclass(frozen=True)
class Mode:
    """A way to differentiate a layer.

    Attributes:
        title: Shown above the table.
        needs_grad: Names of the problem's tensors that require a gradient.
        step: Turns a layer into the function of tensors that torch.compile is given whole.
        drive: Runs a step on a problem; returns every result that a user of the mode reads.
        gemms: How many products of M x K x N multiply-adds the mode needs.
        bare: The same products alone.
    """

    title: str
    needs_grad: tuple[str, ...]
    step: Callable[[Layer], Callable[..., Any]]
    drive: Callable[[Callable[..., Any], Problem], Any]
    gemms: int
    bare: Callable[[Problem], Any]


def _itself(layer: Layer) -> Layer:
    return layer


def _tangent_step(layer: Layer) -> Callable[..., Any]:
    def step(x: Tensor, weight: Tensor, bias: Tensor, tangent: Tensor) -> Any:
        return torch.func.jvp(lambda x: layer(x, weight, bias), (x,), (tangent,))

    return step


def _meanflow_step(layer: Layer) -> Callable[..., Any]:
    tangent_step = _tangent_step(layer)

    def step(x: Tensor, weight: Tensor, bias: Tensor, tangent: Tensor, target: Tensor) -> Tensor:
        y, y_tangent = tangent_step(x, weight, bias, tangent)
        return (y + y_tangent - target).square().mean()

    return step


def _drive_forward(step: Callable[..., Any], p: Problem) -> Any:
    with torch.no_grad():
        return step(p.x, p.weight, p.bias)


def _drive_train(step: Callable[..., Any], p: Problem) -> Any:
    y = step(p.x, p.weight, p.bias)
    return y, *torch.autograd.grad(y, (p.x, p.weight, p.bias), p.cotangent)


def _drive_jvp(step: Callable[..., Any], p: Problem) -> Any:
    return step(p.x, p.weight, p.bias, p.tangent)


def _drive_meanflow(step: Callable[..., Any], p: Problem) -> Any:
    loss = step(p.x, p.weight, p.bias, p.tangent, p.cotangent)
    return loss, *torch.autograd.grad(loss, (p.weight, p.bias))


def _bare_forward(p: Problem) -> Any:
    with torch.no_grad():
        return F.linear(p.x, p.weight)


def _bare_train(p: Problem) -> Any:
    with torch.no_grad():
        return F.linear(p.x, p.weight), p.cotangent @ p.weight, p.cotangent.t() @ p.x


def _bare_jvp(p: Problem) -> Any:
    with torch.no_grad():
        return F.linear(p.x, p.weight, p.bias), F.linear(p.tangent, p.weight)


def _bare_meanflow(p: Problem) -> Any:
    with torch.no_grad():
        return *_bare_jvp(p), p.cotangent.t() @ p.x, p.cotangent.t() @ p.tangent


MODES = {
    "forward": Mode("Forward, no gradient", (), _itself, _drive_forward, 1, _bare_forward),
    "train": Mode("Forward and backward", ("x", "weight", "bias"), _itself, _drive_train, 3, _bare_train),
    "jvp": Mode("JVP, tangent on x", (), _tangent_step, _drive_jvp, 2, _bare_jvp),
    "meanflow": Mode(
        "MeanFlow loss: gradient of the weights through a JVP",
        ("weight", "bias"), _meanflow_step, _drive_meanflow, 4, _bare_meanflow,
    ),
}  # fmt: skip
