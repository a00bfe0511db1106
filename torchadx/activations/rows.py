"""The table of activations: formulas, then one row each. A new activation is written here and nowhere else."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchadx.activations.activation import Activation

aten = torch.ops.aten

# Each formula is a plain function rather than a lambda: Triton reads functions from their source.


def _identity(z: Tensor) -> Tensor:
    return z


def _one(kept: Tensor) -> Tensor:
    return torch.ones_like(kept)


def _zero(kept: Tensor) -> Tensor:
    return torch.zeros_like(kept)


def _relu(z: Tensor) -> Tensor:
    return torch.where(z <= 0, torch.zeros_like(z), z)


def _relu_d(y: Tensor) -> Tensor:
    return torch.where(y <= 0, torch.zeros_like(y), torch.ones_like(y))


def _leaky_relu(z: Tensor) -> Tensor:
    return torch.where(z > 0, z, 0.01 * z)


def _leaky_relu_d(y: Tensor) -> Tensor:
    return torch.where(y > 0, torch.ones_like(y), 0.01 * torch.ones_like(y))


def _elu(z: Tensor) -> Tensor:
    return torch.where(z > 0, z, torch.expm1(torch.where(z > 0, torch.zeros_like(z), z)))


def _elu_d(z: Tensor) -> Tensor:
    # not from the output, which a short dtype rounds to -1 long before the slope is 0
    return torch.exp(torch.where(z > 0, torch.zeros_like(z), z))


def _elu_dd(z: Tensor) -> Tensor:
    return torch.where(z < 0, torch.exp(torch.where(z > 0, torch.zeros_like(z), z)), torch.zeros_like(z))


def _gelu(z: Tensor) -> Tensor:
    return 0.5 * z * (1 + torch.erf(z * 0.7071067811865476))


def _gelu_d(z: Tensor) -> Tensor:
    density = 0.3989422804014327 * torch.exp(-0.5 * z * z)
    return 0.5 * (1 + torch.erf(z * 0.7071067811865476)) + z * density


def _gelu_dd(z: Tensor) -> Tensor:
    density = 0.3989422804014327 * torch.exp(-0.5 * z * z)
    return density * (2 - z * z)


def _gelu_tanh(z: Tensor) -> Tensor:
    return 0.5 * z * (1 + torch.tanh(0.7978845608028654 * (z + 0.044715 * z * z * z)))


def _gelu_tanh_d(z: Tensor) -> Tensor:
    t = torch.tanh(0.7978845608028654 * (z + 0.044715 * z * z * z))
    inner = 0.7978845608028654 * (1 + 0.134145 * z * z)
    return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * inner


def _gelu_tanh_dd(z: Tensor) -> Tensor:
    t = torch.tanh(0.7978845608028654 * (z + 0.044715 * z * z * z))
    inner = 0.7978845608028654 * (1 + 0.134145 * z * z)
    bend = 0.7978845608028654 * 0.26829 * z
    return (1 - t * t) * (inner + 0.5 * z * (bend - 2 * t * inner * inner))


def _quick_gelu(z: Tensor) -> Tensor:
    return z * torch.sigmoid(1.702 * z)


def _quick_gelu_d(z: Tensor) -> Tensor:
    s = torch.sigmoid(1.702 * z)
    return s * (1 + 1.702 * z * (1 - s))


def _quick_gelu_dd(z: Tensor) -> Tensor:
    s = torch.sigmoid(1.702 * z)
    return 1.702 * s * (1 - s) * (2 + 1.702 * z * (1 - 2 * s))


def _silu(z: Tensor) -> Tensor:
    return z * torch.sigmoid(z)


def _silu_d(z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 + z * (1 - s))


def _silu_dd(z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 - s) * (2 + z * (1 - 2 * s))


def _softplus(z: Tensor) -> Tensor:
    # the inner where() keeps the branch that is not taken finite, and with it the formula's own derivatives
    return torch.where(z > 20, z, torch.log1p(torch.exp(torch.where(z > 20, torch.zeros_like(z), z))))


def _softplus_d(z: Tensor) -> Tensor:
    return torch.where(z > 20, torch.ones_like(z), torch.sigmoid(z))


def _softplus_dd(z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return torch.where(z < 20, s * (1 - s), torch.zeros_like(z))


def _mish(z: Tensor) -> Tensor:
    softplus = torch.where(z > 20, z, torch.log1p(torch.exp(torch.where(z > 20, torch.zeros_like(z), z))))
    return z * torch.tanh(softplus)


def _mish_d(z: Tensor) -> Tensor:
    softplus = torch.where(z > 20, z, torch.log1p(torch.exp(torch.where(z > 20, torch.zeros_like(z), z))))
    t = torch.tanh(softplus)
    return t + z * torch.sigmoid(z) * (1 - t * t)


def _mish_dd(z: Tensor) -> Tensor:
    softplus = torch.where(z > 20, z, torch.log1p(torch.exp(torch.where(z > 20, torch.zeros_like(z), z))))
    t = torch.tanh(softplus)
    s = torch.sigmoid(z)
    return s * (1 - t * t) * (2 + z * (1 - s - 2 * t * s))


def _tanh(z: Tensor) -> Tensor:
    return torch.tanh(z)


def _tanh_d(y: Tensor) -> Tensor:
    return 1 - y * y


def _tanh_dd(y: Tensor) -> Tensor:
    return -2 * y * (1 - y * y)


def _sigmoid(z: Tensor) -> Tensor:
    return torch.sigmoid(z)


def _sigmoid_d(y: Tensor) -> Tensor:
    return y * (1 - y)


def _sigmoid_dd(y: Tensor) -> Tensor:
    return y * (1 - y) * (1 - 2 * y)


def _hardswish(z: Tensor) -> Tensor:
    return torch.where(z <= -3, 0 * z, torch.where(z >= 3, z, z * (z + 3) / 6))


def _hardswish_d(z: Tensor) -> Tensor:
    inside = torch.where(z >= 3, torch.ones_like(z), z / 3 + 0.5)
    return torch.where(z <= -3, torch.zeros_like(z), inside)


def _hardswish_dd(z: Tensor) -> Tensor:
    return ((z > -3) & (z < 3)).to(z.dtype) / 3


def _relu_squared(z: Tensor) -> Tensor:
    return torch.where(z <= 0, torch.zeros_like(z), z * z)


def _relu_squared_d(z: Tensor) -> Tensor:
    return torch.where(z <= 0, torch.zeros_like(z), 2 * z)


def _relu_squared_dd(z: Tensor) -> Tensor:
    return 2 * (z > 0).to(z.dtype)


def _pre_activation_in_place(forward_: Callable, backward_into: Callable, **options: Any) -> Callable:
    def overwrite(z: Tensor, tz: Tensor) -> None:
        backward_into(tz, z, grad_input=tz, **options)
        forward_(z, **options)

    return overwrite


def _output_in_place(forward_: Callable, backward_into: Callable, *options: Any) -> Callable:
    def overwrite(z: Tensor, tz: Tensor) -> None:
        forward_(z)
        backward_into(tz, z, *options, grad_input=tz)

    return overwrite


ROWS = (
    Activation("identity", _identity, _one, _zero, "nothing", backward=lambda g, kept: g,
               onednn=("none", ""), modules=(nn.Identity(),), aliases=("none", "linear")),
    Activation("relu", _relu, _relu_d, _zero, "output", forward=torch.relu,
               backward=lambda g, y: aten.threshold_backward(g, y, 0),
               overwrite=_output_in_place(aten.relu_, aten.threshold_backward.grad_input, 0),
               onednn=("relu", ""), modules=(nn.ReLU(),), functions=(F.relu, torch.relu)),
    Activation("leaky_relu", _leaky_relu, _leaky_relu_d, _zero, "output", forward=F.leaky_relu,
               backward=lambda g, y: aten.leaky_relu_backward(g, y, 0.01, True),
               modules=(nn.LeakyReLU(),), functions=(F.leaky_relu,)),
    Activation("elu", _elu, _elu_d, _elu_dd, forward=F.elu,
               backward=lambda g, z: aten.elu_backward(g, 1, 1, 1, False, z),
               modules=(nn.ELU(),), functions=(F.elu,)),
    Activation("gelu", _gelu, _gelu_d, _gelu_dd, forward=F.gelu, backward=aten.gelu_backward,
               overwrite=_pre_activation_in_place(aten.gelu_, aten.gelu_backward.grad_input),
               onednn=("gelu", "none"), modules=(nn.GELU(),), functions=(F.gelu,)),
    Activation("gelu_tanh", _gelu_tanh, _gelu_tanh_d, _gelu_tanh_dd,
               forward=lambda z: F.gelu(z, approximate="tanh"),
               backward=lambda g, z: aten.gelu_backward(g, z, approximate="tanh"),
               overwrite=_pre_activation_in_place(aten.gelu_, aten.gelu_backward.grad_input, approximate="tanh"),
               onednn=("gelu", "tanh"), modules=(nn.GELU("tanh"),), aliases=("gelu_new", "gelu_pytorch_tanh")),
    Activation("quick_gelu", _quick_gelu, _quick_gelu_d, _quick_gelu_dd,
               fast_backward=lambda g, z: aten.silu_backward(g, 1.702 * z)),
    Activation("silu", _silu, _silu_d, _silu_dd, forward=F.silu, fast_backward=aten.silu_backward,
               overwrite=_pre_activation_in_place(aten.silu_, aten.silu_backward.grad_input),
               onednn=("swish", ""), modules=(nn.SiLU(),), functions=(F.silu,), aliases=("swish",)),
    Activation("mish", _mish, _mish_d, _mish_dd, forward=F.mish, fast_backward=aten.mish_backward,
               modules=(nn.Mish(),), functions=(F.mish,)),
    Activation("tanh", _tanh, _tanh_d, _tanh_dd, "output", forward=torch.tanh, backward=aten.tanh_backward,
               overwrite=_output_in_place(aten.tanh_, aten.tanh_backward.grad_input),
               onednn=("tanh", ""), modules=(nn.Tanh(),), functions=(F.tanh, torch.tanh)),
    Activation("sigmoid", _sigmoid, _sigmoid_d, _sigmoid_dd, "output", forward=torch.sigmoid,
               backward=aten.sigmoid_backward,
               overwrite=_output_in_place(aten.sigmoid_, aten.sigmoid_backward.grad_input),
               onednn=("sigmoid", ""), modules=(nn.Sigmoid(),), functions=(F.sigmoid, torch.sigmoid)),
    Activation("softplus", _softplus, _softplus_d, _softplus_dd, forward=F.softplus,
               backward=lambda g, z: aten.softplus_backward(g, z, 1, 20),
               modules=(nn.Softplus(),), functions=(F.softplus,)),
    Activation("hardswish", _hardswish, _hardswish_d, _hardswish_dd, forward=F.hardswish,
               backward=aten.hardswish_backward,
               onednn=("hardswish", ""), modules=(nn.Hardswish(),), functions=(F.hardswish,)),
    Activation("relu_squared", _relu_squared, _relu_squared_d, _relu_squared_dd,
               forward=lambda z: torch.relu(z).square(), backward=lambda g, z: g * torch.relu(z) * 2,
               aliases=("relu2", "squared_relu")),
)  # fmt: skip
