"""Convolutions, and those that their gradients are: all directions in one call, as samples or as channels."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchadx.autodiff.elemental._maps import folded, nothing, numel
from torchadx.autodiff.elemental._part import Part, Site
from torchadx.autodiff.elemental._table import row

aten = torch.ops.aten


@dataclasses.dataclass(frozen=True)
class _Convolution:
    """The bilinear map (x, w) -> y and its two transposes; each takes several of one side, in a leading dimension.

    x is ``(samples, C, *space)``, y ``(samples, O, *space)``, w ``(O, C / groups, *window)`` or, if transposed,
    ``(C, O / groups, *window)``. Where a side is one alone, its leading dimension has size 1.
    """

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int
    x_space: torch.Size
    w_space: torch.Size

    def y(self, x: Tensor, w: Tensor) -> Tensor:
        """Return ``(N, samples, O, *space)``."""
        return self._move(x, w, self.transposed, self.output_padding)

    def x(self, y: Tensor, w: Tensor) -> Tensor:
        """Transpose by x: ``(N, samples, C, *space)``."""
        if self.transposed:
            moved = self._move(y, w, False, self.output_padding)
        else:
            # what the window left over at the end
            reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.w_space, strict=True)]
            least = [
                (n - 1) * s - 2 * p + r
                for n, s, p, r in zip(y.shape[3:], self.stride, self.padding, reach, strict=True)
            ]
            moved = self._move(y, w, True, [n - m for n, m in zip(self.x_space, least, strict=True)])
        return _cut(moved, self.x_space)

    def w(self, y: Tensor, x: Tensor) -> Tensor:
        """Transpose by w: y slides over x (x over y, if transposed), with strides and dilations exchanged."""
        y, x = (x, y) if self.transposed else (y, x)
        n, m, g = len(x), len(y), self.groups
        # (n C/g, g samples, *space): channels are samples, samples are channels
        image = x.unflatten(2, (g, -1)).movedim(3, 1).flatten(0, 1).movedim(2, 1).flatten(1, 2)
        window = y.unflatten(2, (g, -1)).movedim((2, 0, 3), (0, 1, 2)).flatten(0, 2)
        moved = torch.conv2d if image.dim() == 4 else torch.conv1d if image.dim() == 3 else torch.conv3d
        out = moved(image, window, None, self.dilation, self.padding, self.stride, g)
        out = out.unflatten(1, (g, m, -1)).unflatten(0, (n, -1))
        # (n, C/g, g, m, O/g, *window) to (n m, O, C/g, *window)
        out = out.movedim((0, 3, 2, 4, 1), (0, 1, 2, 3, 4)).flatten(2, 3).flatten(0, 1)
        return _cut(out, self.w_space)

    def _move(self, x: Tensor, w: Tensor, transposed: bool, output_padding: list[int]) -> Tensor:
        n, m, samples, g = len(x), len(w), x.shape[1], self.groups
        if m == 1:
            window = w[0]
        elif transposed:
            window = w.movedim(0, 1).flatten(1, 2)
        else:
            window = w.unflatten(1, (g, -1)).movedim(0, 1).flatten(0, 2)
        out = aten.convolution(
            x.flatten(0, 1), window, None, self.stride, self.padding, self.dilation, transposed, output_padding, g
        )
        if m == 1:
            return out.unflatten(0, (n, samples))
        # (samples, g, m, channels / g, *space)
        out = out.unflatten(1, (g, m, -1)).movedim(2, 0)
        return out.flatten(2, 3)


def _cut(t: Tensor, space: torch.Size) -> Tensor:
    for dim, size in enumerate(space, start=t.dim() - len(space)):
        t = t.narrow(dim, 0, size)
    return t


def _convolution(x: Tensor, w: Tensor, options: Sequence[Any]) -> _Convolution | None:
    stride, padding, dilation, transposed, output_padding, groups = options
    space = w.dim() - 2
    if x.dim() != w.dim() or x.is_complex() or not 1 <= space <= 3 or 0 in (*x.shape, *w.shape):
        return None
    if transposed and any(o >= s for o, s in zip(_each(output_padding, space), _each(stride, space), strict=True)):
        return None
    stride, padding, dilation, output_padding = (
        _each(option, space) for option in (stride, padding, dilation, output_padding)
    )
    return _Convolution(stride, padding, dilation, transposed, output_padding, groups, x.shape[2:], w.shape[2:])


def _each(option: Sequence[int], space: int) -> list[int]:
    return list(option) * space if len(option) == 1 else list(option)


def _flops(conv: _Convolution, x: Tensor, y: Tensor, w: Tensor) -> float:
    """Two a multiplication: every entry of y (of x, if transposed) meets a window and the channels of a group."""
    return 2.0 * (x if conv.transposed else y).numel() * numel(w.shape[1:])


@row(aten.convolution.default, reads_result=False)
def convolution(site: Site) -> Part | None:
    """By the image, the window, or the bias."""
    x, w = site.args[:2]
    conv = _convolution(x, w, site.args[3:9])
    if conv is None:
        return None
    if site.wrt == (2,):
        return _bias(site)
    flops = _flops(conv, x, site.y, w)
    if site.wrt == (0,):
        one = w[None]
        return Part(lambda t: conv.y(t, one), lambda c: conv.x(c, one), "convolution", flops)
    image = x[None]
    return Part(lambda t: conv.y(image, t), lambda c: conv.w(c, image), "convolution", flops)


def _bias(site: Site) -> Part:
    y = site.y
    kept, dims = (-1, *(1,) * (y.dim() - 2)), [1, *range(3, y.dim() + 1)]
    return Part(
        lambda t: t.reshape(t.shape[0], 1, *kept).expand(t.shape[0], *y.shape),
        lambda c: c.sum(dims),
        "stream",
        y.numel(),
    )


@row(aten.convolution_backward.default)
def convolution_backward(site: Site) -> Part | None:
    """The gradients by image, window and bias, each linear in what it is made of."""
    y, x, w = site.args[:3]
    conv = _convolution(x, w, site.args[4:10])
    if conv is None:
        return None
    if site.of == 2:
        return _bias_gradient(site) if site.wrt == (0,) else nothing(site)
    if site.wrt == (site.of + 1,):
        return nothing(site)
    flops = _flops(conv, x, y, w)
    y, x, w = y[None], x[None], w[None]
    if site.of == 0:
        if site.wrt == (0,):
            return Part(lambda t: conv.x(t, w), lambda c: conv.y(c, w), "convolution", flops)
        return Part(lambda t: conv.x(y, t), lambda c: conv.w(y, c), "convolution", flops)
    if site.wrt == (0,):
        return Part(lambda t: conv.w(t, x), lambda c: conv.y(x, c), "convolution", flops)
    return Part(lambda t: conv.w(y, t), lambda c: conv.x(y, c), "convolution", flops)


def _bias_gradient(site: Site) -> Part:
    x = site.x
    kept, dims = (-1, *(1,) * (x.dim() - 2)), [1, *range(3, x.dim() + 1)]
    return Part(
        lambda t: t.sum(dims),
        lambda c: c.reshape(c.shape[0], 1, *kept).expand(c.shape[0], *x.shape),
        "stream",
        x.numel(),
    )


@row(aten.im2col.default, reads_result=False)
def im2col(site: Site) -> Part | None:
    """Windows as columns; back they are added up."""
    if site.x.dim() != 4:
        return None
    size, options = list(site.x.shape[2:]), site.args[1:]
    return folded(site, lambda t: aten.im2col(t, *options), lambda c: aten.col2im(c, size, *options), (3, 2))


@row(aten.col2im.default)
def col2im(site: Site) -> Part | None:
    """Columns added up where their windows lie; back they are picked."""
    if site.x.dim() != 3:
        return None
    size, options = site.args[1], site.args[2:]
    return folded(site, lambda t: aten.col2im(t, size, *options), lambda c: aten.im2col(c, *options), (2, 3))
