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
_WITHOUT_RESULT = frozenset(
    ["_reshape_alias", "_unsafe_view", "add", "addmm", "baddbmm", "bmm", "cat", "clone", "convolution", "expand", "linear", "mean", "mm", "mul", "mv", "neg", "permute", "reshape", "select", "slice", "squeeze", "stack", "sub", "sum", "t", "transpose", "unsqueeze", "view"]
)


def reads_result(overload: Any) -> bool:
    """Whether the derivative of an operation may read the values of its result."""
    return overload.overloadpacket.__name__ not in _WITHOUT_RESULT


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
