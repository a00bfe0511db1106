"""Matrix products."""

import torch
from torch import Tensor

from torchadx.autodiff.elemental._maps import adjoint, conj, numel, sum_to
from torchadx.autodiff.elemental._part import Part, Site
from torchadx.autodiff.elemental._table import row

aten = torch.ops.aten


def _right(site: Site, weight: Tensor) -> Part:
    """X @ weight, where X is ``(rows, in)`` and weight ``(in, out)``: all directions in one product."""
    (rows, inner), outer = site.x.shape, weight.shape[1]

    def push(t: Tensor) -> Tensor:
        return (t.flatten(0, 1) @ weight).reshape(t.shape[0], rows, outer)

    def pull(c: Tensor) -> Tensor:
        return (c.flatten(0, 1) @ adjoint(weight)).reshape(c.shape[0], rows, inner)

    matrix = (lambda: weight.mT) if rows == 1 else None
    return Part(push, pull, "product", 2 * rows * inner * outer, matrix)


def _left(site: Site, a: Tensor) -> Part:
    """A @ X, where X is ``(in, columns)`` and a ``(out, in)``."""
    columns = site.x.shape[1]
    matrix = (lambda: a) if columns == 1 else None
    return Part(lambda t: a @ t, lambda c: adjoint(a) @ c, "product", 2 * numel(a.shape) * columns, matrix)


@row(aten.mm.default, reads_result=False)
def mm(site: Site) -> Part:
    """A @ b."""
    return _right(site, site.args[1]) if site.wrt == (0,) else _left(site, site.args[0])


@row(aten.addmm.default, reads_result=False)
def addmm(site: Site) -> Part:
    """Beta c + alpha a @ b."""
    _, a, b = site.args
    beta, alpha = site.kwargs.get("beta", 1), site.kwargs.get("alpha", 1)
    if site.wrt == (0,):
        return _spread(site, beta)
    return _right(site, _times(b, alpha)) if site.wrt == (1,) else _left(site, _times(a, alpha))


@row(aten.linear.default, reads_result=False)
def linear(site: Site) -> Part:
    """X @ weight^T + bias, with any leading dimensions."""
    x, weight = site.args[0], site.args[1]
    if site.wrt == (2,):
        return _spread(site, 1)
    outer, inner = weight.shape
    rows = numel(x.shape[:-1])
    flops = 2 * rows * inner * outer
    if site.wrt == (1,):
        flat = x.reshape(-1, inner)
        return Part(
            lambda t: (flat @ t.mT).reshape(t.shape[0], *site.y.shape),
            lambda c: c.reshape(c.shape[0], rows, outer).mT @ conj(flat),
            "product",
            flops,
        )
    return Part(
        lambda t: t @ weight.mT, lambda c: c @ conj(weight), "product", flops, (lambda: weight) if rows == 1 else None
    )


@row(aten.bmm.default, reads_result=False)
def bmm(site: Site) -> Part:
    """A batch of a @ b."""
    a, b = site.args
    flops = 2 * numel(a.shape) * b.shape[-1]
    if site.wrt == (0,):
        return Part(lambda t: t @ b, lambda c: c @ adjoint(b), "product", flops)
    return Part(lambda t: a @ t, lambda c: adjoint(a) @ c, "product", flops)


@row(aten.baddbmm.default, reads_result=False)
def baddbmm(site: Site) -> Part:
    """Beta c + alpha a @ b, in batches."""
    _, a, b = site.args
    beta, alpha = site.kwargs.get("beta", 1), site.kwargs.get("alpha", 1)
    if site.wrt == (0,):
        return _spread(site, beta)
    flops = 2 * numel(a.shape) * b.shape[-1]
    if site.wrt == (1,):
        b = _times(b, alpha)
        return Part(lambda t: t @ b, lambda c: c @ adjoint(b), "product", flops)
    a = _times(a, alpha)
    return Part(lambda t: a @ t, lambda c: adjoint(a) @ c, "product", flops)


@row(aten.mv.default, reads_result=False)
def mv(site: Site) -> Part:
    """A @ v."""
    a, v = site.args
    if site.wrt == (1,):
        return Part(lambda t: t @ a.mT, lambda c: c @ conj(a), "product", 2 * a.numel(), lambda: a)
    return Part(lambda t: t @ v, lambda c: c.unsqueeze(-1) * conj(v), "product", 2 * a.numel())


@row(aten.dot.default, reads_result=False)
def dot(site: Site) -> Part:
    """The sum of a b."""
    other = site.args[1 - site.wrt[0]]
    return Part(
        lambda t: t @ other, lambda c: c.unsqueeze(-1) * conj(other), "product", 2 * other.numel(), lambda: other[None]
    )


def _times(weight: Tensor, alpha: float) -> Tensor:
    return weight if alpha == 1 else alpha * weight


def _spread(site: Site, beta: float) -> Part:
    """What is added to a product, and broadcasts to it."""
    shape, wide = site.x.shape, site.y.shape
    padding = (1,) * (len(wide) - len(shape))

    def push(t: Tensor) -> Tensor:
        return _times(t.reshape(t.shape[0], *padding, *shape).expand(t.shape[0], *wide), beta)

    return Part(push, lambda c: _times(sum_to(c, shape), conj(beta)), "stream", numel(wide))
