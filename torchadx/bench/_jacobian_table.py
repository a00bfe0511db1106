"""Print what the Jacobian benchmark measured with rich."""

import textwrap
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from torchadx.bench._jacobian_results import Case, Planning, Row, Sample, quartiles
from torchadx.bench._table import seconds, size

LEGEND = (
    "how: the mode of the plan, or the faster of two chunk sizes. median: time a Jacobian. torchadx: how many times "
    "faster it is. besides result: most bytes allocated at once, the result not counted; JAX does not tell. once: to "
    "plan or to compile, not timed in. error: the largest against float64, over the largest entry."
)


def print_cases(console: Console, cases: Sequence[Case]) -> None:
    """Print the table of contenders, a section a case, and who was left out of it."""
    title = "Whole Jacobians, fp32"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("case", "contender", "how"):
        table.add_column(column, no_wrap=True)
    for column in ("median", "IQR", "torchadx", "besides result", "once", "error"):
        table.add_column(column, justify="right", no_wrap=True)
    for case in cases:
        head = iter((*textwrap.wrap(case.name, 24), f"{_shape(case.inputs)} -> {_shape(case.outputs)}"))
        for row in case.rows:
            if row.timing is not None:
                style = "" if row.group in ("eager", "compiled") else "bold"
                table.add_row(next(head, ""), row.name, row.detail, *_cells(case, row), style=style)
        for line in head:
            table.add_row(line)
        table.add_section()
    console.print(table)
    console.print(LEGEND, style="dim", soft_wrap=True)
    for line in left_out(cases):
        console.print(f"[yellow]{line}[/]", highlight=False, soft_wrap=True)


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _cells(case: Case, row: Row) -> list[str]:
    timing, mine = row.timing, case.best("torchadx")
    assert timing is not None
    assert mine is not None
    assert mine.timing is not None
    return [
        seconds(timing.median),
        f"{(timing.q3 - timing.q1) / timing.median:.0%}",
        "" if row is mine else f"{timing.median / mine.timing.median:.2f}x",
        "" if row.peak is None else size(row.peak),
        "" if row.prepared is None else seconds(row.prepared),
        "" if row.error is None else f"{row.error:.0e}",
    ]


def left_out(cases: Sequence[Case]) -> Iterator[str]:
    """Say, once per reason, which contenders were not timed."""
    reasons: dict[str, dict[str, list[str]]] = {}
    for case in cases:
        for row in case.rows:
            if row.left_out is not None:
                reasons.setdefault(row.left_out, {}).setdefault(case.name, []).append(row.name)
    for reason, places in reasons.items():
        names = ", ".join(dict.fromkeys(name for several in places.values() for name in several))
        yield f"left out: {escape(names)} in {', '.join(places)}: {escape(reason)}"


def print_planning(console: Console, planning: Planning) -> None:
    """Print how long it takes to plan a deep network."""
    timing = planning.timing
    between = f"half of them between {seconds(timing.q1)} and {seconds(timing.q3)}"
    text = f"Planning {planning.layers} layers, from the trace to the plan: {seconds(timing.median)}, {between}"
    console.print(text, "", sep="\n", highlight=False)


def print_random(console: Console, samples: Sequence[Sample]) -> None:
    """Print how plans of random networks compare, and what became of those under a limit."""
    title = f"{len(samples)} random networks, times faster than the better of jacrev and jacfwd"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("least", "quartile", "median", "quartile", "most"):
        table.add_column(column, justify="right")
    table.add_row(*(f"{ratio:.2f}x" for ratio in quartiles(samples)))
    console.print(table)
    refused = sum(sample.peak is None for sample in samples)
    above = [sample for sample in samples if sample.above]
    console.print(
        f"With half of the memory: {len(samples) - refused - len(above)} stay within it, {len(above)} do not, "
        f"{refused} say that it cannot be done",
        highlight=False,
    )
    slowest = min(samples, key=lambda sample: sample.ratio)
    console.print(f"Slowest: {slowest.name}", highlight=False)
    for sample in above:
        console.print(f"[red]{sample.name}: {size(sample.peak or 0)} of {size(sample.limit)}[/]", highlight=False)
