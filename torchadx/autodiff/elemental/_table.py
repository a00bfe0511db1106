"""The table: which function gives the derivative of which operation."""

from collections.abc import Callable
from typing import Any

import torch

from torchadx.autodiff.elemental._part import Part, Site
from torchadx.autodiff.elemental._sweep import sweep

Row = Callable[[Site], Part | None]

_rows: dict[Any, Row] = {}


def row(*overloads: Any) -> Callable[[Row], Row]:
    """Add a row: a function from a :class:`Site` to its :class:`Part`, or ``None`` for cases it does not know."""

    def add(function: Row) -> Row:
        for overload in overloads:
            assert overload not in _rows, overload
            _rows[overload] = function
        return function

    return add


# their derivatives read shape and dtype of the result at most
_WITHOUT_RESULT = frozenset([
    "_adaptive_avg_pool2d", "_reshape_alias", "_to_copy", "_unsafe_view", "abs", "add", "addcmul", "addmm", "alias",
    "avg_pool2d", "baddbmm", "bmm", "cat", "clamp", "clone", "constant_pad_nd", "convolution", "copy", "cos",
    "cumsum", "diagonal", "dot", "elu", "embedding", "erf", "expand", "flip", "gather", "gelu", "hardtanh",
    "im2col", "index", "index_select", "leaky_relu", "lerp", "lift_fresh", "linear", "log", "log1p", "masked_fill",
    "mean", "mm", "mul", "mv", "neg", "permute", "pixel_shuffle", "pixel_unshuffle", "reflection_pad1d",
    "reflection_pad2d", "repeat", "replication_pad1d", "replication_pad2d", "reshape", "roll", "select",
    "select_scatter", "silu", "sin", "slice", "slice_scatter", "softplus", "squeeze", "stack", "sub", "sum", "t",
    "transpose", "tril", "triu", "unfold", "unsqueeze", "upsample_bilinear2d", "upsample_nearest2d", "view",
    "where",
])  # fmt: skip


def reads_result(overload: Any) -> bool:
    """Whether the derivative of an operation may read the values of its result."""
    return overload.overloadpacket.__name__ not in _WITHOUT_RESULT


# autograd takes the statistics that they return beside the result for constants, and their backward operations do
_WITH_STATISTICS = (
    "native_layer_norm",
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "cudnn_batch_norm",
    "_fused_rms_norm",
)


def carries(overload: Any, of: int) -> bool:
    """Whether derivatives pass to a result of an operation, by its position."""
    return of == 0 or overload.overloadpacket.__name__ not in _WITH_STATISTICS


def known(overload: Any) -> bool:
    """Whether the derivative of an operation is in the table, or is that of any elementwise operation."""
    return overload in _rows or torch.Tag.pointwise in overload.tags


def part(site: Site) -> Part:
    """Return the derivative at a site: by its row, as an elementwise operation, or by sweeping it with torch.func."""
    function = _rows.get(site.call.target)
    found = None if function is None else function(site)
    if found is None and torch.Tag.pointwise in site.call.target.tags and not site.call.several:
        found = _rows["pointwise"](site)
    return sweep(site) if found is None else found
