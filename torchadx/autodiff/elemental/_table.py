"""The table: which function gives the derivative of which operation."""

from collections.abc import Callable
from typing import Any

import torch

from torchadx.autodiff.elemental._part import Part, Site
from torchadx.autodiff.elemental._sweep import sweep

Row = Callable[[Site], Part | None]

_rows: dict[Any, Row] = {}
_without_result: set[Any] = set()


def row(*overloads: Any, reads_result: bool = True) -> Callable[[Row], Row]:
    """Add a row: a function from a :class:`Site` to its :class:`Part`, or ``None`` for cases it does not know.

    Args:
        overloads: The operations that it is for.
        reads_result: Whether it reads values of the result; if not, a result that nobody else reads is not computed.
    """

    def add(function: Row) -> Row:
        for overload in overloads:
            assert overload not in _rows, overload
            _rows[overload] = function
        if not reads_result:
            _without_result.update(overloads)
        return function

    return add


def reads_result(overload: Any) -> bool:
    """Whether the derivative of an operation may read the values of its result, rather than its shape and dtype."""
    return overload not in _without_result


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
