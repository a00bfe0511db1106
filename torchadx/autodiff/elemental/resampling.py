"""Pooling, resizing and padding of images: linear in the image, but for the maxima that are picked."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchadx.autodiff.elemental._maps import folded, nothing
from torchadx.autodiff.elemental._part import Part, Site
from torchadx.autodiff.elemental._table import row

aten = torch.ops.aten

# (operation, its transpose, dimensions of the image)
_RESIZED = [
    (aten.upsample_nearest1d.default, aten.upsample_nearest1d_backward.default, 1),
    (aten.upsample_nearest2d.default, aten.upsample_nearest2d_backward.default, 2),
    (aten.upsample_nearest3d.default, aten.upsample_nearest3d_backward.default, 3),
    (aten._upsample_nearest_exact1d.default, aten._upsample_nearest_exact1d_backward.default, 1),
    (aten._upsample_nearest_exact2d.default, aten._upsample_nearest_exact2d_backward.default, 2),
    (aten._upsample_nearest_exact3d.default, aten._upsample_nearest_exact3d_backward.default, 3),
    (aten.upsample_linear1d.default, aten.upsample_linear1d_backward.default, 1),
    (aten.upsample_bilinear2d.default, aten.upsample_bilinear2d_backward.default, 2),
    (aten.upsample_trilinear3d.default, aten.upsample_trilinear3d_backward.default, 3),
    (aten.upsample_bicubic2d.default, aten.upsample_bicubic2d_backward.default, 2),
    (aten._upsample_bilinear2d_aa.default, aten._upsample_bilinear2d_aa_backward.default, 2),
    (aten._upsample_bicubic2d_aa.default, aten._upsample_bicubic2d_aa_backward.default, 2),
]
_PADDED = [
    (aten.reflection_pad1d.default, aten.reflection_pad1d_backward.default, 1),
    (aten.reflection_pad2d.default, aten.reflection_pad2d_backward.default, 2),
    (aten.reflection_pad3d.default, aten.reflection_pad3d_backward.default, 3),
    (aten.replication_pad1d.default, aten.replication_pad1d_backward.default, 1),
    (aten.replication_pad2d.default, aten.replication_pad2d_backward.default, 2),
    (aten.replication_pad3d.default, aten.replication_pad3d_backward.default, 3),
]
_AVERAGED = [
    (aten.avg_pool2d.default, aten.avg_pool2d_backward.default, 2),
    (aten.avg_pool3d.default, aten.avg_pool3d_backward.default, 3),
    (aten._adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d_backward.default, 2),
    (aten._adaptive_avg_pool3d.default, aten._adaptive_avg_pool3d_backward.default, 3),
]


def _filled(options: Sequence[Any], target: Any) -> list[Any]:
    """Positional arguments behind the first, with what was left out by default: the transposes want all of them."""
    rest = target._schema.arguments[1:]
    return [options[n] if n < len(options) else argument.default_value for n, argument in enumerate(rest)]


def _resized(target: Any, transpose: Any, space: int) -> None:
    @row(target, reads_result=False)
    def resize(site: Site) -> Part:
        size, *options = _filled(site.args[1:], target)
        image = site.x.shape[1:]
        return folded(
            site,
            lambda t: target(t, size, *options),
            lambda c: transpose(c, size, [c.shape[0], *image], *options),
            (space + 1, space + 1),
        )

    @row(transpose, reads_result=False)
    def back(site: Site) -> Part:
        size, (_, *image), *options = site.args[1:]
        return folded(
            site,
            lambda t: transpose(t, size, [t.shape[0], *image], *options),
            lambda c: target(c, size, *options),
            (space + 1, space + 1),
        )


def _local(target: Any, transpose: Any, space: int) -> None:
    """Pools and pads, whose transposes want an image of which they read the shape."""
    adaptive = "adaptive" in str(target)

    def pair(image: torch.Size, options: Sequence[Any]) -> tuple[Any, Any]:
        def back(c: Tensor) -> Tensor:
            like = c.new_zeros(c.shape[0], *image[len(image) - space - 1 :])
            return transpose(c, like) if adaptive else transpose(c, like, *options)

        return lambda t: target(t, *options), back

    @row(target, reads_result=False)
    def there(site: Site) -> Part:
        image = site.x.shape
        push, pull = pair(image, _filled(site.args[1:], target))
        return folded(site, push, pull, (space + 1, space + 1))

    @row(transpose, reads_result=False)
    def back(site: Site) -> Part:
        if site.wrt == (1,):
            return nothing(site)
        pull, push = pair(site.args[1].shape, [site.args[0].shape[-space:]] if adaptive else site.args[2:])
        return folded(site, push, pull, (space + 1, space + 1))


for _entry in _RESIZED:
    _resized(*_entry)
for _entry in _PADDED + _AVERAGED:
    _local(*_entry)


@row(aten.constant_pad_nd.default, reads_result=False)
def constant_pad(site: Site) -> Part:
    """Zeros around; back they are cut off."""
    pad = list(site.args[1])
    cut = [-size for size in pad]
    return Part(
        lambda t: aten.constant_pad_nd(t, pad, 0), lambda c: aten.constant_pad_nd(c, cut, 0), "stream", site.y.numel()
    )


@row(aten.pixel_shuffle.default, reads_result=False)
def pixel_shuffle(site: Site) -> Part:
    """Channels become pixels."""
    factor = site.args[1]
    return Part(
        lambda t: aten.pixel_shuffle(t, factor), lambda c: aten.pixel_unshuffle(c, factor), "stream", site.y.numel()
    )


@row(aten.pixel_unshuffle.default, reads_result=False)
def pixel_unshuffle(site: Site) -> Part:
    """Pixels become channels."""
    factor = site.args[1]
    return Part(
        lambda t: aten.pixel_unshuffle(t, factor), lambda c: aten.pixel_shuffle(c, factor), "stream", site.y.numel()
    )


def picked(site: Site, indices: Tensor, space: int, transposed: bool = False) -> Part:
    """Of the last ``space`` dimensions, flattened, the entries at ``indices``; or the other way round."""
    from_, to = (site.y, site.x) if transposed else (site.x, site.y)
    flat = indices.flatten(indices.dim() - space)

    def take(t: Tensor) -> Tensor:
        t = t.flatten(t.dim() - space)
        return t.gather(-1, flat.expand(t.shape[0], *flat.shape)).reshape(t.shape[0], *to.shape)

    def put(c: Tensor) -> Tensor:
        c = c.flatten(c.dim() - space)
        zeros = c.new_zeros(c.shape[0], *from_.shape).flatten(1 + from_.dim() - space)
        return zeros.scatter_add(-1, flat.expand(c.shape), c).reshape(c.shape[0], *from_.shape)

    there, back = (put, take) if transposed else (take, put)
    return Part(there, back, "stream", site.x.numel() + site.y.numel())


@row(aten.max_pool2d_with_indices.default, aten.adaptive_max_pool2d.default, aten.fractional_max_pool2d.default)
def max_pool2d(site: Site) -> Part | None:
    """The entries that were largest."""
    return picked(site, site.results[1], 2) if site.wrt == (0,) else None


@row(aten.max_pool3d_with_indices.default, aten.adaptive_max_pool3d.default)
def max_pool3d(site: Site) -> Part:
    """The entries that were largest."""
    return picked(site, site.results[1], 3)


@row(aten.max_pool2d_with_indices_backward.default)
def max_pool2d_backward(site: Site) -> Part:
    """To the entries that were largest."""
    return picked(site, site.args[-1], 2, transposed=True) if site.wrt == (0,) else nothing(site)


@row(aten.max_pool3d_with_indices_backward.default)
def max_pool3d_backward(site: Site) -> Part:
    """To the entries that were largest."""
    return picked(site, site.args[-1], 3, transposed=True) if site.wrt == (0,) else nothing(site)
