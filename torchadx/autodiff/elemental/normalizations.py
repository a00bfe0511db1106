"""Normalizations: a diagonal, less the mean and less the part along the normalized values themselves."""

from collections.abc import Sequence

import torch
from torch import Tensor

from torchadx.autodiff.elemental._maps import broadcast, diagonal, nothing, sum_to, to_dtype
from torchadx.autodiff.elemental._part import Linear, Part, Site
from torchadx.autodiff.elemental._table import row

aten = torch.ops.aten


@row(aten.native_layer_norm.default)
def layer_norm(site: Site) -> Part:
    """Over the last dimensions."""
    x, shape, weight, _, eps = site.args
    dims = range(x.dim() - len(shape), x.dim())
    return _normalization(site, x.shape, dims, weight, eps)


@row(aten.native_group_norm.default)
def group_norm(site: Site) -> Part | None:
    """Over groups of channels and what lies behind them."""
    x, weight, _, samples, _, _, groups, eps = site.args
    if not x.numel():
        return None
    if site.of:
        return _statistic(site, x.reshape(samples, groups, -1), eps)
    return _normalization(site, (samples, groups, -1), [2], _by_channel(weight, x), eps)


def _statistic(site: Site, x: Tensor, eps: float) -> Part:
    """Mean or rstd of ``(samples, groups, rest)``: torch's formula of the second derivative is made of them."""
    if site.wrt != (0,):
        return nothing(site)
    count = x.shape[2]
    weights = torch.full_like(x, 1 / count)
    if site.of == 2:
        centred = x - x.mean(2, keepdim=True)
        weights = centred * (centred.square().mean(2, keepdim=True) + eps) ** -1.5 / -count
    shape, y = site.x.shape, site.y
    return Part(
        lambda t: (t.reshape(t.shape[0], *x.shape) * weights).sum(3).reshape(t.shape[0], *y.shape).to(y.dtype),
        lambda c: (c.reshape(c.shape[0], *x.shape[:2], 1) * weights).reshape(c.shape[0], *shape).to(x.dtype),
        "stream",
        x.numel(),
    )


@row(aten.native_batch_norm.default, aten._native_batch_norm_legit.default, aten.cudnn_batch_norm.default)
def batch_norm(site: Site) -> Part:
    """By statistics of the batch or by running ones; cuDNN takes them in the same places."""
    training, eps = site.args[5], site.args[7]
    return _batch_norm(site, training, eps, *site.args[3:5])


@row(aten._native_batch_norm_legit.no_stats)
def batch_norm_without_statistics(site: Site) -> Part:
    """By statistics of the batch."""
    return _batch_norm(site, True, site.args[5], None, None)


@row(aten._native_batch_norm_legit_no_training.default, aten._batch_norm_no_update.default)
def batch_norm_of_running_statistics(site: Site) -> Part:
    """By running statistics."""
    return _batch_norm(site, False, site.args[6], *site.args[3:5])


def _batch_norm(site: Site, training: bool, eps: float, mean: Tensor | None, variance: Tensor | None) -> Part:
    x = site.args[0]
    weight = _by_channel(site.args[1], x)
    if site.of or site.wrt[0] > 2:
        # torch's own derivatives hold running statistics constant
        return nothing(site)
    if training or mean is None or variance is None:
        return _normalization(site, x.shape, [0, *range(2, x.dim())], weight, eps)
    scale = _channels((variance + eps).rsqrt(), x)
    if site.wrt == (0,):
        return diagonal(site, (scale if weight is None else scale * weight).to(site.y.dtype))
    return _affine(site, (x - _channels(mean, x)) * scale, _channel_shape(x))


def _by_channel(t: Tensor | None, x: Tensor) -> Tensor | None:
    return None if t is None else _channels(t, x)


def _channels(t: Tensor, x: Tensor) -> Tensor:
    return t.reshape(-1, *(1,) * (x.dim() - 2))


def _normalization(site: Site, grouped: Sequence[int], dims: Sequence[int], weight: Tensor | None, eps: float) -> Part:
    """Y = (x - mean) / sqrt(variance + eps) weight + bias, where x is reshaped to ``grouped`` and summed over ``dims``.

    Mean and variance are computed anew: torch holds those that the operation returns constant, and a second derivative
    needs theirs.
    """
    x = site.args[0]
    shape, dims = x.shape, list(dims)
    if site.of:
        return nothing(site)
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    centred = wide.reshape(grouped)
    centred = centred - centred.mean(dims, keepdim=True)
    scale = (centred.square().mean(dims, keepdim=True) + eps).rsqrt()
    unit = centred * scale
    if site.wrt != (0,):
        place = tuple(site.args[1]) if site.call.target is aten.native_layer_norm.default else _channel_shape(x)
        return _affine(site, unit.reshape(shape), place)
    batch = [dim + 1 for dim in dims]

    def project(t: Tensor) -> Tensor:
        t = t.reshape(t.shape[0], *unit.shape)
        along = (t * unit).mean(batch, keepdim=True)
        return ((t - t.mean(batch, keepdim=True) - unit * along) * scale).reshape(t.shape[0], *shape)

    if weight is None:
        return Part(lambda t: project(t).to(x.dtype), lambda c: project(c).to(x.dtype), "stream", 4 * x.numel())
    return Part(
        lambda t: (project(t) * weight).to(x.dtype), lambda c: project(c * weight).to(x.dtype), "stream", 5 * x.numel()
    )


def _channel_shape(x: Tensor) -> tuple[int, ...]:
    """Return the shape in which one number a channel broadcasts to ``(samples, channels, *space)``."""
    return (x.shape[1], *(1,) * (x.dim() - 2))


def _affine(site: Site, unit: Tensor, place: tuple[int, ...]) -> Part:
    """By weight and bias, of shape ``place`` once they stand where they belong."""
    own, y = site.x, site.y
    is_bias = site.wrt == ((3,) if site.call.target is aten.native_layer_norm.default else (2,))
    size = torch.Size(place)

    def push(t: Tensor) -> Tensor:
        t = broadcast(t.reshape(t.shape[0], *place), y.dim())
        return to_dtype(t if is_bias else t * unit, y.dtype).expand(t.shape[0], *y.shape)

    def pull(c: Tensor) -> Tensor:
        return to_dtype(sum_to(c if is_bias else c * unit, size), own.dtype).reshape(c.shape[0], *own.shape)

    return Part(push, pull, "stream", y.numel())


@row(aten._softmax.default)
def softmax(site: Site) -> Part:
    """diag(y) - y y^T, which is symmetric."""
    x, y = site.x, site.y
    dim = site.args[1] % max(x.dim(), 1) + 1
    return _symmetric(site, lambda t: _softmax_times(t, y, dim))


def _softmax_times(t: Tensor, y: Tensor, dim: int) -> Tensor:
    if y.dim() == 0:
        return torch.zeros_like(t)
    t = t * y
    return t - y * t.sum(dim, keepdim=True)


def _symmetric(site: Site, times: Linear) -> Part:
    dtypes = site.x.dtype, site.y.dtype
    return Part(lambda t: times(t).to(dtypes[1]), lambda c: times(c).to(dtypes[0]), "stream", 3 * site.y.numel())


@row(aten._log_softmax.default)
def log_softmax(site: Site) -> Part:
    """1 - 1 y^T with the softmax y."""
    x, y = site.x, site.y
    dim = site.args[1] % max(x.dim(), 1) + 1
    p = y.exp()
    if y.dim() == 0:
        return nothing(site)
    return Part(
        lambda t: (t - (p * t).sum(dim, keepdim=True)).to(y.dtype),
        lambda c: (c - p * c.sum(dim, keepdim=True)).to(x.dtype),
        "stream",
        3 * y.numel(),
    )


@row(aten._softmax_backward_data.default)
def softmax_backward(site: Site) -> Part | None:
    """Y (g - sum(y g)) by g, and by y."""
    g, y, dim = site.args[:3]
    if y.dim() == 0:
        return nothing(site)
    dim = dim % y.dim() + 1
    if site.wrt == (0,):
        return _symmetric(site, lambda t: _softmax_times(t, y, dim))
    rest = g - (g * y).sum(dim - 1, keepdim=True)
    return Part(
        lambda t: (t * rest - y * (t * g).sum(dim, keepdim=True)).to(site.y.dtype),
        lambda c: (c * rest - g * (c * y).sum(dim, keepdim=True)).to(site.x.dtype),
        "stream",
        5 * y.numel(),
    )


@row(aten._log_softmax_backward_data.default)
def log_softmax_backward(site: Site) -> Part:
    """G - exp(y) sum(g) by g, and by y."""
    g, y, dim = site.args[:3]
    if y.dim() == 0:
        return nothing(site)
    dim = dim % y.dim() + 1
    p = y.exp()
    if site.wrt == (1,):
        return diagonal(site, -p * g.sum(dim - 1, keepdim=True))
    return Part(
        lambda t: (t - p * t.sum(dim, keepdim=True)).to(site.y.dtype),
        lambda c: (c - (p * c).sum(dim, keepdim=True)).to(site.x.dtype),
        "stream",
        3 * y.numel(),
    )


@row(aten._fused_rms_norm.default)
def rms_norm(site: Site) -> Part | None:
    """X / sqrt(mean(x^2) + eps) weight over the last dimensions."""
    x, shape, weight, eps = site.args
    if site.of or x.dtype in (torch.float16, torch.bfloat16):
        return nothing(site) if site.of else None
    dims = list(range(x.dim() - len(shape), x.dim()))
    scale = (x.square().mean(dims, keepdim=True) + (torch.finfo(x.dtype).eps if eps is None else eps)).rsqrt()
    unit = x * scale
    if site.wrt == (2,):
        return diagonal(site, unit)
    batch = [dim + 1 for dim in dims]

    def project(t: Tensor) -> Tensor:
        return (t - unit * (t * unit).mean(batch, keepdim=True)) * scale

    if weight is None:
        return Part(project, project, "stream", 4 * x.numel())
    return Part(lambda t: project(t) * weight, lambda c: project(c * weight), "stream", 5 * x.numel())
