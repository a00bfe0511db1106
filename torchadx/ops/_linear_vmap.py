"""vmap rules: which batches fold into one launch, and formulas for the rest.

A batched x folds into rows and a batched weight into output columns; a batch of tangents is the ops' own leading
dimension, so that the primal is computed once. Any other mix (both factors of a product batched, say) is a batched
matrix product in ATen. Results come back batched in front or not at all.
"""

from torchadx.activations import resolve
from torchadx.ops import _linear_formulas as formulas
from torchadx.ops._linear_formulas import rows


def _front(t, dim):
    return t if t is None or dim is None else t.movedim(dim, 0)


def forward(op, size, dims, x, w, b, act):
    """Rule of ``linear`` (one result) and ``linear_saving`` (two)."""
    x_dim, w_dim, b_dim = dims[:3]
    x, w, b = _front(x, x_dim), _front(w, w_dim), _front(b, b_dim)
    if w_dim is None and b_dim is None:
        return _all_batched(op(x, w, b, act))
    if x_dim is None and w_dim is not None:
        columns = None if b is None else b.expand(size, w.shape[1]).reshape(-1)
        out = op(x, w.reshape(-1, w.shape[2]), columns, act)
        return _all_batched(_map(lambda t: t.unflatten(-1, (size, w.shape[1])).movedim(-2, 0), out))
    row = resolve(act)
    batch = 0 if x_dim is None else 1
    z = formulas.affine(rows(x, batch), w, b).reshape(size, *x.shape[batch:-1], w.shape[-2])
    y = row.forward(z)
    if len(op._schema.returns) == 1:
        return y, 0
    return (y.clone() if y is z else y, z), (0, 0)


def backward(op, size, dims, gy, gz, x, w, kept, act, needed):
    """Rule of ``linear_backward``."""
    row_dims = [dim for t, dim in zip((gy, gz, kept), (dims[0], dims[1], dims[4]), strict=True) if t is not None]
    gy, gz, x, w, kept = (_front(t, dim) for t, dim in zip((gy, gz, x, w, kept), dims, strict=False))
    if dims[3] is None and not needed[1] and not needed[2] and None not in row_dims:
        gx, gw, gb = op(gy, gz, None, w, kept, act, needed)
        return (gx, gw, gb), (0, None, None)
    g = formulas.cotangent_of_z(gy, gz, kept, resolve(act))
    g_batch = 0 if all(dim is None for dim in row_dims) else 1
    x_rows = None if x is None else rows(x, 0 if dims[2] is None else 1)
    gx, gw, gb = formulas.input_grads(rows(g, g_batch), x_rows, w, needed)
    if gx is not None:
        gx = gx.reshape(*gx.shape[:-2], *g.shape[g_batch:-1], gx.shape[-1])
    is_batched = (
        g_batch or dims[3] is not None,
        g_batch or dims[2] is not None,
        g_batch,
    )
    grads = tuple(g.new_empty(0) if grad is None else grad for grad in (gx, gw, gb))
    return grads, tuple(0 if want and batched else None for want, batched in zip(needed, is_batched, strict=True))


def dual(op, size, dims, x, w, b, tx, tw, tb, act):
    """Rule of ``linear_dual`` (four results) and ``linear_jvp`` (two)."""
    primal_dims, tangent_dims = dims[:3], dims[3:6]
    x, w, b, tx, tw, tb = (_front(t, dim) for t, dim in zip((x, w, b, tx, tw, tb), dims, strict=False))
    ranks = (x.dim() - (dims[0] is not None), 2, 1)
    tangents = _Tangents((tx, tw, tb), tangent_dims, ranks, size)
    if all(dim is None for dim in primal_dims):
        return _tangents_alone(op, size, (x, w, b), tangents, act)
    if all(dim is None for dim in (*primal_dims[1:], *tangent_dims[1:])) and not tangents.count:
        tx = None if tx is None else tx.expand(size, *x.shape[1:])
        return _all_batched(op(x, w, b, tx, tw, tb, act))
    return _dual_formula(op, size, (x, w, b), primal_dims, tangents, act)


class _Tangents:
    """Tangents that may have a batch of vmap in front and, behind it, the ops' own batch of tangents."""

    def __init__(self, tensors, dims, ranks, size):
        self.size = size
        self.entries = [
            (t, dim is not None, t is not None and t.dim() - (dim is not None) > rank)
            for t, dim, rank in zip(tensors, dims, ranks, strict=True)
        ]
        own = [t.shape[int(mapped)] for t, mapped, has_own in self.entries if has_own]
        self.count = own[0] if own else 0

    def merged(self):
        """Both batches as one leading dimension; a tangent that has neither stays shared."""
        for t, mapped, has_own in self.entries:
            if t is None or not self.count or not (mapped or has_own):
                yield t
            else:
                t = _both(t, mapped, has_own)
                yield t.expand(self.size, self.count, *t.shape[2:]).flatten(0, 1)

    def spread(self):
        """Both batches as two leading dimensions, of size one where a tangent lacks them."""
        for t, mapped, has_own in self.entries:
            yield t if t is None else _both(t, mapped, has_own)


def _both(t, mapped, has_own):
    t = t if mapped else t.unsqueeze(0)
    return t if has_own else t.unsqueeze(1)


def _tangents_alone(op, size, primals, tangents, act):
    out = op(*primals, *tangents.merged(), act)
    half = len(out) // 2
    moved = tuple(t.unflatten(0, (size, tangents.count)) if tangents.count else t for t in out[half:])
    return (*out[:half], *moved), (None,) * half + (0,) * half


def _dual_formula(op, size, primals, dims, tangents, act):
    row = resolve(act)
    # (vmap, tangents, ...) in front of everything
    x, w, b = (t if t is None else _both(t, dim is not None, False) for t, dim in zip(primals, dims, strict=True))
    tx, tw, tb = tangents.spread()
    lead, n = x.shape[2:-1], w.shape[-2]
    x = rows(x, 2)
    z = formulas.affine(x, w, b)
    tz = formulas.tangent_of_z(x, w, None if tx is None else rows(tx, 2), tw, tb)
    z = z.expand(size, *z.shape[1:])
    tz = tz.expand(size, tangents.count or 1, *z.shape[2:])
    y = row.forward(z)
    ty = formulas.times_slope(tz, row.kept(y, z), row)
    own = (tangents.count,) if tangents.count else ()
    y, ty = y.reshape(size, *lead, n), ty.reshape(size, *own, *lead, n)
    if len(op._schema.returns) == 2:
        return (y, ty), (0, 0)
    if row.keeps == "nothing":
        z, tz = y.clone(), ty.clone()  # results may not share memory
    return (y, z.reshape(y.shape), ty, tz.reshape(ty.shape)), (0,) * 4


def dual_cotangents(op, size, dims, gy, gz, gty, gtz, kept, tz, act):
    """Rule of ``linear_dual_cotangents``: elementwise along rows, so that the batch joins them."""

    def joined(t, dim):
        if t is None:
            return None
        t = t.unsqueeze(-3).expand(*t.shape[:-2], size, *t.shape[-2:]) if dim is None else t.movedim(dim, -3)
        return t.flatten(-3, -2)

    g, a = op(*(joined(t, dim) for t, dim in zip((gy, gz, gty, gtz, kept, tz), dims, strict=False)), act)
    g, a = (t.unflatten(-2, (size, t.shape[-2] // size)) for t in (g, a))
    return (g, a), (0, a.dim() - 3)


def _map(function, out):
    return tuple(map(function, out)) if isinstance(out, tuple) else function(out)


def _all_batched(out):
    return out, (0,) * len(out) if isinstance(out, tuple) else 0
