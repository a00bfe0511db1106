"""Fourier transforms and complex numbers; cotangents as torch has them: those of y = A x are A^H c."""

import torch
from torch import Tensor

from torchadx.autodiff.elemental._part import Part, Site
from torchadx.autodiff.elemental._table import row

aten = torch.ops.aten


def _cost(site: Site) -> float:
    return 5.0 * site.x.numel() * max(site.x.numel(), 2).bit_length()


def _shifted(dims: list[int], rank: int) -> list[int]:
    return [dim % rank + 1 for dim in dims]


@row(aten._fft_c2c.default)
def c2c(site: Site) -> Part:
    """Its adjoint goes the other way with the same scale."""
    dims, scale, forward = _shifted(site.args[1], site.x.dim()), *site.args[2:4]
    return Part(
        lambda t: aten._fft_c2c(t, dims, scale, forward),
        lambda c: aten._fft_c2c(c, dims, scale, not forward),
        "product",
        _cost(site),
    )


@row(aten._fft_r2c.default)
def r2c(site: Site) -> Part:
    """Back: the half that was left out is zero."""
    dims, scale, onesided = _shifted(site.args[1], site.x.dim()), *site.args[2:4]
    last, size = dims[-1], site.x.shape[dims[-1] - 1]

    def pull(c: Tensor) -> Tensor:
        if onesided:
            wide = [*c.shape[:last], size, *c.shape[last + 1 :]]
            c = aten.slice_backward(c, wide, last, 0, c.shape[last], 1)
        return torch.real(aten._fft_c2c(c, dims, scale, False))

    return Part(lambda t: aten._fft_r2c(t, dims, scale, onesided), pull, "product", _cost(site))


@row(aten._fft_c2r.default)
def c2r(site: Site) -> Part:
    """Back: what stands for two frequencies counts twice."""
    dims, scale, size = _shifted(site.args[1], site.x.dim()), *site.args[2:4]
    last = dims[-1]
    counts = site.y.new_full((site.x.shape[last - 1],), 2)
    alone = torch.arange(len(counts), device=counts.device) >= size - len(counts) + 1
    alone = alone | (torch.arange(len(counts), device=counts.device) == 0)
    counts = torch.where(alone, 1, counts).reshape(-1, *(1,) * (site.x.dim() - last))

    return Part(
        lambda t: aten._fft_c2r(t, dims, scale, size),
        lambda c: aten._fft_r2c(c, dims, scale, True) * counts,
        "product",
        _cost(site),
    )


@row(aten._conj.default, aten._conj_physical.default, aten._neg_view.default)
def mirrored(site: Site) -> Part:
    """Its own inverse and its own adjoint."""
    move = torch.neg if site.call.target is aten._neg_view.default else torch.conj
    return Part(move, move, "view")


def _pairs(t: Tensor) -> Tensor:
    return torch.complex(t[..., 0], t[..., 1])


@row(aten.view_as_real.default)
def view_as_real(site: Site) -> Part:
    """Pairs of numbers."""
    return Part(lambda t: torch.view_as_real(t.resolve_conj()), _pairs, "view")


@row(aten.view_as_complex.default)
def view_as_complex(site: Site) -> Part:
    """Complex numbers."""
    return Part(_pairs, lambda c: torch.view_as_real(c.resolve_conj()), "view")


@row(aten.complex.default)
def of_parts(site: Site) -> Part | None:
    """Real and imaginary parts."""
    shape = site.x.shape
    if shape != site.y.shape:
        return None
    if site.wrt == (0,):
        return Part(lambda t: torch.complex(t, torch.zeros_like(t)), torch.real, "stream", site.y.numel())
    return Part(lambda t: torch.complex(torch.zeros_like(t), t), torch.imag, "stream", site.y.numel())
