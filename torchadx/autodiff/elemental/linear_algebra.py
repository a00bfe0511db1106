"""Systems of linear equations, inverses and determinants, in closed form."""

import torch

from torchadx.autodiff.elemental._maps import adjoint, nothing
from torchadx.autodiff.elemental._part import Part, Site
from torchadx.autodiff.elemental._table import row
from torchadx.autodiff.elemental.reductions import by_ones

aten = torch.ops.aten


@row(aten._linalg_solve_ex.default)
def solve(site: Site) -> Part | None:
    """X = A^-1 B: by B, A^-1 itself; by A, -A^-1 dA X."""
    a, b = site.args[:2]
    matrices = b.dim() >= 2 and a.shape[:-2] == b.shape[:-2]
    if site.of or not site.kwargs.get("left", True) or not matrices:
        return None
    x, size, columns = site.y, a.shape[-1], b.shape[-1]
    flops = 2.0 * a.numel() * (size / 3 + columns)
    if site.wrt == (1,):
        return Part(lambda t: torch.linalg.solve(a, t), lambda c: torch.linalg.solve(adjoint(a), c), "product", flops)
    return Part(
        lambda t: -torch.linalg.solve(a, t @ x),
        lambda c: -torch.linalg.solve(adjoint(a), c) @ adjoint(x),
        "product",
        flops + 2.0 * a.numel() * columns,
    )


@row(aten.linalg_inv_ex.default)
def inverse(site: Site) -> Part | None:
    """Y = A^-1: -Y dA Y."""
    if site.of:
        return None
    y = site.y
    back = adjoint(y)
    return Part(lambda t: -(y @ t @ y), lambda c: -(back @ c @ back), "product", 4.0 * y.numel() * y.shape[-1])


@row(aten._linalg_det.default)
def determinant(site: Site) -> Part | None:
    """One row of weights a matrix."""
    return None if site.of else by_ones(site, [site.x.dim() - 2, site.x.dim() - 1])


@row(aten._linalg_slogdet.default)
def logarithm_of_determinant(site: Site) -> Part | None:
    """One row of weights a matrix; the sign does not move."""
    if site.x.is_complex() or site.of > 1:
        return None
    return by_ones(site, [site.x.dim() - 2, site.x.dim() - 1]) if site.of == 1 else nothing(site)
