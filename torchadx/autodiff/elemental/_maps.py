"""Linear maps that many rows are made of."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchadx.autodiff.elemental._part import Linear, Part, Site


def sum_to(c: Tensor, shape: torch.Size) -> Tensor:
    """Undo broadcasting: sum ``(N, *broadcast)`` to ``(N, *shape)``."""
    extra = c.dim() - 1 - len(shape)
    dims = [*range(1, 1 + extra)]
    dims += [1 + extra + d for d, size in enumerate(shape) if size == 1 and c.shape[1 + extra + d] != 1]
    if dims:
        c = c.sum(dims)
    return c.reshape(c.shape[0], *shape) if c.shape[1:] != shape else c


def broadcast(t: Tensor, rank: int) -> Tensor:
    """Make room: view ``(N, *shape)`` so that it broadcasts against results of ``rank`` dimensions."""
    missing = rank - (t.dim() - 1)
    return t.reshape(t.shape[0], *(1,) * missing, *t.shape[1:]) if missing > 0 else t


def to_dtype(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert; to real numbers by the real part, which is what the transpose of going complex does."""
    return (t.real if t.is_complex() and not dtype.is_complex else t).to(dtype)


def conj(d: Any) -> Any:
    """Return the conjugate of a factor for the transposed map; a real one as it is."""
    if isinstance(d, Tensor):
        return d.conj() if d.is_complex() else d
    return d.conjugate() if isinstance(d, complex) else d


def adjoint(matrix: Tensor) -> Tensor:
    """Return the transposed matrix of the last two dimensions, conjugated if complex."""
    return matrix.mH if matrix.is_complex() else matrix.mT


def diagonal(site: Site, d: Tensor) -> Part:
    """An elementwise map: multiply by ``d``, which has the result's shape or broadcasts to it."""
    return elementwise_map(site, lambda t: t * d, lambda c: c * conj(d))


def masked(site: Site, mask: Tensor, slope: Any = 1, otherwise: Any = 0) -> Part:
    """An elementwise map: times ``slope`` where the mask says so, times ``otherwise`` (a number) elsewhere.

    Chosen and not multiplied: where the slope is 0, directions that are not finite leave nothing behind.
    """

    def move(t: Tensor) -> Tensor:
        here = t if isinstance(slope, int) and slope == 1 else t * slope
        return torch.where(mask, here, t * otherwise if otherwise else 0)

    return elementwise_map(site, move, move)


def elementwise_map(site: Site, there: Linear, back: Linear) -> Part:
    """A map of broadcast directions, element by element, and its transpose before broadcasting is undone."""
    x, y = site.x, site.y
    shape, wide, rank, dtypes = x.shape, y.shape, y.dim(), (x.dtype, y.dtype)

    def push(t: Tensor) -> Tensor:
        t = to_dtype(there(broadcast(t, rank)), dtypes[1])
        return t if t.shape[1:] == wide else t.expand(t.shape[0], *wide)

    return Part(push, lambda c: to_dtype(sum_to(back(c), shape), dtypes[0]), "stream", y.numel())


def reduced(site: Site, d: Tensor, dims: Sequence[int]) -> Part:
    """A sum over ``dims``, weighted by ``d``, which has the argument's shape."""
    shape, result, dtypes = site.x.shape, site.y.shape, (site.x.dtype, site.y.dtype)
    summed = [dim + 1 for dim in dims]
    kept = [1 if dim in dims else size for dim, size in enumerate(shape)]

    def push(t: Tensor) -> Tensor:
        t = t * d
        return to_dtype(t.sum(summed) if summed else t, dtypes[1]).reshape(t.shape[0], *result)

    def pull(c: Tensor) -> Tensor:
        return to_dtype(c.reshape(c.shape[0], *kept) * conj(d), dtypes[0])

    row = None if numel(result) != 1 or d.is_complex() else lambda: d.reshape(1, -1)
    return Part(push, pull, "stream", site.x.numel(), row)


def spread(site: Site, d: Tensor) -> Part:
    """One number that every element of ``d`` is multiplied by."""
    shape, result = site.x.shape, site.y.shape

    def push(t: Tensor) -> Tensor:
        return t.reshape(t.shape[0], *(1,) * len(result)) * d

    def pull(c: Tensor) -> Tensor:
        return (c * conj(d)).reshape(c.shape[0], -1).sum(1).reshape(c.shape[0], *shape)

    return Part(push, pull, "stream", site.y.numel(), lambda: d.reshape(-1, 1))


def nothing(site: Site) -> Part:
    """A result that does not move with the argument, whatever the direction."""
    x, y = site.x, site.y
    return Part(lambda t: y.new_zeros(t.shape[0], *y.shape), lambda c: x.new_zeros(c.shape[0], *x.shape))


def folded(site: Site, push: Linear, pull: Linear, inner: tuple[int, int]) -> Part:
    """A linear map of the last dimensions that takes one before them, for samples: directions go into it.

    ``push`` and ``pull`` take and return ``(samples, *inner)``, whatever the number of samples; ``inner`` says how many
    dimensions the argument and the result have there.
    """
    x, y = site.x, site.y

    def there(t: Tensor) -> Tensor:
        return push(_samples(t, inner[0])).reshape(t.shape[0], *y.shape)

    def back(c: Tensor) -> Tensor:
        return pull(_samples(c, inner[1])).reshape(c.shape[0], *x.shape)

    return Part(there, back, "stream", x.numel() + y.numel())


def _samples(t: Tensor, inner: int) -> Tensor:
    outer = t.dim() - inner
    return t.reshape(numel(t.shape[:outer]), *t.shape[outer:])


def numel(shape: torch.Size | tuple[int, ...]) -> int:
    """Return the number of elements of a shape."""
    return math.prod(shape)


def reshaped(site: Site) -> Part:
    """A map that keeps the order of the elements."""
    into, back = site.y.shape, site.x.shape
    return Part(lambda t: t.reshape(t.shape[0], *into), lambda c: c.reshape(c.shape[0], *back), "reshape")
