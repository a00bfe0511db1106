"""Sums, means, extrema, norms: a row of weights for every result."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from torchadx.autodiff._watch import translated
from torchadx.autodiff.elemental._maps import numel, reduced, to_dtype
from torchadx.autodiff.elemental._part import Part, Site
from torchadx.autodiff.elemental._table import row

aten = torch.ops.aten


@row(aten.sum.default, aten.sum.dim_IntList, reads_result=False)
def total(site: Site) -> Part:
    """A sum over some dimensions, or all."""
    return _sum(site, 1.0)


@row(aten.mean.default, aten.mean.dim, reads_result=False)
def mean(site: Site) -> Part:
    """A mean over some dimensions, or all."""
    return _sum(site, max(site.y.numel(), 1) / max(site.x.numel(), 1))


def _dims(site: Site, given: int | Sequence[int] | None) -> list[int]:
    """Dimensions that are reduced: without any, all."""
    rank = site.x.dim()
    given = [given] if isinstance(given, int) else given
    return sorted({dim % max(rank, 1) for dim in given} if given else range(rank)) if rank else []


def _sum(site: Site, factor: float) -> Part:
    shape, dtypes = site.x.shape, (site.x.dtype, site.y.dtype)
    dims = _dims(site, site.arg(1, "dim"))
    # directions lead
    summed = [dim + 1 for dim in dims]
    kept = [1 if dim in dims else size for dim, size in enumerate(shape)]
    result = site.y.shape

    def push(t: Tensor) -> Tensor:
        t = t.sum(summed) if summed else t
        return to_dtype((t if factor == 1 else t * factor).reshape(t.shape[0], *result), dtypes[1])

    def pull(c: Tensor) -> Tensor:
        c = (c if factor == 1 else c * factor).reshape(c.shape[0], *kept)
        return to_dtype(c.expand(c.shape[0], *shape), dtypes[0])

    ones = None if numel(result) != 1 else lambda: site.x.new_full((1, site.x.numel()), factor)
    return Part(push, pull, "stream", site.x.numel(), ones)


def _kept(site: Site, t: Tensor, dims: Sequence[int]) -> Tensor:
    """Make the result broadcast against the argument again."""
    return t.reshape([1 if dim in dims else size for dim, size in enumerate(site.x.shape)])


@row(aten.logsumexp.default)
def logsumexp(site: Site) -> Part | None:
    """The softmax."""
    if site.x.is_complex() or not site.x.is_floating_point():
        return None
    dims = _dims(site, site.args[1])
    return reduced(site, (site.x - _kept(site, site.y, dims)).exp(), dims)


@row(aten.var.correction, aten.std.correction)
def spread_around_the_mean(site: Site) -> Part | None:
    """2 (x - mean) / (n - correction), over 2 y for the square root."""
    x = site.x
    if x.is_complex():
        return None
    dims = _dims(site, site.arg(1, "dim"))
    correction = site.kwargs.get("correction")
    free = math.prod(x.shape[dim] for dim in dims) - (1 if correction is None else correction)
    if free <= 0:
        return None
    centred = x - (x.mean(dims, keepdim=True) if dims else x)
    if site.call.target is aten.var.correction:
        return reduced(site, centred * (2 / free), dims)
    y = _kept(site, site.y, dims)
    return reduced(site, (centred / (y * free)).masked_fill(y == 0, 0), dims)


@row(aten.linalg_vector_norm.default)
def vector_norm(site: Site) -> Part | None:
    """X / y for the 2-norm, where 0 stays 0."""
    if site.x.is_complex() or site.arg(1, "ord", 2) != 2 or site.kwargs.get("dtype") is not None:
        return None if site.x.is_complex() else by_ones(site, _dims(site, site.arg(2, "dim")))
    dims = _dims(site, site.arg(2, "dim"))
    y = _kept(site, site.y, dims)
    return reduced(site, (site.x / y).masked_fill(y == 0, 0), dims)


def by_ones(site: Site, dims: Sequence[int]) -> Part | None:
    """Weights are what the operation's own derivative makes of ones: every argument belongs to one result."""
    if site.x.is_complex() or site.y.is_complex():
        return None
    with translated():
        pull = torch.func.vjp(site.function(), site.x)[1]
        return reduced(site, pull(torch.ones_like(site.y))[0], dims)


@row(aten.amax.default, aten.amin.default, aten.prod.dim_int, aten.nansum.default)
def over_dims(site: Site) -> Part | None:
    """Over the dimensions given."""
    return by_ones(site, _dims(site, site.arg(1, "dim")))


@row(aten.aminmax.default)
def extrema(site: Site) -> Part | None:
    """Over one dimension, or all."""
    return by_ones(site, _dims(site, site.kwargs.get("dim")))


@row(
    aten.max.default, aten.min.default, aten.median.default, aten.nanmedian.default, aten.prod.default,
    aten.norm.Scalar, aten.trace.default, aten.dist.default,
)  # fmt: skip
def over_all(site: Site) -> Part | None:
    """Over all elements."""
    return by_ones(site, range(site.x.dim()))


@row(aten.cumsum.default, reads_result=False)
def cumsum(site: Site) -> Part:
    """Sums up to every entry; back, from every entry on."""
    if not site.x.dim():
        return Part(lambda t: to_dtype(t, site.y.dtype), lambda c: to_dtype(c, site.x.dtype), "stream")
    dim, dtypes = site.args[1] % site.x.dim() + 1, (site.x.dtype, site.y.dtype)
    return Part(
        lambda t: to_dtype(t, dtypes[1]).cumsum(dim),
        lambda c: to_dtype(c.flip(dim).cumsum(dim).flip(dim), dtypes[0]),
        "stream",
        site.x.numel(),
    )
