"""Print what the memory benchmark measured with rich."""

import dataclasses
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from torchadx.bench._memory_overhead import IDENTITY
from torchadx.bench._memory_results import Check, Growth, Loss, Overhead, Row, Steps
from torchadx.bench._table import seconds, size

LEGEND = (
    "saved: held for backward wherever that is, besides parameters. resident: the most of it in the device's memory at "
    "once, over plain's. gradient: bitwise plain's, or its relative error and the most that is allowed. step: median "
    "time. codecs, stores: shares of it. loss: on text held out, nats a character."
)


def print_steps(console: Console, steps: Steps) -> None:
    """Print the table of strategies, and what was left out of it."""
    layers, width, sequence, batch = steps.size
    console.print(
        f"Transformer of {layers} layers, width {width}, {steps.parameters:,} parameters; sequence {sequence}, batch "
        f"{batch}; {steps.characters:,} characters of Python's documentation, {steps.vocabulary} different ones",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    plain = steps.row("plain")
    assert plain is not None
    table = _table(f"{steps.steps} training steps", "strategy")
    columns = ("saved", "of plain", "resident", "gradient", "step", "IQR", "of plain", "codecs", "stores", "loss")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in steps.rows:
        table.add_row(row.name, *_cells(row, plain), style="" if row.codec_share is None else "bold")
    console.print(table)
    console.print(LEGEND, style="dim", soft_wrap=True)
    for name, reason in steps.left_out.items():
        console.print(f"[yellow]left out: {escape(name)}: {escape(reason)}[/]", highlight=False)


def _cells(row: Row, plain: Row) -> list[str]:
    timing = row.timing
    return [
        size(row.saved),
        _times(row.saved, plain.saved),
        _times(row.peak, plain.saved),
        _gradient(row.check),
        seconds(timing.median),
        f"{(timing.q3 - timing.q1) / timing.median:.0%}",
        _times(timing.median, plain.timing.median),
        _share(row.codec_share),
        _share(row.store_share),
        f"{row.loss:.4f}",
    ]


def _times(value: float, plain: float) -> str:
    return f"{value / plain:.2f}x"


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _gradient(check: Check) -> str:
    return "bitwise" if check.bitwise else f"{check.error:.2%} ≤ {100 * check.bound:g}%"


def print_loss(console: Console, loss: Loss) -> None:
    """Print the losses of the longer training."""
    table = _table(f"Loss on text held out after {loss.steps} steps, nats a character", "strategy")
    table.add_column("loss", justify="right")
    table.add_column("against plain", justify="right")
    plain = loss.losses["plain"]
    for name, value in loss.losses.items():
        table.add_row(name, f"{value:.4f}", "" if name == "plain" else f"{value / plain - 1:+.2%}")
    console.print(table)


def print_overhead(console: Console, overhead: Overhead) -> None:
    """Print what hooks cost a saved tensor."""
    table = _table(f"Overhead: {overhead.tensors} saved tensors of 64 bytes, forward and backward", "hooks")
    for column in ("median", "a tensor", "over identity"):
        table.add_column(column, justify="right")
    for name, timing in overhead.timings.items():
        extra = f"{overhead.microseconds(name, IDENTITY):+.2f} µs"
        each = seconds(timing.median / overhead.tensors)
        table.add_row(name, seconds(timing.median), each, "" if name == IDENTITY else extra)
    console.print(table)


def print_growth(console: Console, growths: Sequence[Growth]) -> None:
    """Print what there was after a tenth of the steps, and at the end."""
    table = _table(f"Growth: from step {growths[0].steps // 10} to step {growths[0].steps} of a small model", "store")
    table.add_column("policy")
    table.add_column("a step", justify="right")
    for name in ("tensors", "held", "files", "open files", "pinned", "threads", "process"):
        table.add_column(name, justify="right", no_wrap=True)
    for growth in growths:
        early, late = dataclasses.asdict(growth.early), dataclasses.asdict(growth.late)
        cells = (_from_to(name, early[name], late[name]) for name in early)
        table.add_row(growth.store, growth.policy, seconds(growth.seconds / growth.steps), *cells)
    console.print(table)


def _from_to(name: str, early: int | None, late: int | None) -> str:
    if early is None or late is None:
        return "unknown"
    write = size if name in ("held_bytes", "pinned_bytes", "rss") else str
    return write(early) if early == late else f"{write(early)} → {write(late)}"


def _table(title: str, first: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column(first, no_wrap=True)
    return table
