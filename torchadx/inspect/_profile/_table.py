"""Draw the rows of a profile as text."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torchadx.inspect._names import module_name
from torchadx.inspect._profile._evidence import Advice
from torchadx.inspect._profile._rows import ModuleRow
from torchadx.memory.report import columns, size

# column, how a row fills it, and whether it is drawn for these rows
_COLUMNS: tuple[tuple[str, Callable[[ModuleRow], str], Callable[[ModuleRow], Any] | None], ...] = (
    ("module", lambda row: module_name(row.module), None),
    ("class", lambda row: row.class_name or "-", None),
    ("calls", lambda row: str(row.calls), None),
    ("recomputed", lambda row: str(row.recomputed), lambda row: row.recomputed),
    ("forward ms", lambda row: _milliseconds(row.forward_ms), None),
    ("self", lambda row: _milliseconds(row.forward_self_ms), None),
    ("backward ms", lambda row: _milliseconds(row.backward_ms), None),
    ("self", lambda row: _milliseconds(row.backward_self_ms), None),
    ("recomputing", lambda row: _milliseconds(row.recomputed_ms), lambda row: row.recomputed),
    ("device forward ms", lambda row: _milliseconds(row.device_forward_ms), lambda row: row.device_forward_ms),
    ("device backward ms", lambda row: _milliseconds(row.device_backward_ms), lambda row: row.device_backward_ms),
    ("forward memory", lambda row: size(row.forward_bytes), lambda row: row.forward_peak_bytes),
    ("peak", lambda row: size(row.forward_peak_bytes), lambda row: row.forward_peak_bytes),
    ("kept", lambda row: size(row.kept_bytes), lambda row: row.kept_bytes),
    ("backward memory", lambda row: size(row.backward_bytes), lambda row: row.backward_peak_bytes),
    ("peak", lambda row: size(row.backward_peak_bytes), lambda row: row.backward_peak_bytes),
)
_TEXT = ("module", "class")


def table(rows: Sequence[ModuleRow], limit: int | None) -> Iterator[str]:
    """Lay the first rows out in columns; those that would be empty throughout are left out."""
    drawn = [(title, fill) for title, fill, needed in _COLUMNS if needed is None or any(map(needed, rows))]
    titles = [title for title, _ in drawn]
    lines = [titles, *([fill(row) for _, fill in drawn] for row in rows[:limit])]
    yield from columns(lines, [title for title in titles if title not in _TEXT])
    if limit is not None and len(rows) > limit:
        yield f"{len(rows) - limit} more: table(limit=None)"


def totals(rows: Sequence[ModuleRow], total_ms: float) -> str:
    """Say in one line where the time went."""
    (outside,) = (row for row in rows if row.module is None)
    forward = sum(row.forward_self_ms for row in rows) - outside.forward_self_ms
    backward = sum(row.backward_self_ms for row in rows)
    return (
        f"{_milliseconds(total_ms)} ms: forward {_milliseconds(forward)}, backward {_milliseconds(backward)}, "
        f"outside of both {_milliseconds(outside.forward_self_ms)}"
    )


def advice_lines(advice: Sequence[Advice]) -> Iterator[str]:
    """Write advice out, numbered."""
    for number, one in enumerate(advice, 1):
        yield f"{number}. {one.what}: {one.why}"
        yield f"   {one.remedy}"


def _milliseconds(value: float) -> str:
    return f"{value:.3f}"
