"""A plan as a picture: where its shapes go, apart from how they are written."""

import dataclasses
import math
import textwrap
from collections.abc import Iterator, Sequence

from torchadx.autodiff._explain import Explanation, MoveRow, SegmentRow
from torchadx.autodiff._tables import WORDS, amount, duration

# colours of Okabe and Ito, which readers who see few colours tell apart
TANGENTS, ADJOINTS, KNOWN = "#0072b2", "#d55e00", "#009e73"
INK, PALE, GRAY, BAR = "#222222", "#e3e8ee", "#5f6b7a", "#9aa7b8"

# pixels; a character is at most this part of the size of its font wide, on average
_CHARACTER = 0.62
_MARGIN, _LEFT, _RIGHT = 16.0, 150.0, 160.0
_LANE, _BARS, _BAR_WIDTH = 26.0, 110.0, 12.0
_NARROW, _WIDE = 36.0, 110.0
_SMALL, _SIZE, _LARGE = 10.0, 11.0, 15.0
_LEAST = 760.0


@dataclasses.dataclass(frozen=True)
class Polygon:
    """A filled outline, such as a rectangle or the head of an arrow."""

    points: tuple[tuple[float, float], ...]
    fill: str
    edge: str | None = None


@dataclasses.dataclass(frozen=True)
class Line:
    """A straight line."""

    start: tuple[float, float]
    end: tuple[float, float]
    color: str
    width: float = 1.0
    dashed: bool = False


@dataclasses.dataclass(frozen=True)
class Label:
    """A line of text that begins, has its middle, or ends at a point; ``upright`` runs from bottom to top."""

    x: float
    y: float
    text: str
    size: float = _SIZE
    anchor: str = "start"
    color: str = INK
    bold: bool = False
    upright: bool = False

    @property
    def length(self) -> float:
        """About how many pixels it takes."""
        return len(self.text) * self.size * _CHARACTER


Shape = Polygon | Line | Label


@dataclasses.dataclass(frozen=True)
class Picture:
    """Shapes on a light ground, in pixels from the upper left corner; later ones cover earlier ones."""

    width: float
    height: float
    shapes: tuple[Shape, ...]


def picture(explanation: Explanation) -> Picture:
    """Draw an explanation.

    Above is the chain: a bar for every place, as high as the logarithm of how many numbers pass there, and between them
    the operations. Below is a lane for everything that is done, in order.
    """
    columns = _Columns(explanation)
    shapes: list[Shape] = []
    y = _MARGIN
    for part in (_title, _chain, _lanes, _legend, _notes):
        more, y = part(explanation, columns, y)
        shapes += more
    height = y + _MARGIN
    ground = rectangle(0.0, 0.0, columns.width, height, "#ffffff", "#d5dae1")
    return Picture(columns.width, height, (ground, *shapes))


class _Columns:
    """Where the places of the chain are, from left to right."""

    def __init__(self, explanation: Explanation) -> None:
        self.names = [_clipped(row.operations or "views", 22) for row in explanation.segments]
        count = len(self.names)
        longest = max((len(name) * _SMALL * _CHARACTER for name in self.names), default=0.0)
        # names lie where the columns have room for them, and stand where not
        wanted = longest + _BAR_WIDTH + 8.0
        self.upright = count * wanted > 1000.0
        step = _NARROW if self.upright else wanted
        self.step = min(max(step, 500.0 / max(count, 1), _NARROW), max(_WIDE, step))
        self.longest = longest
        labels = [len(_doing(row)) * _SMALL * _CHARACTER for row in explanation.moves]
        left = max(_LEFT, _MARGIN + max(labels, default=0.0) + 16.0)
        self.width = max(_LEAST, left + count * self.step + _RIGHT)
        # a short chain stands in the middle
        self._begin = left + (self.width - left - _RIGHT - count * self.step) / 2

    def place(self, number: float) -> float:
        return self._begin + number * self.step


Part = tuple[list[Shape], float]


def _title(explanation: Explanation, columns: _Columns, y: float) -> Part:
    head = f"{explanation.mode} mode"
    lines = [explanation.why.removeprefix(f"{explanation.mode}: ")]
    if explanation.seconds is not None:
        head += f": predicted {duration(explanation.seconds)}"
        lines.append(f"pure modes, predicted: {explanation.alternatives()}")
    if explanation.measured is not None:
        head += f", measured {duration(explanation.measured)}"
    if explanation.samples > 1:
        head += f" ({explanation.samples} samples at once)"
    shapes: list[Shape] = [Label(_MARGIN, y + _LARGE, head, _LARGE, bold=True)]
    y += _LARGE + 4
    for line in lines:
        more, y = _paragraph(line, columns, y, INK)
        shapes += more
    return shapes, y + 10


def _paragraph(text: str, columns: _Columns, y: float, color: str) -> Part:
    most = int((columns.width - 2 * _MARGIN) / (_SIZE * _CHARACTER))
    shapes: list[Shape] = []
    for line in textwrap.wrap(text, most):
        y += _SIZE + 5
        shapes.append(Label(_MARGIN, y, line, color=color))
    return shapes, y


def _chain(explanation: Explanation, columns: _Columns, y: float) -> Part:
    rows = explanation.segments
    if not rows:
        return _whole(explanation, columns, y)
    widths = [rows[0].width_before, *(row.width_after for row in rows)]
    base = y + _BARS + 16
    names = columns.longest + 14 if columns.upright else _SMALL + 6
    shapes: list[Shape] = [
        Label(_MARGIN, base - _BARS / 2, "numbers that pass", color=GRAY, size=_SMALL),
        Label(_MARGIN, base - _BARS / 2 + 14, "(height: logarithm)", color=GRAY, size=_SMALL),
        Label(_MARGIN, base + _SMALL + 4, "operations", color=GRAY, size=_SMALL),
        Label(_MARGIN, base + names + _SMALL + 4, "segment", color=GRAY, size=_SMALL),
        Line((columns.place(0) - _BAR_WIDTH / 2, base), (columns.place(len(rows)) + _BAR_WIDTH / 2, base), GRAY),
    ]
    bottom = base + names + _SMALL + 4
    highest = math.log2(max(widths) + 1)
    for number, width in enumerate(widths):
        height = max(_BARS * math.log2(width + 1) / highest, 2.0)
        x = columns.place(number)
        shapes.append(
            rectangle(
                x - _BAR_WIDTH / 2, base - height, _BAR_WIDTH, height, GRAY if number in explanation.cuts else BAR
            )
        )
        shapes.append(Label(x, base - height - 4, _brief(width), _SMALL, "middle"))
    shapes += _names(rows, columns, base)
    # between the names, down to the lanes
    shapes += [_cut(columns.place(place), base, bottom + 12) for place in explanation.cuts]
    shapes += [Label(columns.place(row.number + 0.5), bottom, str(row.number), _SMALL, "middle", GRAY) for row in rows]
    return shapes, bottom + 12


def _names(rows: Sequence[SegmentRow], columns: _Columns, base: float) -> Iterator[Shape]:
    for row, name in zip(rows, columns.names, strict=True):
        x = columns.place(row.number + 0.5)
        if columns.upright:
            yield Label(x + _SMALL / 3, base + 5, name, _SMALL, "end", upright=True)
        else:
            yield Label(x, base + _SMALL + 4, name, _SMALL, "middle")


def _whole(explanation: Explanation, columns: _Columns, y: float) -> Part:
    """A function as a box between its input and its output."""
    middle, top, half = columns.width / 2, y + 12, 60.0
    line = top + 30
    text = "f, as a whole" if not explanation.traced else "nothing to move"
    shapes: list[Shape] = [
        *_arrow(middle - 200, middle - half - 4, line, GRAY),
        rectangle(middle - half, top, 2 * half, 60, PALE, GRAY),
        Label(middle, line + 4, text, anchor="middle"),
        *_arrow(middle + half, middle + 200, line, GRAY),
        Label(middle - 206, line + 4, "x", anchor="end"),
        Label(middle + 206, line + 4, "f(x)"),
    ]
    if explanation.traced:
        return shapes, top + 70
    adjoint = explanation.mode == "reverse"
    ends = (middle + 200, middle - 200) if adjoint else (middle - 200, middle + 200)
    shapes += _arrow(*ends, top + 84, ADJOINTS if adjoint else TANGENTS)
    return shapes, top + 100


def _lanes(explanation: Explanation, columns: _Columns, y: float) -> Part:
    rows = explanation.moves
    if not rows:
        return [], y
    top, bottom = y + _SMALL + 8, y + _SMALL + 8 + len(rows) * _LANE
    shapes: list[Shape] = [
        Label(_MARGIN, y + _SMALL, "what is done, in order", _SMALL, color=GRAY),
        Label(columns.width - _MARGIN, y + _SMALL, _times_head(rows), _SMALL, "end", GRAY),
    ]
    shapes += [_stripe(row, columns, top + number * _LANE) for number, row in enumerate(rows)]
    shapes += [_cut(columns.place(place), y, bottom) for place in explanation.cuts]
    for number, row in enumerate(rows):
        shapes += _lane(row, columns, top + number * _LANE + _LANE / 2)
    return shapes, bottom + 8


def _times_head(rows: Sequence[MoveRow]) -> str:
    return "predicted" if rows[0].measured is None else "predicted / measured"


def _cut(x: float, top: float, bottom: float) -> Line:
    return Line((x, top), (x, bottom), INK, 1.2, dashed=True)


def _stripe(row: MoveRow, columns: _Columns, top: float) -> Polygon:
    """Which segments the Jacobian that is there afterwards is of."""
    start, end = columns.place(row.start), columns.place(row.end)
    return rectangle(start, top + 4, end - start, _LANE - 8, PALE)


def _lane(row: MoveRow, columns: _Columns, middle: float) -> Iterator[Shape]:
    yield Label(_MARGIN, middle + 4, _doing(row), _SMALL)
    times = duration(row.seconds) + ("" if row.measured is None else f" / {duration(row.measured)}")
    yield Label(columns.width - _MARGIN, middle + 4, times, _SMALL, "end")
    first, last = columns.place(row.first), columns.place(row.last)
    if row.action == "multiply":
        yield from _join(columns.place(row.start), first, columns.place(row.end), middle)
    elif row.action == "known":
        yield from _square((first + last) / 2, middle)
    elif row.action in ("forward", "push"):
        yield from _arrow(first + 3, last - 3, middle, TANGENTS)
    else:
        yield from _arrow(last - 3, first + 3, middle, ADJOINTS)


def _doing(row: MoveRow) -> str:
    if not row.directions:
        return WORDS[row.action]
    noun = "tangent" if row.action in ("forward", "push") else "adjoint"
    text = f"{_brief(row.directions)} {noun}" + ("s" if row.directions > 1 else "")
    return text if row.chunk >= row.directions else f"{text}, {_brief(row.chunk)} at once"


def _arrow(start: float, end: float, y: float, color: str) -> Iterator[Shape]:
    back = -9.0 if end > start else 9.0
    yield Line((start, y), (end + back, y), color, 2.5)
    yield Polygon(((end, y), (end + back, y - 5), (end + back, y + 5)), color)


def _square(x: float, y: float) -> Iterator[Shape]:
    yield rectangle(x - 6, y - 6, 12, 12, KNOWN)


def _join(start: float, cut: float, end: float, y: float) -> Iterator[Shape]:
    """Two factors that meet at a cut: a diamond with a cross."""
    yield Line((start + 3, y), (end - 3, y), INK, 1.5)
    for x in (start + 3, end - 3):
        yield Line((x, y - 5), (x, y + 5), INK, 1.5)
    yield Polygon(((cut - 9, y), (cut, y - 9), (cut + 9, y), (cut, y + 9)), "#ffffff", INK)
    for slope in (1, -1):
        yield Line((cut - 3, y - 3 * slope), (cut + 3, y + 3 * slope), INK, 1.5)


def _legend(explanation: Explanation, columns: _Columns, y: float) -> Part:
    """Say what the marks mean that occur."""
    actions = {row.action for row in explanation.moves}
    if not explanation.traced:
        actions = {explanation.mode}
    entries = [
        ("tangents", 36.0, {"forward", "push"}),
        ("adjoints", 36.0, {"reverse", "pull"}),
        ("known matrix", 12.0, {"known"}),
        ("product", 36.0, {"multiply"}),
        ("cut", 4.0, {"multiply"}),
        ("Jacobian so far", 36.0, set(WORDS) if explanation.moves else set()),
    ]
    shapes: list[Shape] = []
    x, middle = _MARGIN, y + 12
    for name, width, marks in entries:
        if marks & actions:
            shapes += _mark(name, x, middle)
            label = Label(x + width + 6, middle + 4, name, _SMALL)
            shapes.append(label)
            x = label.x + label.length + 22
    return shapes, y + (24 if shapes else 0)


def _mark(name: str, x: float, y: float) -> Iterator[Shape]:
    if name == "tangents":
        yield from _arrow(x, x + 36, y, TANGENTS)
    elif name == "adjoints":
        yield from _arrow(x + 36, x, y, ADJOINTS)
    elif name == "known matrix":
        yield from _square(x + 6, y)
    elif name == "product":
        yield from _join(x, x + 18, x + 36, y)
    elif name == "cut":
        yield _cut(x + 2, y - 10, y + 10)
    else:
        yield rectangle(x, y - 7, 36, 14, PALE)


def _notes(explanation: Explanation, columns: _Columns, y: float) -> Part:
    shapes: list[Shape] = []
    for note in explanation.notes:
        more, y = _paragraph(f"note: {note}", columns, y, GRAY)
        shapes += more
    return shapes, y


def rectangle(x: float, y: float, width: float, height: float, fill: str, edge: str | None = None) -> Polygon:
    """A rectangle, by its upper left corner."""
    return Polygon(((x, y), (x + width, y), (x + width, y + height), (x, y + height)), fill, edge)


def _brief(count: int) -> str:
    """Write a number in at most five characters."""
    return str(count) if count < 10000 else amount(count).replace(" ", "")


def _clipped(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3].rstrip(", ") + "..."
