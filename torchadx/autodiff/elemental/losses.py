"""Loss functions and their gradients, by what their own derivatives make of ones."""

import torch

from torchadx.autodiff.elemental._maps import diagonal, nothing, spread
from torchadx.autodiff.elemental._part import Part, Site
from torchadx.autodiff.elemental._table import row
from torchadx.autodiff.elemental.pointwise import elementwise
from torchadx.autodiff.elemental.reductions import by_ones

aten = torch.ops.aten


@row(
    aten.mse_loss.default, aten.smooth_l1_loss.default, aten.huber_loss.default, aten.soft_margin_loss.default,
    aten.binary_cross_entropy.default, aten.binary_cross_entropy_with_logits.default,
)  # fmt: skip
def elementwise_loss(site: Site) -> Part | None:
    """A loss an element, or their sum or mean."""
    if site.y.dim() == 0 and site.x.dim():
        # broadcasting makes an element of a smaller argument belong to several terms of one sum: still a row of weights
        return by_ones(site, range(site.x.dim()))
    return elementwise(site)


@row(aten.hardswish.default, aten.rrelu_with_noise_backward.default, aten.polar.default)
def untagged(site: Site) -> Part | None:
    """Elementwise operations that torch does not tag so."""
    return elementwise(site)


@row(aten.nll_loss_forward.default, aten.nll_loss2d_forward.default)
def nll_loss(site: Site) -> Part | None:
    """Entries of classes, a loss a sample, or their sum or mean."""
    if site.of:
        return nothing(site)
    if site.wrt != (0,):
        return None
    dims = range(site.x.dim()) if site.y.dim() == 0 else [1]
    return by_ones(site, dims)


@row(aten.nll_loss_backward.default, aten.nll_loss2d_backward.default)
def nll_loss_backward(site: Site) -> Part | None:
    """Linear in the cotangent; flat in the logits, and in the sum of weights, which has no derivative either."""
    if site.wrt in ((1,), (6,)):
        return nothing(site)
    if site.wrt != (0,):
        return None
    weights = site.function()(torch.ones_like(site.x))
    if site.x.dim() == 0:
        return spread(site, weights)
    return Part(lambda t: t.unsqueeze(2) * weights, lambda c: (c * weights).sum(2), "stream", site.y.numel())


@row(
    aten.mse_loss_backward.default, aten.smooth_l1_loss_backward.default, aten.huber_loss_backward.default,
    aten.soft_margin_loss_backward.default, aten.binary_cross_entropy_backward.default,
)  # fmt: skip
def elementwise_loss_backward(site: Site) -> Part | None:
    """Linear in the cotangent, which is one number after a sum or a mean; elementwise in the rest."""
    if site.wrt != (0,):
        return elementwise(site)
    slopes = site.function()(torch.ones_like(site.x))
    return spread(site, slopes) if site.x.dim() == 0 and site.y.dim() else diagonal(site, slopes)


@row(
    aten.elu_backward.default, aten.softplus_backward.default, aten.hardswish_backward.default,
    aten.mish_backward.default, aten.hardsigmoid_backward.default, aten.log_sigmoid_backward.default,
    aten.gelu_backward.default, aten.silu_backward.default,
)  # fmt: skip
def elementwise_backward(site: Site) -> Part | None:
    """Linear in the cotangent; hardsigmoid is made of straight pieces, and logsigmoid's buffer holds nothing new."""
    target = site.call.target
    if target is aten.hardsigmoid_backward.default and site.wrt == (1,):
        return nothing(site)
    if target is aten.log_sigmoid_backward.default and site.wrt == (2,):
        return nothing(site)
    if site.wrt == (0,):
        return diagonal(site, site.function()(torch.ones_like(site.x)))
    return elementwise(site)
