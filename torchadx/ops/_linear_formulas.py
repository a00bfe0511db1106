"""The mathematics of ``y = f(x W^T + b)``, in differentiable ATen.

With ``z = x W^T + b``, cotangents ``gy`` of y and ``gz`` of z, and tangents ``tx``, ``tw``, ``tb``:

    backward   g  = gy f'(z) + gz             gx = g W      gW = g^T x      gb = sum of g over rows
    forward    tz = tx W^T + x tW^T + tb      ty = tz f'(z)

Shapes: every function takes x ``(*batch, rows, in)``, weight ``(*batch, out, in)``, bias ``(*batch, out)`` and
broadcasts the batch dimensions, which come from vmap or from a batch of tangents; :func:`rows` brings an op's
``(..., in)`` into that form.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from torchadx.activations import Activation

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def rows(t: Tensor | None, batch: int = 0) -> Tensor | None:
    """Flatten ``(*batch, ..., features)`` to ``(*batch, rows, features)``."""
    if t is None or t.dim() == batch + 2:
        return t
    # -1 would be ambiguous for tensors without elements
    return t.reshape(*t.shape[:batch], t.shape[batch:-1].numel(), t.shape[-1])


def tangent_rows(t: Tensor | None, rank: int) -> Tensor | None:
    """:func:`rows` of a tangent or cotangent of a tensor of this rank; a batch of tangents stays in front."""
    return None if t is None else rows(t, t.dim() - rank)


def affine(x: Tensor, w: Tensor, b: Tensor | None, linear: Linear = F.linear) -> Tensor:
    """``x W^T + b``; ``linear`` serves the case without batches of weights."""
    if w.dim() == 2 and (b is None or b.dim() == 1):
        return linear(x, w, b)
    z = x @ w.mT if w.dim() > 2 else linear(x, w, None)
    return z if b is None else z + b.unsqueeze(-2)


def total(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Sum of the terms that are there."""
    if a is None or b is None:
        return b if a is None else a
    return a + b


def tangent_of_z(x, w, tx, tw, tb, linear: Linear = F.linear) -> Tensor:
    """``tx W^T + x tW^T + tb``; at least one tangent is there."""
    if tx is None and tw is None:
        every_row = tb.unsqueeze(-2).expand(*tb.shape[:-1], x.shape[-2], tb.shape[-1])
        return every_row.clone(memory_format=torch.contiguous_format)
    direct = None if tx is None else affine(tx, w, tb, linear)
    through_w = None if tw is None else affine(x, tw, tb if tx is None else None, linear)
    return total(direct, through_w)


def times_slope(g: Tensor, kept: Tensor | None, row: Activation, fast: bool = False) -> Tensor:
    """``g f'(z)``, broadcasting; ``fast`` where nothing differentiates it."""
    if kept is not None and kept.shape != g.shape:
        # ATen's own derivative kernels take equal shapes only
        shape = torch.broadcast_shapes(g.shape, kept.shape)
        g, kept = g.expand(shape), kept.expand(shape)
    return row.fast_backward(g, kept) if fast else row.backward(g, kept)


def cotangent_of_z(gy, gz, kept: Tensor | None, row: Activation, fast: bool = False) -> Tensor:
    """``gy f'(z) + gz``; at least one of gy and gz is there."""
    return total(None if gy is None else times_slope(gy, kept, row, fast), gz)


def input_grads(g, x, w, needed) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias from the cotangent of z, where ``needed``; x and w only where they are read."""
    return (
        g @ w if needed[0] else None,
        g.mT @ x if needed[1] else None,
        g.sum(-2) if needed[2] else None,
    )


def tangent_batch(x: Tensor, tx: Tensor | None, tw: Tensor | None, tb: Tensor | None) -> tuple[int, ...]:
    """``(T,)`` where some tangent of an op with input ``x`` has a leading batch dimension, else ``()``."""
    ranks = ((tx, x.dim()), (tw, 2), (tb, 1))
    return next(((t.shape[0],) for t, rank in ranks if t is not None and t.dim() > rank), ())


def dual_cotangents(gy, gz, gty, gtz, kept, tz, row: Activation, fast: bool = False) -> tuple[Tensor, Tensor]:
    """Cotangents ``(g, a)`` of z and tz, in rows, from those of y, z, ty and tz.

    ``ty = f'(z) tz``, so ``a = gty f'(z) + gtz``, and ``gty f''(z) tz``, summed over tangents, adds to g.
    """
    bend = shared(gty * tz * row.second_derivative(kept))
    g = bend if gy is None and gz is None else cotangent_of_z(gy, gz, kept, row, fast) + bend
    return g, cotangent_of_z(gty, gtz, kept, row, fast)


def dual_grads(g, a, saved, needed, batched, products=input_grads) -> tuple[Tensor | None, ...]:
    """Gradients of x, w, b, tx, tw, tb, in rows, from cotangents ``g`` of z and ``a`` of tz (see above).

    tz is affine in each of x, W, tx, tW and tb. ``batched`` says which of tx, tw, tb have the batch dimension that a
    may have; the others are shared by all tangents.
    """
    x, w, tx, tw = saved
    grads: list[Tensor | None] = [None] * 6
    if g is not None:
        grads[:3] = products(g, x, w, needed[:3])
    if a is None:
        return tuple(grads)
    a_x, a_w, a_b = (a if has_batch else shared(a) for has_batch in batched)
    if needed[0] and tw is not None:
        grads[0] = total(grads[0], shared(a_w @ tw))
    if needed[1] and tx is not None:
        grads[1] = total(grads[1], products(rows(a_x), rows(tx), None, (False, True, False))[1])
    if needed[3]:
        grads[3] = products(a_x, None, w, (True, False, False))[0]
    if needed[4]:
        grads[4] = a_w.mT @ x
    if needed[5]:
        grads[5] = a_b.sum(-2)
    return tuple(grads)


def shared(t: Tensor) -> Tensor:
    """Sum over the batch of tangents in front of rows, where there is one."""
    return t.sum(0) if t.dim() == 3 else t
