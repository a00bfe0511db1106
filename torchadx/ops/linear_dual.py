"""The ops that carry tangents: primal and tangent of a linear layer in one launch, and what differentiates them.

Shapes as in ``linear.py``; a tangent has its primal's shape, or one more leading dimension T (a batch of tangents, in
one launch), and may be ``None``; ty and tz have T if any tangent has.

    linear_jvp  (x, w, b, tx, tw, tb, act) -> (y, ty)
    linear_dual (x, w, b, tx, tw, tb, act) -> (y, z, ty, tz)     for levels that differentiate further
    linear_dual_cotangents (gy, gz, gty, gtz, kept, tz, act) -> (g, a)
        cotangents of z and tz from those of the four results, in rows: ``(rows, out)``, with T in front for gty, gtz,
        tz and a
"""

import torch

from torchadx.activations import resolve
from torchadx.ops import _closure as closure
from torchadx.ops import _linear_formulas as formulas
from torchadx.ops import _linear_kernels as kernels
from torchadx.ops import _linear_vmap as vmap
from torchadx.ops._linear_formulas import rows
from torchadx.ops.linear import backward, library, linear_saving


def _dual_fake(x, w, b, tx, tw, tb, act):
    batch = formulas.tangent_batch(x, tx, tw, tb)
    y = x.new_empty(*x.shape[:-1], w.shape[0])
    ty = y.new_empty(*batch, *y.shape)
    return y, torch.empty_like(y), ty, torch.empty_like(ty)


def _dual_save(inputs, outputs, static, needed):
    x, w, _, tx, tw, _ = inputs
    y, z, _, tz = outputs
    row = resolve(static[0])
    return (
        x if needed[1] or needed[4] else None,
        w if needed[0] or needed[3] else None,
        tx if needed[1] else None,
        tw if needed[0] else None,
        row.kept(y, z),
        None if row.keeps == "nothing" else tz,
    )


def _dual_vjp(saved, cotangents, static, needed, shapes):
    rank = len(shapes[0])
    x, w, tx, tw, kept, tz = saved
    x, kept, gy, gz = (rows(t) for t in (x, kept, *cotangents[:2]))
    tx, tz, gty, gtz = (formulas.tangent_rows(t, rank) for t in (tx, tz, *cotangents[2:]))
    g, a = _cotangents(gy, gz, gty, gtz, kept, tz, static[0])
    batched = [shape is not None and len(shape) > base for shape, base in zip(shapes[3:], (rank, 2, 1), strict=True)]
    grads = formulas.dual_grads(g, a, (x, w, tx, tw), needed, batched, _products)
    return tuple(None if g is None else g.reshape(shape) for g, shape in zip(grads, shapes, strict=True))


def _cotangents(gy, gz, gty, gtz, kept, tz, act):
    row = resolve(act)
    if gty is None or row.keeps == "nothing":
        # tz does not reach z through the slope
        g = None if gy is None and gz is None else formulas.cotangent_of_z(gy, gz, kept, row)
        return g, formulas.total(gty, gtz)
    args = gy, gz, gty, gtz, kept, tz
    run = kernels.dual_cotangents if closure.plain_unrecorded(*args) else linear_dual_cotangents
    return run(*args, act)


def _products(g, x, w, needed):
    return backward(None, g, x, w, None, "identity", needed)


def dual_formula(x, w, b, tx, tw, tb, act):
    """Compute ``linear_dual`` by ``linear_saving`` and plain ATen."""
    row = resolve(act)
    y, z = linear_saving(x, w, b, act)
    tz = formulas.tangent_of_z(rows(x), w, formulas.tangent_rows(tx, x.dim()), tw, tb)
    tz = tz.reshape(*formulas.tangent_batch(x, tx, tw, tb), *y.shape)
    ty = formulas.times_slope(tz, row.kept(y, z), row)
    return y, z, ty.clone() if ty is tz else ty, tz


linear_dual = closure.register(
    library,
    "linear_dual(Tensor x, Tensor weight, Tensor? bias, Tensor? tx, Tensor? tw, Tensor? tb, str activation)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    kernel=lambda *args: kernels.dual(*args, save=True),
    fake=_dual_fake,
    vmap=lambda info, dims, *args: vmap.dual(linear_dual, info.batch_size, dims, *args),
    rules=closure.Derivatives(save=_dual_save, vjp=_dual_vjp, formula=dual_formula),
    arity=6,
    autocast=True,
)

linear_jvp = closure.register(
    library,
    "linear_jvp(Tensor x, Tensor weight, Tensor? bias, Tensor? tx, Tensor? tw, Tensor? tb, str activation)"
    " -> (Tensor, Tensor)",
    kernel=lambda *args: kernels.dual(*args, save=False)[::2],
    fake=lambda *args: _dual_fake(*args)[::2],
    vmap=lambda info, dims, *args: vmap.dual(linear_jvp, info.batch_size, dims, *args),
    rules=closure.Derivatives(formula=lambda *args: linear_dual(*args)[::2]),
    arity=6,
    autocast=True,
)


linear_dual_cotangents = closure.register(
    library,
    "linear_dual_cotangents(Tensor? gy, Tensor? gz, Tensor gty, Tensor? gtz, Tensor kept, Tensor tz, str activation)"
    " -> (Tensor, Tensor)",
    kernel=kernels.dual_cotangents,
    fake=lambda gy, gz, gty, gtz, kept, tz, act: (kept.new_empty(kept.shape), gty.new_empty(gty.shape)),
    vmap=lambda info, dims, *args: vmap.dual_cotangents(linear_dual_cotangents, info.batch_size, dims, *args),
    rules=closure.Derivatives(formula=lambda *args: formulas.dual_cotangents(*args[:-1], resolve(args[-1]))),
    arity=6,
)
