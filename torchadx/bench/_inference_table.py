"""Print what the inference benchmark measured with rich."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from torchadx.bench._inference_contenders import COMPILE, EAGER
from torchadx.bench._inference_results import Case, Row
from torchadx.bench._table import seconds, size

COLUMNS = ("median", "IQR", "vs eager", "vs compile", "over eager", "prepared", "error")
LEGEND = (
    "median: time per call, with warm caches. vs eager, vs compile: times faster than, both in fp32. over eager: time "
    "added. prepared: bytes of weights held in another form. error: norm of the difference from float64, over the norm."
)


def print_cases(console: Console, cases: Sequence[Case]) -> None:
    """Print the table of contenders, a section a case, and who was left out of it."""
    table = Table(title="Modules in inference mode", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("module@batch", "contender"):
        table.add_column(column, no_wrap=True)
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for case in cases:
        head = iter((case.name, f"weights {size(case.weights)}"))
        for row in case.rows:
            if row.timing is not None:
                style = "" if row.prepared is None else "bold"
                table.add_row(next(head, ""), row.name, *_cells(case, row), style=style)
        table.add_section()
    console.print(table)
    console.print(LEGEND, style="dim", soft_wrap=True)
    for line in left_out(cases):
        console.print(f"[yellow]{line}[/]", highlight=False, soft_wrap=True)


def _cells(case: Case, row: Row) -> list[str]:
    timing, eager = row.timing, case.median(EAGER)
    assert timing is not None
    assert eager is not None
    return [
        seconds(timing.median),
        f"{(timing.q3 - timing.q1) / timing.median:.0%}",
        *(_times(case.ratio(row.name, rival)) for rival in (EAGER, COMPILE)),
        "" if row.name == EAGER else seconds(timing.median - eager, sign=True),
        "" if row.prepared is None else size(row.prepared),
        "" if row.error is None else f"{row.error:.0e}",
    ]


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"


def left_out(cases: Sequence[Case]) -> Iterator[str]:
    """Say, once per reason, which contenders were not timed."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for case in cases:
        for row in case.rows:
            if row.left_out is not None:
                reasons.setdefault((row.name, row.left_out), []).append(case.name)
    for (name, reason), places in reasons.items():
        yield f"left out: {escape(name)} in {', '.join(places)}: {escape(reason)}"
