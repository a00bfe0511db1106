"""Elementwise operations: their derivative is a diagonal."""

from typing import Any

import torch
from torch import Tensor

from torchadx.autodiff._watch import translated
from torchadx.autodiff.elemental._maps import (
    broadcast,
    conj,
    diagonal,
    elementwise_map,
    masked,
    nothing,
    sum_to,
    to_dtype,
)
from torchadx.autodiff.elemental._part import Part, Site
from torchadx.autodiff.elemental._table import row

aten = torch.ops.aten


@row("pointwise")
def elementwise(site: Site) -> Part | None:
    """Any real operation tagged elementwise: the diagonal is what its own derivative makes of ones."""
    f, x, y = site.function(), site.x, site.y
    if x.is_complex() or y.is_complex():
        return None
    wide = x if x.shape == y.shape else x.expand(y.shape)
    with translated():
        pull = torch.func.vjp(f, wide)[1]
        return diagonal(site, pull(torch.ones_like(y))[0])


def scaled(site: Site, factor: Any) -> Part:
    """The same number times every element."""
    x, y = site.x, site.y
    shape, rank, dtypes = x.shape, y.dim(), (x.dtype, y.dtype)

    def times(t: Tensor, number: Any) -> Tensor:
        return t if isinstance(number, (int, float)) and number == 1 else t * number

    def push(t: Tensor) -> Tensor:
        t = to_dtype(broadcast(times(t, factor), rank), dtypes[1])
        return t if t.shape[1:] == y.shape else t.expand(t.shape[0], *y.shape)

    def pull(c: Tensor) -> Tensor:
        return to_dtype(times(sum_to(c, shape), conj(factor)), dtypes[0])

    same = x.shape == y.shape and isinstance(factor, (int, float)) and factor == 1 and x.dtype == y.dtype
    return Part(push, pull, "reshape" if same else "stream", y.numel())


@row(aten.add.Tensor, reads_result=False)
def add(site: Site) -> Part:
    """First plus alpha second."""
    return scaled(site, 1 if site.wrt == (0,) else site.kwargs.get("alpha", 1))


@row(aten.sub.Tensor, reads_result=False)
def sub(site: Site) -> Part:
    """First minus alpha second."""
    return scaled(site, 1 if site.wrt == (0,) else -site.kwargs.get("alpha", 1))


@row(
    aten.add.Scalar, aten.sub.Scalar, aten._to_copy.default, aten.clone.default, aten.alias.default,
    aten.lift_fresh.default,
    reads_result=False)  # fmt: skip
def unchanged(site: Site) -> Part:
    """Copies, other dtypes, and constants added."""
    return scaled(site, 1)


@row(aten.neg.default, reads_result=False)
def neg(site: Site) -> Part:
    """Minus a."""
    return scaled(site, -1)


@row(aten.mul.Scalar, reads_result=False)
def times_number(site: Site) -> Part:
    """A times a number."""
    return scaled(site, site.args[1])


@row(aten.div.Scalar)
def over_number(site: Site) -> Part:
    """A over a number."""
    return scaled(site, 1 / site.args[1])


@row(aten.mul.Tensor, reads_result=False)
def mul(site: Site) -> Part:
    """A times b."""
    other = site.args[1 - site.wrt[0]]
    return diagonal(site, other) if isinstance(other, Tensor) else scaled(site, other)


@row(aten.div.Tensor)
def div(site: Site) -> Part:
    """A over b."""
    _, b = site.args
    if site.wrt == (1,):
        return diagonal(site, -site.y / b)
    if not isinstance(b, Tensor):
        return scaled(site, 1 / b)
    # complex infinities do not survive a reciprocal; that of integers would be in single precision
    if b.is_complex():
        return elementwise_map(site, lambda t: t / b, lambda c: c / b.conj())
    return diagonal(site, b.to(site.y.dtype.to_real()).reciprocal())


@row(aten.relu.default)
def relu(site: Site) -> Part:
    """Its slope is 1 where the result is positive."""
    return masked(site, site.y > 0)


@row(aten.tanh.default)
def tanh(site: Site) -> Part:
    """Its slope is 1 - y^2."""
    return diagonal(site, 1 - site.y * site.y)


@row(aten.sigmoid.default)
def sigmoid(site: Site) -> Part:
    """Its slope is y (1 - y)."""
    return diagonal(site, site.y * (1 - site.y))


@row(aten.exp.default)
def exp(site: Site) -> Part:
    """Its slope is itself."""
    return diagonal(site, site.y)


@row(aten.gelu.default, reads_result=False)
def gelu(site: Site) -> Part:
    """Its slope as ATen has it."""
    one = torch.ones_like(site.x)
    return diagonal(site, aten.gelu_backward(one, site.x, approximate=site.kwargs.get("approximate", "none")))


@row(aten.silu.default, reads_result=False)
def silu(site: Site) -> Part:
    """Its slope is s (1 + x (1 - s)) with the sigmoid s; ATen's own cannot be differentiated again."""
    s = torch.sigmoid(site.x)
    return diagonal(site, s * (1 + site.x * (1 - s)))


@row(aten.threshold_backward.default)
def threshold_backward(site: Site) -> Part:
    """Linear in the cotangent; flat in what is compared."""
    _, x, threshold = site.args
    return masked(site, x > threshold) if site.wrt == (0,) else nothing(site)


@row(aten.tanh_backward.default)
def tanh_backward(site: Site) -> Part:
    """Cotangent times 1 - y^2."""
    c, y = site.args
    return diagonal(site, 1 - y * y if site.wrt == (0,) else -2 * c * y)


@row(aten.sigmoid_backward.default)
def sigmoid_backward(site: Site) -> Part:
    """Cotangent times y (1 - y)."""
    c, y = site.args
    return diagonal(site, y * (1 - y) if site.wrt == (0,) else c * (1 - 2 * y))
