"""Operations that pick entries by number, and those that put them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchadx.autodiff.elemental._maps import sum_to, to_dtype
from torchadx.autodiff.elemental._part import Part, Site
from torchadx.autodiff.elemental._table import row

aten = torch.ops.aten


def chosen(site: Site, indices: Tensor, dim: int, transposed: bool = False) -> Part:
    """``gather`` along a dimension by indices of the result's rank; or ``scatter_add`` if transposed."""
    wide = site.y.shape if transposed else site.x.shape
    dim = dim % max(len(wide), 1) + 1
    if not wide:
        return Part(lambda t: t.reshape(t.shape[0], *site.y.shape), lambda c: c.reshape(c.shape[0]), "reshape")
    shape = indices.shape

    def take(t: Tensor) -> Tensor:
        return t.gather(dim, indices.expand(t.shape[0], *shape))

    def put(c: Tensor) -> Tensor:
        return c.new_zeros(c.shape[0], *wide).scatter_add(dim, indices.expand(c.shape[0], *shape), c)

    if transposed:
        return Part(put, take, "stream", site.y.numel())
    return Part(take, put, "stream", site.x.numel())


@row(aten.gather.default, reads_result=False)
def gather(site: Site) -> Part:
    """Entries by number."""
    return chosen(site, site.args[2], site.args[1])


@row(
    aten.sort.default, aten.sort.stable, aten.topk.default, aten.cummax.default, aten.cummin.default,
    aten.kthvalue.default, aten.mode.default, aten.max.dim, aten.min.dim, aten.median.dim, aten.nanmedian.dim,
)  # fmt: skip
def selected(site: Site) -> Part:
    """Values that come with the numbers of the entries they are."""
    place = {aten.topk.default: (2, -1), aten.kthvalue.default: (2, -1), aten.mode.default: (1, -1)}
    position, default = place.get(site.call.target, (1, -1))
    dim = site.arg(position, "dim", default) if site.call.target is not aten.sort.stable else site.kwargs.get("dim", -1)
    indices = site.results[1]
    if indices.dim() == site.x.dim():
        return chosen(site, indices, dim)
    dim = dim % site.x.dim()
    inner = chosen(site, indices.unsqueeze(dim), dim)
    return Part(
        lambda t: inner.push(t).squeeze(dim + 1), lambda c: inner.pull(c.unsqueeze(dim + 1)), "stream", site.x.numel()
    )


@row(aten.index_select.default, reads_result=False)
def index_select(site: Site) -> Part | None:
    """Slices by number."""
    shape, dim, index = site.x.shape, site.args[1], site.args[2]
    if not shape:
        return None
    dim = dim % len(shape) + 1

    def pull(c: Tensor) -> Tensor:
        return c.new_zeros(c.shape[0], *shape).index_add(dim, index, c)

    return Part(lambda t: t.index_select(dim, index), pull, "stream", site.y.numel())


@row(aten.embedding.default, reads_result=False)
def embedding(site: Site) -> Part | None:
    """Rows of a table by number; that of padding has no gradient, only a tangent."""
    table, index = site.args[:2]
    padding = site.arg(2, "padding_idx", -1)
    flat, shape = index.reshape(-1), index.shape

    def pull(c: Tensor) -> Tensor:
        c = c.reshape(c.shape[0], -1, table.shape[1])
        if padding >= 0:
            c = torch.where((flat == padding)[:, None], 0, c)
        return c.new_zeros(c.shape[0], *table.shape).index_add(1, flat, c)

    return Part(
        lambda t: t.index_select(1, flat).reshape(t.shape[0], *shape, table.shape[1]), pull, "stream", site.y.numel()
    )


class _Places:
    """Where ``x[indices]`` lies in x, once directions lead."""

    def __init__(self, indices: Sequence[Tensor | None]) -> None:
        self.indices: list[Any] = [None]
        for index in indices:
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                self.indices += index.nonzero().unbind(1)
            else:
                self.indices.append(index)
        used = [n for n, index in enumerate(self.indices) if index is not None]
        # numbers that do not stand side by side put their dimensions first, before that of the directions
        apart = used[-1] - used[0] >= len(used)
        shapes = [self.indices[n].shape for n in used]
        self.dim = len(torch.broadcast_shapes(*shapes)) if apart else 0

    def take(self, t: Tensor) -> Tensor:
        return aten.index(t, self.indices).movedim(self.dim, 0)

    def put(self, t: Tensor, values: Tensor, accumulate: bool) -> Tensor:
        return aten.index_put(t, self.indices, values.movedim(0, self.dim), accumulate)


def _places(indices: Sequence[Tensor | None]) -> _Places | None:
    return _Places(indices) if any(index is not None for index in indices) else None


@row(aten.index.Tensor, aten._unsafe_index.Tensor, reads_result=False)
def index(site: Site) -> Part | None:
    """Entries by numbers or by a mask that the argument does not decide."""
    places, shape = _places(site.args[1]), site.x.shape
    if places is None:
        return None
    return Part(
        places.take,
        lambda c: places.put(c.new_zeros(c.shape[0], *shape), c, True),
        "stream",
        site.x.numel() + site.y.numel(),
    )


@row(aten.index_put.default, aten._unsafe_index_put.default)
def index_put(site: Site) -> Part | None:
    """Entries replaced, or added to."""
    x, indices, values = site.args[:3]
    accumulate = site.arg(3, "accumulate", False)
    places = _places(indices)
    if places is None:
        return None
    cost = 2 * x.numel()
    if site.wrt == (0,):
        if accumulate:
            return Part(lambda t: t, lambda c: c, "reshape")
        wide = aten.index(x, indices).shape

        def clear(t: Tensor) -> Tensor:
            return places.put(t, t.new_zeros(t.shape[0], *wide), False)

        return Part(clear, clear, "stream", cost)
    wide, own = aten.index(x, indices).shape, values.shape
    padding = (1,) * (len(wide) - len(own))

    def push(t: Tensor) -> Tensor:
        spread = t.reshape(t.shape[0], *padding, *own).expand(t.shape[0], *wide)
        return places.put(t.new_zeros(t.shape[0], *x.shape), spread, accumulate)

    return Part(push, lambda c: sum_to(places.take(c), own), "stream", cost)


def _slab(site: Site, take: Any, put: Any) -> Part:
    """By the whole: but for the slab. By what is put there: the slab. ``take(t)`` reads it, ``put(t, slab)`` writes."""
    x, slab = site.args[0], site.args[1]
    if site.wrt == (0,):

        def clear(t: Tensor) -> Tensor:
            return put(t, t.new_zeros(t.shape[0], *slab.shape))

        return Part(lambda t: to_dtype(clear(t), site.y.dtype), clear, "stream", x.numel())
    return Part(
        lambda t: to_dtype(put(t.new_zeros(t.shape[0], *x.shape), t), site.y.dtype),
        lambda c: to_dtype(take(c), slab.dtype),
        "stream",
        x.numel(),
    )


@row(aten.slice_scatter.default, reads_result=False)
def slice_scatter(site: Site) -> Part:
    """A stretch replaced."""
    dim = site.arg(2, "dim", 0) % site.y.dim()
    start, end, step = site.arg(3, "start"), site.arg(4, "end"), site.arg(5, "step", 1)
    start, end, step = slice(start, end, step).indices(site.y.shape[dim])
    return _slab(
        site,
        lambda t: aten.slice(t, dim + 1, start, end, step),
        lambda t, slab: aten.slice_scatter(t, slab, dim + 1, start, end, step),
    )


@row(aten.select_scatter.default, reads_result=False)
def select_scatter(site: Site) -> Part:
    """One entry of a dimension replaced."""
    dim, index = site.args[2] % site.y.dim() + 1, site.args[3]
    return _slab(site, lambda t: t.select(dim, index), lambda t, slab: aten.select_scatter(t, slab, dim, index))


@row(aten.diagonal_scatter.default)
def diagonal_scatter(site: Site) -> Part:
    """A diagonal replaced."""
    rank = site.y.dim()
    offset, a, b = site.arg(2, "offset", 0), site.arg(3, "dim1", 0) % rank + 1, site.arg(4, "dim2", 1) % rank + 1
    return _slab(
        site,
        lambda t: t.diagonal(offset, a, b),
        lambda t, slab: aten.diagonal_scatter(t, slab, offset, a, b),
    )


@row(aten.scatter_add.default, aten.scatter.src, aten.scatter.value)
def scatter(site: Site) -> Part | None:
    """Entries replaced by number, or added to."""
    x, dim, indices, source = site.args[:4]
    if not x.dim() or not indices.dim():
        return None
    dim, shape = dim % x.dim() + 1, indices.shape
    added = site.call.target is aten.scatter_add.default
    if site.wrt == (0,):
        if added:
            return Part(lambda t: t, lambda c: c, "reshape")

        def clear(t: Tensor) -> Tensor:
            return t.scatter(dim, indices.expand(t.shape[0], *shape), 0)

        return Part(clear, clear, "stream", x.numel())
    # the source may be larger than the indices, and only as much of it is read
    margin = [side for size, read in zip(source.shape[::-1], shape[::-1], strict=True) for side in (0, size - read)]
    zeros = [-side for side in margin]

    def push(t: Tensor) -> Tensor:
        t, there = aten.constant_pad_nd(t, zeros, 0), indices.expand(t.shape[0], *shape)
        nothing = t.new_zeros(t.shape[0], *x.shape)
        return nothing.scatter_add(dim, there, t) if added else nothing.scatter(dim, there, t)

    def pull(c: Tensor) -> Tensor:
        return aten.constant_pad_nd(c.gather(dim, indices.expand(c.shape[0], *shape)), margin, 0)

    return Part(push, pull, "stream", x.numel())


@row(aten.index_add.default)
def index_add(site: Site) -> Part | None:
    """Slices added by number."""
    x, dim, index, source = site.args[:4]
    alpha = site.kwargs.get("alpha", 1)
    if site.wrt == (0,):
        return Part(lambda t: t, lambda c: c, "reshape")
    if not x.dim() or not source.dim() or index.dim() != 1:
        return None
    dim = dim % x.dim() + 1
    return Part(
        lambda t: t.new_zeros(t.shape[0], *x.shape).index_add(dim, index, t, alpha=alpha),
        lambda c: c.index_select(dim, index) * alpha,
        "stream",
        x.numel(),
    )
