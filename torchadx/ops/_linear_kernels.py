"""The kernels below autograd: rows in, the backend's route, results in the op's shapes."""

import importlib
import math
from types import ModuleType

import torch
from torch import Tensor

from torchadx import dispatch
from torchadx.activations import Activation, resolve
from torchadx.dispatch import Choice
from torchadx.ops import _linear_aten as aten
from torchadx.ops._linear_formulas import rows, tangent_batch, tangent_rows


def select(op: str, tensor: Tensor, row: Activation) -> Choice:
    """Choose the backend for an op with this activation; :func:`torchadx.dispatch.select` with one more reason."""
    choice = dispatch.select(op, tensor)
    if choice.backend == "triton":
        obstacle = _triton().untranslatable(row)
        if obstacle is not None:
            return Choice("aten", obstacle)
    return choice


def _triton() -> ModuleType:
    # imported on first use: importing torchadx must not import triton
    return importlib.import_module("torchadx.ops._linear_triton")


def _route(op: str, tensor: Tensor, row: Activation, results: int) -> ModuleType:
    # a kernel has nothing to launch where no result has elements
    on_triton = results > 0 and select(op, tensor, row).backend == "triton"
    return _triton() if on_triton else aten


def _shaped(t: Tensor, *shape: int) -> Tensor:
    # the result of a kernel is new memory, not a view of it that autograd would have to track
    return t if t.shape == shape else torch.ops.aten._unsafe_view(t, shape)


def forward(x: Tensor, w: Tensor, b: Tensor | None, act: str, save: bool) -> tuple[Tensor, Tensor | None]:
    """``(y, z)``; z is ``None`` unless ``save``."""
    row = resolve(act)
    lead, n = x.shape[:-1], w.shape[0]
    y, z = _route("linear", x, row, lead.numel() * n).forward(rows(x), w, b, row, save)
    y = _shaped(y, *lead, n)
    if save:
        # results may not share memory
        z = y.clone() if row.keeps == "nothing" else _shaped(z, *lead, n)
    return y, z


def backward(gy, gz, x, w, kept, act: str, needed) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; an empty tensor for each that is not ``needed``."""
    row = resolve(act)
    g = gz if gy is None else gy
    lead = g.shape[:-1]
    route = _route("linear_backward", g, row, g.numel())
    gx, gw, gb = route.backward(rows(gy), rows(gz), rows(x), w, rows(kept), row, needed)
    if gx is not None:
        gx = _shaped(gx, *lead, w.shape[1])
    return tuple(g.new_empty(0) if grad is None else grad for grad in (gx, gw, gb))


def dual(x, w, b, tx, tw, tb, act: str, save: bool) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """``(y, z, ty, tz)``; z and tz are ``None`` unless ``save``."""
    row = resolve(act)
    if tx is None and tw is None and tb is None:
        raise ValueError("linear_dual needs at least one tangent; call linear for the primal alone")
    lead, n, batch = x.shape[:-1], w.shape[0], tangent_batch(x, tx, tw, tb)
    route = _route("linear_dual", x, row, lead.numel() * n * math.prod(batch))
    y, z, ty, tz = route.dual(rows(x), w, b, tangent_rows(tx, x.dim()), tw, tb, row, save)
    y, ty = _shaped(y, *lead, n), _shaped(ty, *batch, *lead, n)
    if not save:
        return y, None, ty, None
    if row.keeps == "nothing":
        return y, y.clone(), ty, ty.clone()
    return y, _shaped(z, *lead, n), ty, _shaped(tz, *batch, *lead, n)


def dual_cotangents(gy, gz, gty, gtz, kept, tz, act: str) -> tuple[Tensor, Tensor]:
    """``(g, a)``, the cotangents of z and tz in rows."""
    row = resolve(act)
    return _route("linear_dual_cotangents", gty, row, gty.numel()).dual_cotangents(gy, gz, gty, gtz, kept, tz, row)
