"""Print results with rich."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from torchadx import dispatch, tuning
from torchadx.bench import _machine
from torchadx.bench._modes import MODES
from torchadx.bench._results import Case, Row
from torchadx.bench._targets import Verdict

COLUMNS = ("median", "IQR", "vs eager", "vs compile", "over eager", "saved", "TFLOP/s", "of bare")
LEGEND = (
    "median: time per call. vs eager, vs compile: times faster than. over eager: time added. "
    "saved: kept for backward besides inputs and parameters. of bare: speed as a share of the bare GEMMs'."
)


def console() -> Console:
    """Return a console that is wide enough for the tables when the output is not a terminal."""
    plain = Console()
    return plain if plain.is_terminal else Console(width=132)


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """Show how many of ``total`` things are done. What is yielded is called with the name of each as it begins."""
    columns = (SpinnerColumn(), TextColumn("{task.completed}/{task.total} {task.description}"), TimeElapsedColumn())
    # drawn between the things only: a thread that redraws would disturb their timings
    with Progress(*columns, transient=True, auto_refresh=False) as bar:
        task = bar.add_task("", total=total, completed=-1)

        def begin(description: str) -> None:
            bar.update(task, advance=1, description=description, refresh=True)

        yield begin


def print_header(console: Console, machine: dict[str, Any]) -> None:
    """Print the machine, and whether it is quiet."""
    console.print(_machine.headline(machine))
    if warning := _machine.warning(machine):
        console.print(f"[yellow]{warning}[/]")


def print_backends(console: Console, backends: dict[str, dispatch.Choice]) -> None:
    """Print which backend each dtype takes."""
    for dtype, choice in backends.items():
        console.print(f"{dtype}: backend [bold]{choice.backend}[/], {choice.reason}")


def print_results(
    console: Console,
    cases: Sequence[Case],
    activation: str,
    chosen: Sequence[tuning.Record],
    verdicts: Sequence[Verdict],
) -> None:
    """Print every table of a run, and what was left out of it."""
    for table in results(cases, activation):
        console.print(table)
    console.print(LEGEND, style="dim", soft_wrap=True)
    for line in left_out(cases):
        console.print(f"[yellow]{line}[/]", highlight=False)
    if chosen:
        console.print("", choices(chosen), sep="\n")
    if verdicts:
        console.print("", targets(verdicts), sep="\n")


def results(cases: Sequence[Case], activation: str) -> Iterable[Table]:
    """Lay out one table per mode, with a section per shape and dtype; columns without entries are left out."""
    for mode in dict.fromkeys(case.mode for case in cases):
        yield _mode_table([case for case in cases if case.mode == mode], f"{MODES[mode].title} · {activation}")


def _mode_table(cases: Sequence[Case], title: str) -> Table:
    cells = {(case, row): _cells(case, row) for case in cases for row in case.rows}
    used = [column for column in COLUMNS if any(column in entries for entries in cells.values())]
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("M x K x N", no_wrap=True)
    table.add_column("contender", no_wrap=True)
    for column in used:
        table.add_column(column, justify="right", no_wrap=True)
    for case in cases:
        head = iter((" x ".join(map(str, case.shape)), case.dtype))
        for row in case.rows:
            style = "bold" if row.name == "torchadx" else "dim" if row.error is None else ""
            entries = cells[case, row]
            table.add_row(next(head, ""), row.name, *(entries.get(column, "") for column in used), style=style)
        table.add_section()
    return table


def _cells(case: Case, row: Row) -> dict[str, str]:
    if row.timing is None:
        return {"median": "left out"}
    median = row.timing.median
    tflops = case.flops / median / 1e12
    cells = {
        "median": seconds(median),
        "IQR": f"{(row.timing.q3 - row.timing.q1) / median:.0%}",
        "TFLOP/s": f"{tflops:.3g}" if tflops >= 1e-3 else "<0.001",
    }
    ratios = {"vs eager": "eager", "vs compile": "compile", "of bare": "bare GEMM"}
    for column, other in ratios.items():
        ratio = case.ratio(row.name, other)
        if ratio is not None:
            cells[column] = f"{ratio:.0%}" if column == "of bare" else f"{ratio:.2f}x"
    eager = case.median("eager")
    if row.error is not None and row.name != "eager" and eager is not None:
        cells["over eager"] = seconds(median - eager, sign=True)
    if row.saved is not None:
        cells["saved"] = size(row.saved)
    return cells


def seconds(value: float, sign: bool = False) -> str:
    """Write a duration in the unit that suits it: µs, ms or s."""
    plus = "+" if sign else ""
    if abs(value) >= 1:
        return f"{value:{plus}.3g} s"
    return f"{value * 1e6:{plus}.1f} µs" if abs(value) < 1e-3 else f"{value * 1e3:{plus}.2f} ms"


def size(value: int) -> str:
    """Write a number of bytes in the unit that suits it."""
    amount = float(value)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.3g} {unit}"
        amount /= 1024
    return f"{amount:.3g} GiB"


def left_out(cases: Sequence[Case]) -> Iterable[str]:
    """Say, once per reason, which contenders were not timed."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for case in cases:
        where = f"{case.mode} {'x'.join(map(str, case.shape))} {case.dtype}"
        for row in case.rows:
            if row.left_out is not None:
                reasons.setdefault((row.name, row.left_out), []).append(where)
    for (name, reason), places in reasons.items():
        yield f"left out: {escape(name)} in {', '.join(places)}: {escape(reason)}"


def choices(records: Sequence[tuning.Record]) -> Table:
    """Lay out what tuning chose for each product that the run met, and the times behind it."""
    title = "What torchadx chose, and why"
    table = Table("product", "rows x in x out", "dtype", "chosen", "source", title=title, title_justify="left")
    table.box = box.SIMPLE_HEAD
    table.add_column("candidates")
    for record in records:
        key = record.key
        shape = f"≤{key.m} x {key.k} x {key.n}"
        times = ", ".join(f"{name} {seconds(value)}" for name, value in record.seconds.items())
        dtype = str(key.dtype).removeprefix("torch.")
        table.add_row(f"{key.op} {key.flags}".strip(), shape, dtype, f"[bold]{record.choice}[/]", record.source, times)
    return table


def targets(verdicts: Sequence[Verdict]) -> Table:
    """Lay out what must be reached, what was, and whether that is enough."""
    title = "Must reach, on a quiet two-core machine"
    table = Table("target", title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("wanted", justify="right")
    table.add_column("measured", justify="right")
    table.add_column("")
    for verdict in verdicts:
        word = "[green]met[/]" if verdict.met else "[bold red]missed[/]"
        table.add_row(verdict.what, verdict.wanted, verdict.measured, word)
    return table
