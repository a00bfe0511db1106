"""Print what the inspection benchmark measured with rich."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from torchadx.bench._harness import Timing
from torchadx.bench._inspect_results import Case, Drawn, Memory, Page, Profiled, Row, Saved
from torchadx.bench._table import seconds, size

TITLES = {
    "saved": "What autograd saves",
    "graph": "The graph and its DOT text",
    "timeline": "Memory over a step",
    "profile": "Time by module of a step",
    "page": "The page, before and after int8",
}
LEGEND = (
    "median: time per call. of first, over first: times what the first contender of that model takes, and time added. "
    " Numbers below a model's name agree with a count by other means."
)


def print_cases(console: Console, cases: Sequence[Case]) -> None:
    """Print a table for each section, and who was left out of it."""
    for section, title in TITLES.items():
        own = [case for case in cases if case.section == section]
        if own:
            console.print(_table(title, own))
    console.print(LEGEND, style="dim", soft_wrap=True)
    for line in left_out(cases):
        console.print(f"[yellow]{line}[/]", highlight=False, soft_wrap=True)


def _table(title: str, cases: Sequence[Case]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("model", "contender"):
        table.add_column(column, no_wrap=True)
    for column in ("median", "IQR", "of first", "over first"):
        table.add_column(column, justify="right", no_wrap=True)
    for case in cases:
        heads = [case.name, f"  {case.described}", *facts(case)]
        bodies = [_cells(case, row, row.timing) for row in case.rows if row.timing is not None]
        for place in range(max(len(heads), len(bodies))):
            head = heads[place] if place < len(heads) else ""
            table.add_row(head, *(bodies[place] if place < len(bodies) else ()))
        table.add_section()
    return table


def _cells(case: Case, row: Row, timing: Timing) -> tuple[str, ...]:
    cells = row.name, seconds(timing.median), f"{(timing.q3 - timing.q1) / timing.median:.0%}"
    times = case.of_first(row.name)
    if times is None or times == 1:
        return cells
    return *cells, f"{times:.2f}x", seconds(timing.median - timing.median / times, sign=True)


def facts(case: Case) -> Iterator[str]:
    """Say what was found and checked."""
    if isinstance(case, Saved):
        yield f"  {case.tensors} tensors, {case.storages} storages, {size(case.nbytes)}"
        yield f"  allocator grew by {size(case.grown)}, {case.agreement:.4f}x"
    if isinstance(case, Drawn):
        yield f"  {case.nodes} nodes, {case.edges} edges, {size(case.text_bytes)} of text"
    if isinstance(case, Memory):
        yield f"  peak {size(case.peak)}, {case.agreement:.4f}x torch's"
    if isinstance(case, Profiled):
        yield f"  self times {case.self_ms:.1f} ms of {case.recorded_ms:.1f} ms"
        yield f"  enabled=False: {case.entry_ns:.0f} ns an entry"
    if isinstance(case, Page) and case.written is not None:
        written = case.written
        yield f"  {size(written.nbytes)}; held {size(written.before)} before, {size(written.after)} after"


def left_out(cases: Sequence[Case]) -> Iterator[str]:
    """Say, once per reason, which contenders were not timed."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for case in cases:
        for row in case.rows:
            if row.left_out is not None:
                reasons.setdefault((row.name, row.left_out), []).append(f"{case.section} {case.name}")
    for (name, reason), places in reasons.items():
        yield f"left out: {escape(name)} in {', '.join(places)}: {escape(reason)}"
