"""What every op of this package computes, in plain ATen: for tools that take functions apart."""

from collections.abc import Callable
from typing import Any

import torch

from torchadx.activations import resolve
from torchadx.ops import _linear_formulas
from torchadx.ops.linear import backward_formula
from torchadx.ops.linear_dual import dual_formula


def formulas() -> dict[Any, Callable[..., Any]]:
    """Return, by overload, a function of the same arguments and results that calls ATen alone."""
    ops = torch.ops.torchadx
    return {
        ops.linear.default: lambda *args: _saving(*args)[0],
        ops.linear_saving.default: _saving,
        ops.linear_backward.default: backward_formula,
        ops.linear_dual.default: dual_formula,
        ops.linear_jvp.default: lambda *args: dual_formula(*args)[::2],
        ops.linear_dual_cotangents.default: lambda *args: _linear_formulas.dual_cotangents(
            *args[:-1], resolve(args[-1])
        ),
    }


def _saving(x, w, b, act):
    flat, columns = x.reshape(-1, x.shape[-1]), w.t()
    z = torch.mm(flat, columns) if b is None else torch.addmm(b, flat, columns)
    z = z.reshape(*x.shape[:-1], w.shape[0])
    return resolve(act).forward(z), z
