"""Write the picture of a plan: as SVG, by string building alone, or as PNG with matplotlib."""

import os
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape, quoteattr

from torchadx.autodiff._explain import explain
from torchadx.autodiff._picture import Label, Line, Picture, Shape, picture

if TYPE_CHECKING:
    from torchadx.autodiff._plan import JacobianPlan

_FONT = "DejaVu Sans, Verdana, Helvetica, Arial, sans-serif"
# pixels an inch of a picture, and of the file: twice as fine
_INCH = 100.0
_DOTS = 200


def draw(plan: "JacobianPlan", path: str | os.PathLike[str] | None = None) -> str | None:
    """Draw a plan.

    Args:
        plan: Of any function, bound or not.
        path: A file to write, ``.svg`` or ``.png``.

    Returns:
        SVG text, or ``None`` if there is a file to write.

    Raises:
        ValueError: Another suffix.
        ModuleNotFoundError: ``.png`` without matplotlib.
    """
    if path is None:
        return svg(picture(explain(plan)))
    path = pathlib.Path(path)
    if path.suffix not in (".svg", ".png"):
        raise ValueError(f"a drawing is written as .svg or .png: got a path with suffix {path.suffix!r}, {str(path)!r}")
    drawn = picture(explain(plan))
    if path.suffix == ".svg":
        path.write_text(svg(drawn), encoding="utf-8")
    else:
        _png(drawn, path)
    return None


def svg(drawn: Picture) -> str:
    """Write a picture as SVG."""
    width, height = _number(drawn.width), _number(drawn.height)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="{_FONT}" role="img">',
        *map(_element, drawn.shapes),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _element(shape: Shape) -> str:
    if isinstance(shape, Label):
        return _text(shape)
    if isinstance(shape, Line):
        (x1, y1), (x2, y2) = (map(_number, point) for point in (shape.start, shape.end))
        dashes = ' stroke-dasharray="5 4"' if shape.dashed else ""
        stroke = f'stroke="{shape.color}" stroke-width="{_number(shape.width)}"'
        return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" {stroke}{dashes}/>'
    points = " ".join(f"{_number(x)},{_number(y)}" for x, y in shape.points)
    return f'<polygon points="{points}" fill="{shape.fill}" stroke="{shape.edge or "none"}"/>'


def _text(label: Label) -> str:
    x, y = _number(label.x), _number(label.y)
    attributes = {"x": x, "y": y, "font-size": _number(label.size), "text-anchor": label.anchor, "fill": label.color}
    if label.bold:
        attributes["font-weight"] = "bold"
    if label.upright:
        attributes["transform"] = f"rotate(-90 {x} {y})"
    written = " ".join(f"{name}={quoteattr(value)}" for name, value in attributes.items())
    return f"<text {written}>{escape(label.text)}</text>"


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _png(drawn: Picture, path: pathlib.Path) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        message = 'draw needs matplotlib to write .png: pip install "torchadx[examples]", or write .svg'
        raise ModuleNotFoundError(message, name=error.name) from error
    figure = Figure(figsize=(drawn.width / _INCH, drawn.height / _INCH))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, drawn.width), ylim=(drawn.height, 0))
    axes.axis("off")
    # later shapes cover earlier ones, whatever their kind
    for order, artist in enumerate(_artists(drawn)):
        artist.set_zorder(order)
        axes.add_artist(artist)
    figure.savefig(path, dpi=_DOTS)


def _artists(drawn: Picture) -> Iterator[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Polygon
    from matplotlib.text import Text

    # matplotlib counts sizes and widths in points
    point = 72.0 / _INCH
    sides = {"start": "left", "middle": "center", "end": "right"}
    for shape in drawn.shapes:
        if isinstance(shape, Label):
            font: dict[str, Any] = {"fontsize": shape.size * point, "color": shape.color, "family": "DejaVu Sans"}
            font["weight"] = "bold" if shape.bold else "normal"
            # turned about its anchor, as in SVG
            align: dict[str, Any] = {"rotation": 90.0 if shape.upright else 0.0, "rotation_mode": "anchor"}
            # a dollar sign would begin a formula
            yield Text(shape.x, shape.y, shape.text, ha=sides[shape.anchor], parse_math=False, **align, **font)
        elif isinstance(shape, Line):
            (x1, y1), (x2, y2) = shape.start, shape.end
            style: Any = (0, (5 / shape.width, 4 / shape.width)) if shape.dashed else "-"
            yield Line2D([x1, x2], [y1, y2], color=shape.color, lw=shape.width * point, ls=style, solid_capstyle="butt")
        else:
            yield Polygon(shape.points, closed=True, fc=shape.fill, ec=shape.edge or "none", lw=point)
