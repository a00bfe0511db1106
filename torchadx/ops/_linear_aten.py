"""The ATen route: each matrix product by whichever of ATen and oneDNN was measured faster, then one elementwise pass.

It serves every device and dtype; oneDNN's fused linear is a candidate on CPUs. Nothing here is differentiated.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from torchadx import dispatch, tuning
from torchadx.activations import Activation
from torchadx.ops import _linear_formulas as formulas
from torchadx.ops._linear_formulas import cotangent_of_z, tangent_of_z, times_slope

# below this many multiplications a call costs more than its arithmetic, and there is nothing to measure
_WORTH_MEASURING = 1 << 18
# elements of one operand that, with the temporaries beside it, stay in the second-level caches
_CACHED = 1 << 18


def _onednn(x: Tensor, w: Tensor, b: Tensor | None, attribute: str = "none", algorithm: str = "") -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, w, b, attribute, [], algorithm)


# one entry a matrix product, one route a candidate; each takes (rows, in) and (out, in)-like operands
_AFFINE = {"aten": F.linear, "onednn": _onednn}
_INPUT_GRAD = {"aten": torch.mm, "onednn": lambda g, w: _onednn(g, w.t(), None)}
_WEIGHT_GRAD = {"aten": lambda g, x: torch.mm(g.t(), x), "onednn": lambda g, x: _onednn(g.t(), x.t(), None)}


def _product(op: str, routes: dict, left: Tensor, right: Tensor, sizes: tuple[int, int, int], *rest):
    default = next(iter(routes))
    m, n, k = sizes
    if m * n * k < _WORTH_MEASURING or not dispatch.onednn_serves(left):
        return routes[default](left, right, *rest)
    key = tuning.Key(op, left.device, left.dtype, tuning.bucket(m), n, k, threads=torch.get_num_threads())
    name = tuning.choose(key, tuple(routes), lambda name: routes[name](left, right, *rest), default)
    return routes[name](left, right, *rest)


def affine(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """``x W^T + b`` for x ``(..., in)``, weight ``(out, in)``, bias ``(out,)`` or ``None``."""
    sizes = x.numel() // max(x.shape[-1], 1), *w.shape
    return _product("affine", _AFFINE, x, w, sizes, b)


def input_grad(g: Tensor, w: Tensor) -> Tensor:
    """``g W`` for g ``(rows, out)``."""
    return _product("input_grad", _INPUT_GRAD, g, w, (g.shape[0], *w.shape))


def weight_grad(g: Tensor, x: Tensor) -> Tensor:
    """``g^T x`` for g ``(rows, out)`` and x ``(rows, in)``."""
    return _product("weight_grad", _WEIGHT_GRAD, g, x, (g.shape[0], g.shape[1], x.shape[1]))


def forward(x: Tensor, w: Tensor, b: Tensor | None, row: Activation, save: bool) -> tuple[Tensor, Tensor | None]:
    """``(f(z), z)`` with ``z = x W^T + b``; the second is ``None`` unless ``save``."""
    if not save and row.onednn and row.keeps != "nothing":
        fused = {
            "aten": lambda x, w, b: row.forward(affine(x, w, b)),
            "onednn": lambda x, w, b: _onednn(x, w, b, *row.onednn),
        }
        return _product(f"affine_{row.name}", fused, x, w, (x.shape[0], *w.shape), b), None
    z = affine(x, w, b)
    y = row.forward(z)
    return y, z if save else None


def backward(gy, gz, x, w, kept, row: Activation, needed) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias, where ``needed``; all of gy, gz, x, kept in rows."""
    g = cotangent_of_z(gy, gz, kept, row, fast=True)
    return (
        input_grad(g, w) if needed[0] else None,
        weight_grad(g, x) if needed[1] else None,
        g.sum(0) if needed[2] else None,
    )


def _apart(x: Tensor, w: Tensor, b: Tensor | None, tx: Tensor, row: Activation) -> tuple[Tensor, Tensor]:
    z, tz = affine(x, w, b), affine(tx, w, None)
    if row.overwrite is None or z.shape != tz.shape:
        return _activated(z, tz, row)
    # large results cost more to allocate than to compute
    row.overwrite(z, tz)
    return z, tz


def _stacked(x: Tensor, w: Tensor, b: Tensor | None, tx: Tensor, row: Activation) -> tuple[Tensor, Tensor]:
    # one product reads the weight once; its two results are views of one tensor, which no op may return
    both = affine(torch.cat((x, tx.flatten(0, -2))), w, None)
    z, tz = both.split((x.shape[0], both.shape[0] - x.shape[0]))
    return _activated(z if b is None else z.add_(b), tz.reshape(*tx.shape[:-1], w.shape[0]), row)


def _activated(z: Tensor, tz: Tensor, row: Activation) -> tuple[Tensor, Tensor]:
    y = row.forward(z)
    return y, times_slope(tz, row.kept(y, z), row, fast=True)


def dual(x, w, b, tx, tw, tb, row: Activation, save: bool):
    """``(y, z, ty, tz)`` for x in rows; tangents may carry a leading batch, and then ty and tz do.

    z and tz are ``None`` unless ``save``.
    """
    if tx is not None and tw is None and tb is None and not save and row.keeps != "nothing":
        sizes = x.shape[0] + tx.shape[:-1].numel(), *w.shape
        y, ty = _product(f"dual_{row.name}", {"apart": _apart, "stacked": _stacked}, x, w, sizes, b, tx, row)
        return y, None, ty, None
    z, tz = affine(x, w, b), tangent_of_z(x, w, tx, tw, tb, affine)
    y, ty = _activated(z, tz, row)
    return (y, z, ty, tz) if save else (y, None, ty, None)


def dual_cotangents(gy, gz, gty, gtz, kept, tz, row: Activation) -> tuple[Tensor, Tensor]:
    """``(g, a)`` in rows; on a CPU block by block, so that a dozen elementwise passes stay in its cache."""
    count, width = kept.shape
    g = torch.empty(kept.shape, dtype=gty.dtype, device=gty.device)
    a = torch.empty(gty.shape, dtype=gty.dtype, device=gty.device)
    block = max(1, _CACHED // max(width, 1)) if gty.device.type == "cpu" else max(count, 1)
    for start in range(0, count, block):
        part = slice(start, start + block)
        blocks = (None if t is None else t[..., part, :] for t in (gy, gz, gty, gtz, kept, tz))
        g[part], a[..., part, :] = formulas.dual_cotangents(*blocks, row, fast=True)
    return g, a
