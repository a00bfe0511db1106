"""Operations that repeat, mirror, window or mask elements, their transposes, and those that only copy a shape."""

import torch
from torch import Tensor

from torchadx.autodiff.elemental._maps import folded, nothing
from torchadx.autodiff.elemental._part import Part, Site
from torchadx.autodiff.elemental._table import row
from torchadx.autodiff.elemental.pointwise import scaled

aten = torch.ops.aten


@row(
    aten.zeros_like.default, aten.ones_like.default, aten.full_like.default, aten.empty_like.default,
    aten.rand_like.default, aten.randn_like.default, aten.new_zeros.default, aten.new_ones.default,
    aten.new_full.default, aten.new_empty.default, aten.new_empty_strided.default, aten.fill.Scalar,
    aten.zero.default, aten.bernoulli.default, aten.bernoulli.p, aten.heaviside.default, aten.detach.default,
)  # fmt: skip
def of_the_same_shape(site: Site) -> Part:
    """Only shape and dtype are read."""
    return nothing(site)


@row(aten.copy.default, aten.fill.Tensor, reads_result=False)
def copy(site: Site) -> Part:
    """The second argument in the shape of the first."""
    return nothing(site) if site.wrt == (0,) else scaled(site, 1)


@row(aten.flip.default, reads_result=False)
def flip(site: Site) -> Part:
    """Its own inverse."""
    dims = [dim % max(site.x.dim(), 1) + 1 for dim in site.args[1]] if site.x.dim() else []
    return Part(lambda t: t.flip(dims), lambda c: c.flip(dims), "stream", site.x.numel())


@row(aten.roll.default, reads_result=False)
def roll(site: Site) -> Part | None:
    """Rolled back."""
    x, shifts, dims = site.x, list(site.args[1]), list(site.arg(2, "dims", ()))
    if not x.dim():
        return None
    back = [-shift for shift in shifts]
    if dims:
        dims = [dim % x.dim() + 1 for dim in dims]
        return Part(lambda t: t.roll(shifts, dims), lambda c: c.roll(back, dims), "stream", x.numel())
    # all in a row
    return Part(
        lambda t: t.reshape(t.shape[0], -1).roll(shifts, [1]).reshape(t.shape),
        lambda c: c.reshape(c.shape[0], -1).roll(back, [1]).reshape(c.shape),
        "stream",
        x.numel(),
    )


@row(aten.repeat.default, reads_result=False)
def repeat(site: Site) -> Part:
    """Copies side by side; back they are added up."""
    repeats, shape = list(site.args[1]), site.x.shape
    padded = [*(1,) * (len(repeats) - len(shape)), *shape]
    apart = [size for pair in zip(repeats, padded, strict=True) for size in pair]
    copies = [2 * n + 1 for n, times in enumerate(repeats) if times != 1]

    def pull(c: Tensor) -> Tensor:
        c = c.reshape(c.shape[0], *apart)
        return (c.sum(copies) if copies else c).reshape(c.shape[0], *shape)

    return Part(lambda t: t.reshape(t.shape[0], *padded).repeat(1, *repeats), pull, "stream", site.y.numel())


@row(aten.tril.default, aten.triu.default, reads_result=False)
def triangle(site: Site) -> Part:
    """Zero on one side of a diagonal."""
    cut, offset = site.call.target, site.arg(1, "diagonal", 0)
    return Part(lambda t: cut(t, offset), lambda c: cut(c, offset), "stream", site.x.numel())


def _plane(site: Site, rank: int, defaults: tuple[int, int] = (0, 1)) -> tuple[int, int, int]:
    a, b = site.arg(2, "dim1", defaults[0]), site.arg(3, "dim2", defaults[1])
    return site.arg(1, "offset", 0), a % rank + 1, b % rank + 1


@row(aten.diagonal.default, reads_result=False)
def diagonal_of(site: Site) -> Part:
    """A diagonal of two dimensions."""
    shape = site.x.shape
    plane = _plane(site, len(shape))
    return Part(
        lambda t: t.diagonal(*plane),
        lambda c: aten.diagonal_backward(c, [c.shape[0], *shape], *plane),
        "stream",
        site.x.numel(),
    )


@row(aten.diag_embed.default)
def diag_embed(site: Site) -> Part:
    """Matrices that have the argument as their diagonals."""
    plane = _plane(site, site.y.dim(), (-2, -1))
    return Part(lambda t: torch.diag_embed(t, *plane), lambda c: c.diagonal(*plane), "stream", site.y.numel())


@row(aten.diagonal_backward.default)
def diagonal_backward(site: Site) -> Part:
    """A diagonal in zeros."""
    wide, offset, a, b = site.args[1:]
    a, b = a % len(wide) + 1, b % len(wide) + 1
    return Part(
        lambda t: aten.diagonal_backward(t, [t.shape[0], *wide], offset, a, b),
        lambda c: c.diagonal(offset, a, b),
        "stream",
        site.y.numel(),
    )


@row(aten.slice_backward.default)
def slice_backward(site: Site) -> Part:
    """A stretch in zeros."""
    wide, dim, start, end, step = site.args[1:]
    dim = dim % len(wide)
    start, end, step = slice(start, end, step).indices(wide[dim])
    return Part(
        lambda t: aten.slice_backward(t, [t.shape[0], *wide], dim + 1, start, end, step),
        lambda c: aten.slice(c, dim + 1, start, end, step),
        "stream",
        site.y.numel(),
    )


@row(aten.select_backward.default)
def select_backward(site: Site) -> Part:
    """One entry of a dimension in zeros."""
    wide, dim, index = site.args[1:]
    dim = dim % len(wide) + 1
    return Part(
        lambda t: aten.select_backward(t, [t.shape[0], *wide], dim, index),
        lambda c: c.select(dim, index),
        "stream",
        site.y.numel(),
    )


@row(aten.unfold.default, reads_result=False)
def unfold(site: Site) -> Part | None:
    """Windows that may overlap; back they are added up."""
    shape = site.x.shape
    if not shape:
        return None
    dim, size, step = site.args[1] % len(shape) + 1, *site.args[2:4]
    return Part(
        lambda t: t.unfold(dim, size, step),
        lambda c: aten.unfold_backward(c, [c.shape[0], *shape], dim, size, step),
        "stream",
        site.y.numel(),
    )


@row(aten.unfold_backward.default)
def unfold_backward(site: Site) -> Part | None:
    """Windows added up."""
    wide, dim, size, step = site.args[1:]
    if not wide:
        return None
    dim = dim % len(wide) + 1
    return Part(
        lambda t: aten.unfold_backward(t, [t.shape[0], *wide], dim, size, step),
        lambda c: c.unfold(dim, size, step),
        "stream",
        site.x.numel(),
    )


@row(aten.embedding_dense_backward.default)
def embedding_dense_backward(site: Site) -> Part | None:
    """Rows added up by number."""
    index, rows, padding, by_frequency = site.args[1:5]
    if by_frequency:
        return None
    flat, shape, width = index.reshape(-1), index.shape, site.y.shape[1]
    read = (flat != padding)[:, None]

    def push(t: Tensor) -> Tensor:
        t = torch.where(read, t.reshape(t.shape[0], -1, width), 0)
        return t.new_zeros(t.shape[0], rows, width).index_add(1, flat, t)

    def pull(c: Tensor) -> Tensor:
        return torch.where(read, c.index_select(1, flat), 0).reshape(c.shape[0], *shape, width)

    return Part(push, pull, "stream", site.x.numel())


@row(aten.channel_shuffle.default, aten.native_channel_shuffle.default)
def channel_shuffle(site: Site) -> Part | None:
    """Channels in another order."""
    groups, channels = site.args[1], site.x.shape[1]
    inner = site.x.dim() - 1
    return folded(
        site,
        lambda t: aten.channel_shuffle(t, groups),
        lambda c: aten.channel_shuffle(c, channels // groups),
        (inner, inner),
    )
