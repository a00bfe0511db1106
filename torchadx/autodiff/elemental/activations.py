"""Elementwise functions of one argument, and what chooses between two: slopes in closed form.

Where torch chooses (``where``, ``clamp``, ``relu``) so do these rows, at the kinks as torch does.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchadx.autodiff.elemental._maps import diagonal, masked, nothing
from torchadx.autodiff.elemental._part import Part, Site
from torchadx.autodiff.elemental._table import row
from torchadx.autodiff.elemental.pointwise import scaled

aten = torch.ops.aten

# slopes by argument x and result y
_SLOPES: dict[Any, Callable[[Tensor, Tensor], Tensor]] = {
    aten.sqrt.default: lambda x, y: 0.5 / y,
    aten.rsqrt.default: lambda x, y: -0.5 * y * y * y,
    aten.reciprocal.default: lambda x, y: -y * y,
    aten.square.default: lambda x, y: 2 * x,
    aten.sin.default: lambda x, y: x.cos(),
    aten.cos.default: lambda x, y: -x.sin(),
    aten.tan.default: lambda x, y: 1 + y * y,
    aten.sinh.default: lambda x, y: x.cosh(),
    aten.cosh.default: lambda x, y: x.sinh(),
    aten.atan.default: lambda x, y: (1 + x * x).reciprocal(),
    aten.log.default: lambda x, y: x.reciprocal(),
    aten.log1p.default: lambda x, y: (1 + x).reciprocal(),
    aten.log2.default: lambda x, y: (x * math.log(2)).reciprocal(),
    aten.log10.default: lambda x, y: (x * math.log(10)).reciprocal(),
    aten.expm1.default: lambda x, y: 1 + y,
    aten.exp2.default: lambda x, y: y * math.log(2),
}
_REAL_SLOPES: dict[Any, Callable[[Tensor, Tensor], Tensor]] = {
    aten.erf.default: lambda x, y: 2 / math.sqrt(math.pi) * (-x * x).exp(),
}


@row(*_SLOPES)
def slope(site: Site) -> Part:
    """Holomorphic functions: one formula for real and complex arguments."""
    return diagonal(site, _SLOPES[site.call.target](site.x, site.y))


@row(*_REAL_SLOPES)
def real_slope(site: Site) -> Part | None:
    """Functions of real numbers."""
    return None if site.x.is_complex() else diagonal(site, _REAL_SLOPES[site.call.target](site.x, site.y))


@row(aten.abs.default, reads_result=False)
def magnitude(site: Site) -> Part:
    """Its slope is the sign; of complex numbers, the change along the number's own direction."""
    x = site.x
    if not x.is_complex():
        return diagonal(site, x.sign())
    unit = x.sgn()
    return Part(lambda t: (t * unit.conj()).real, lambda c: c * unit, "stream", site.y.numel())


@row(aten.sign.default, aten.floor.default, aten.ceil.default, aten.round.default, aten.trunc.default)
def flat(site: Site) -> Part:
    """Steps: flat wherever torch differentiates them."""
    return nothing(site)


@row(aten.pow.Tensor_Scalar)
def power(site: Site) -> Part | None:
    """X to a constant."""
    x, exponent = site.args
    if exponent == 0:
        return nothing(site)
    if exponent == 1:
        return scaled(site, 1)
    if isinstance(exponent, complex):
        return None
    return diagonal(site, exponent * (x if exponent == 2 else x.pow(exponent - 1)))


@row(aten.pow.Scalar)
def exponential(site: Site) -> Part | None:
    """A constant to x."""
    base = site.args[0]
    if isinstance(base, complex) or base <= 0:
        return None
    return diagonal(site, site.y * math.log(base))


@row(aten.rsub.Scalar, aten.rsub.Tensor)
def rsub(site: Site) -> Part:
    """Second minus alpha first."""
    alpha = site.arg(2, "alpha", 1) if site.call.target is aten.rsub.Scalar else site.kwargs.get("alpha", 1)
    return scaled(site, -alpha if site.wrt == (0,) else 1)


@row(aten.where.self, reads_result=False)
def where(site: Site) -> Part:
    """One of two."""
    condition = site.args[0]
    return masked(site, condition if site.wrt == (1,) else ~condition)


@row(aten.masked_fill.Scalar, aten.masked_fill.Tensor, reads_result=False)
def masked_fill(site: Site) -> Part:
    """A constant where the mask says so."""
    mask = site.args[1]
    return masked(site, ~mask if site.wrt == (0,) else mask)


@row(aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default, aten.hardtanh.default, reads_result=False)
def clamp(site: Site) -> Part | None:
    """Its slope is 1 inside and, but for hardtanh, at the bounds."""
    x = site.x
    if site.call.target is aten.hardtanh.default:
        low, high = site.arg(1, "min_val", -1), site.arg(2, "max_val", 1)
        return masked(site, (x > low) & (x < high))
    if site.call.target is aten.clamp_max.default:
        return masked(site, x <= site.args[1])
    low, high = site.arg(1, "min"), site.arg(2, "max")
    if low is None:
        return masked(site, x <= high)
    return masked(site, x >= low if high is None else (x >= low) & (x <= high))


@row(aten.leaky_relu.default, reads_result=False)
def leaky_relu(site: Site) -> Part:
    """Its slope is 1 above 0, a small one below."""
    return masked(site, site.x > 0, 1, site.arg(1, "negative_slope", 0.01))


@row(aten.leaky_relu_backward.default)
def leaky_relu_backward(site: Site) -> Part:
    """Linear in the cotangent."""
    _, x, negative = site.args[:3]
    return masked(site, x > 0, 1, negative) if site.wrt == (0,) else nothing(site)


@row(aten.hardtanh_backward.default)
def hardtanh_backward(site: Site) -> Part:
    """Linear in the cotangent."""
    _, x, low, high = site.args
    return masked(site, (x > low) & (x < high)) if site.wrt == (0,) else nothing(site)


@row(aten.softplus.default, reads_result=False)
def softplus(site: Site) -> Part:
    """log(1 + exp(beta x)) / beta, linear from a threshold on."""
    x, beta, threshold = site.x, site.arg(1, "beta", 1), site.arg(2, "threshold", 20)
    return diagonal(site, torch.where(x * beta > threshold, 1, (x * beta).sigmoid()))


@row(aten.elu.default, reads_result=False)
def elu(site: Site) -> Part:
    """Scale times x above 0, alpha (exp(x scale') - 1) below."""
    x = site.x
    alpha, scale, inner = site.arg(1, "alpha", 1), site.arg(2, "scale", 1), site.arg(3, "input_scale", 1)
    return diagonal(site, torch.where(x > 0, scale, (alpha * scale * inner) * (x.clamp(max=0) * inner).exp()))


@row(aten.log_sigmoid_forward.default)
def log_sigmoid(site: Site) -> Part:
    """Its slope is sigmoid(-x)."""
    return nothing(site) if site.of else diagonal(site, (-site.x).sigmoid())


@row(aten._prelu_kernel.default)
def prelu(site: Site) -> Part:
    """X above 0, weight times x below."""
    x, weight = site.args
    if site.wrt == (1,):
        return masked(site, x <= 0, x)
    return diagonal(site, torch.where(x > 0, 1, weight))


@row(aten.maximum.default, aten.minimum.default)
def extremum(site: Site) -> Part:
    """The larger or smaller; ties are shared."""
    own, other = site.args[site.wrt[0]], site.args[1 - site.wrt[0]]
    wins = own > other if site.call.target is aten.maximum.default else own < other
    return masked(site, wins | (own == other), torch.where(own == other, 0.5, 1.0).to(own.dtype))


@row(aten.lerp.Scalar, aten.lerp.Tensor, reads_result=False)
def lerp(site: Site) -> Part:
    """(1 - weight) start + weight end."""
    start, end, weight = site.args
    if site.wrt == (2,):
        return diagonal(site, end - start)
    own = 1 - weight if site.wrt == (0,) else weight
    return diagonal(site, own) if isinstance(own, Tensor) else scaled(site, own)


@row(aten.addcmul.default, reads_result=False)
def addcmul(site: Site) -> Part:
    """First plus value second third."""
    if site.wrt == (0,):
        return scaled(site, 1)
    return diagonal(site, site.args[3 - site.wrt[0]] * site.kwargs.get("value", 1))


@row(aten.addcdiv.default)
def addcdiv(site: Site) -> Part:
    """First plus value second over third."""
    _, above, below = site.args
    if site.wrt == (0,):
        return scaled(site, 1)
    value = site.kwargs.get("value", 1)
    return diagonal(site, value / below if site.wrt == (1,) else -value * above / (below * below))


@row(aten.native_dropout.default)
def dropout(site: Site) -> Part:
    """What the drawn mask leaves, scaled up."""
    p, train = site.args[1], site.arg(2, "train")
    if train is False or p == 0:
        return scaled(site, 1)
    return masked(site, site.results[1], 1 / (1 - p) if p < 1 else 0)
