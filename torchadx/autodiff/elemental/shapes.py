"""Operations that move elements: views, permutations, concatenations."""

import torch
from torch import Tensor

from torchadx.autodiff.elemental._maps import reshaped, sum_to
from torchadx.autodiff.elemental._part import Part, Site
from torchadx.autodiff.elemental._table import row

aten = torch.ops.aten


@row(
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten._reshape_alias.default,
    aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims,
    reads_result=False)  # fmt: skip
def reshape(site: Site) -> Part:
    """The same elements in the same order."""
    return reshaped(site)


def _dim(dim: int, rank: int) -> int:
    """Return the dimension that ``dim`` is once directions lead."""
    return dim % rank + 1 if rank else 1


@row(aten.t.default, reads_result=False)
def t(site: Site) -> Part:
    """A matrix transposed."""
    if site.x.dim() < 2:
        return reshaped(site)
    return Part(lambda v: v.mT, lambda c: c.mT, "view")


@row(aten.transpose.int, reads_result=False)
def transpose(site: Site) -> Part:
    """Two dimensions change places."""
    if not site.x.dim():
        return reshaped(site)
    a, b = (_dim(dim, site.x.dim()) for dim in site.args[1:3])
    return Part(lambda v: v.transpose(a, b), lambda c: c.transpose(a, b), "view")


@row(aten.permute.default, reads_result=False)
def permute(site: Site) -> Part:
    """Dimensions change places."""
    order = [0, *(_dim(dim, site.x.dim()) for dim in site.args[1])]
    back = sorted(range(len(order)), key=order.__getitem__)
    return Part(lambda v: v.permute(order), lambda c: c.permute(back), "view")


@row(aten.expand.default, reads_result=False)
def expand(site: Site) -> Part:
    """Elements are repeated."""
    shape, wide = site.x.shape, site.y.shape
    padding = (1,) * (len(wide) - len(shape))
    return Part(
        lambda v: v.reshape(v.shape[0], *padding, *shape).expand(v.shape[0], *wide),
        lambda c: sum_to(c, shape),
        "stream",
        site.y.numel(),
    )


@row(aten.slice.Tensor, reads_result=False)
def slice_(site: Site) -> Part:
    """Every step-th entry of a dimension from start to end."""
    shape = site.x.shape
    dim = _dim(site.arg(1, "dim", 0), len(shape))
    start, end, step = site.arg(2, "start"), site.arg(3, "end"), site.arg(4, "step", 1)
    start, end, step = slice(start, end, step).indices(shape[dim - 1])

    def pull(c: Tensor) -> Tensor:
        return aten.slice_backward(c, [c.shape[0], *shape], dim, start, end, step)

    return Part(lambda v: aten.slice(v, dim, start, end, step), pull, "stream")


@row(aten.select.int, reads_result=False)
def select(site: Site) -> Part:
    """One entry of a dimension."""
    shape = site.x.shape
    dim, index = _dim(site.args[1], len(shape)), site.args[2]
    return Part(
        lambda v: v.select(dim, index),
        lambda c: aten.select_backward(c, [c.shape[0], *shape], dim, index),
        "stream",
    )


@row(aten.cat.default, reads_result=False)
def cat(site: Site) -> Part:
    """Tensors one after the other."""
    items, position = site.args[0], site.wrt[1]
    dim = site.arg(1, "dim", 0) % site.y.dim()
    start = sum(item.shape[dim] for item in items[:position] if item.dim() == site.y.dim())
    return _inserted(site, dim + 1, start)


def _inserted(site: Site, dim: int, start: int) -> Part:
    """The argument is a stretch of the result."""
    wide, length = site.y.shape, site.x.shape[dim - 1]

    def push(v: Tensor) -> Tensor:
        return aten.slice_backward(v, [v.shape[0], *wide], dim, start, start + length, 1)

    return Part(push, lambda c: c.narrow(dim, start, length), "stream", site.y.numel())


@row(aten.stack.default, reads_result=False)
def stack(site: Site) -> Part:
    """Tensors along a new dimension."""
    wide, position = site.y.shape, site.wrt[1]
    dim = _dim(site.arg(1, "dim", 0), len(wide))
    return Part(
        lambda v: aten.select_backward(v, [v.shape[0], *wide], dim, position),
        lambda c: c.select(dim, position),
        "stream",
        site.y.numel(),
    )


@row(aten.split.Tensor, aten.split_with_sizes.default, aten.unsafe_split.Tensor)
def split(site: Site) -> Part:
    """A stretch of the argument for every result."""
    shape = site.x.shape
    dim = _dim(site.arg(2, "dim", 0), len(shape))
    start = sum(result.shape[dim - 1] for result in site.results[: site.of])
    length = site.y.shape[dim - 1]

    def pull(c: Tensor) -> Tensor:
        return aten.slice_backward(c, [c.shape[0], *shape], dim, start, start + length, 1)

    return Part(lambda v: v.narrow(dim, start, length), pull, "stream")


@row(aten.unbind.int)
def unbind(site: Site) -> Part:
    """One entry of a dimension for every result."""
    shape, index = site.x.shape, site.of
    dim = _dim(site.arg(1, "dim", 0), len(shape))
    return Part(
        lambda v: v.select(dim, index),
        lambda c: aten.select_backward(c, [c.shape[0], *shape], dim, index),
        "stream",
    )
