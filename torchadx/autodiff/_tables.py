"""Rows of an explanation as lines of a table, and numbers as people read them."""

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torchadx.memory.report import size

if TYPE_CHECKING:
    from torchadx.autodiff._explain import MoveRow, SegmentRow

WORDS = {
    "known": "known matrix",
    "forward": "tangents",
    "push": "tangents, further",
    "reverse": "adjoints",
    "pull": "adjoints, further",
    "multiply": "product",
}
_SEGMENT_HEAD = ("segment", "operations", "in", "width", "out", "width", "done", "flops", "predicted", "held")
_MOVE_HEAD = (
    *("move", "segments", "gives", "of segments", "directions"),
    *("at once", "flops", "predicted", "measured", "alive"),
)
# columns that are aligned to the right
NUMBERS = ("width", "flops", "predicted", "held", "directions", "at once", "measured", "alive")
# how many segments a pattern may have that is shown once for all its repetitions
_LONGEST_PATTERN = 6


def segment_table(rows: "Sequence[SegmentRow]") -> list[tuple[str, ...]]:
    """Lay segments out, a pattern that repeats itself once for all its repetitions; numbers are then those of all."""
    lines: list[tuple[str, ...]] = [_SEGMENT_HEAD]
    for alike in _patterns(rows):
        row = alike[0]
        lines.append(
            (
                _numbers([row.number for row in alike]),
                row.operations or "(views)",
                shape_names(row.before),
                str(row.width_before),
                shape_names(row.after),
                str(row.width_after),
                row.action,
                amount(row.flops) + (" each" if len(alike) > 1 else ""),
                duration(math.fsum(row.seconds for row in alike)),
                size(math.fsum(row.tape_bytes for row in alike)),
            )
        )
    return lines


def _patterns(rows: "Sequence[SegmentRow]") -> "Iterator[list[SegmentRow]]":
    keys = [dataclasses.replace(row, number=0, seconds=0.0, tape_bytes=0.0, flops=round(row.flops)) for row in rows]
    position = 0
    while position < len(rows):
        length, times = max(
            ((length, _repeats(keys, position, length)) for length in range(1, _LONGEST_PATTERN + 1)),
            # what a pattern saves in lines; of those alike the shortest
            key=lambda found: (found[0] * (found[1] - 1), -found[0]),
        )
        length = length if times > 1 else 1
        end = position + length * times
        for offset in range(length):
            yield list(rows[position + offset : end : length])
        position = end


def _repeats(keys: "Sequence[SegmentRow]", position: int, length: int) -> int:
    pattern, times = keys[position : position + length], 1
    while keys[position + times * length : position + (times + 1) * length] == pattern:
        times += 1
    return times


def _numbers(numbers: Sequence[int]) -> str:
    if len(numbers) < 3:
        return ", ".join(map(str, numbers))
    if numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]}-{numbers[-1]}"
    return f"{numbers[0]}, {numbers[1]}, ..., {numbers[-1]}"


def move_table(rows: "Sequence[MoveRow]") -> list[tuple[str, ...]]:
    """Lay moves out, one a line."""
    lines: list[tuple[str, ...]] = [_MOVE_HEAD]
    for row in rows:
        through = f"cut before {row.first}" if row.action == "multiply" else _span(row.first, row.last)
        lines.append(
            (
                WORDS[row.action],
                through,
                f"{row.rows} x {row.columns}",
                _span(row.start, row.end),
                str(row.directions or "-"),
                str(row.chunk or "-"),
                amount(row.flops),
                duration(row.seconds),
                "-" if row.measured is None else duration(row.measured),
                size(row.peak_bytes),
            )
        )
    return lines


def _span(first: int, last: int) -> str:
    return str(first) if last - first == 1 else f"{first}-{last - 1}"


def shorten(operations: Sequence[str]) -> str:
    """Write names of operations for people, repetitions in a row once.

    >>> shorten(["addmm", "tanh", "tanh", "tanh"])
    'addmm, tanh x3'
    >>> shorten(["mul"] + ["sin", "cos"] * 4 + ["add"])
    'mul, sin, cos, ... (10 operations)'
    """
    runs = [(name, len(list(same))) for name, same in itertools.groupby(operations)]
    if len(runs) > 6:
        return ", ".join(name for name, _ in runs[:3]) + f", ... ({len(operations)} operations)"
    return ", ".join(name if count == 1 else f"{name} x{count}" for name, count in runs)


def shape_names(shapes: Sequence[tuple[int, ...]]) -> str:
    """Write shapes of several tensors for people, those alike once.

    >>> shape_names([(8, 14, 14), (3,), (3,)])
    '8x14x14, 2 of 3'
    """
    names = collections.Counter("x".join(map(str, shape)) or "scalar" for shape in shapes)
    texts = [name if count == 1 else f"{count} of {name}" for name, count in names.items()]
    return ", ".join(texts) if len(texts) < 4 else ", ".join(texts[:2]) + f" and {len(texts) - 2} more"


def duration(seconds: float) -> str:
    """Write seconds for people: three digits.

    >>> duration(0.0), duration(4.56789e-4), duration(12.3456)
    ('0', '457 us', '12.3 s')
    """
    if seconds == 0:
        return "0"
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1 or unit == "us":
            break
    number = seconds * scale
    return f"{number:.0f} {unit}" if number >= 99.95 else f"{number:.3g} {unit}"


def amount(count: float) -> str:
    """Write a large number for people, without more digits than it has: ``"401 k"``.

    >>> amount(12), amount(401408), amount(2.5e9)
    ('12', '401 k', '2.5 G')
    """
    scale = 0
    while round(count) >= 1000 and scale < 5:
        count, scale = count / 1000, scale + 1
    digits = f"{count:.0f}" if count >= 100 or not scale else f"{count:.3g}"
    return f"{digits} {' kMGTP'[scale]}".rstrip()


def factor(ratio: float) -> str:
    """Write how many times: ``"1.8x"``, ``"19x"``."""
    return f"{ratio:.1f}x" if ratio < 9.95 else f"{ratio:.0f}x"


def plural(count: int, noun: str) -> str:
    """Write how many there are: ``"1 tangent"``, ``"3 tangents"``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
