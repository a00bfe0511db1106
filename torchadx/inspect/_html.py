"""One HTML page for a training step: what is saved, memory over time, the graph, and time by module."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from torchadx.inspect import _page
from torchadx.inspect._graph._graph import Graph, graph
from torchadx.inspect._modules import ModuleWatch
from torchadx.inspect._nodes import held_by, leaf_of, walk
from torchadx.inspect._profile._profile import profile
from torchadx.inspect._saved._report import SavedReport
from torchadx.inspect._saved._saved import look
from torchadx.inspect._timeline._step import run
from torchadx.inspect._timeline._timeline import Timeline, summarize

# what a page shows of a very large model: more would not be read, and would not load
_MAX_ROWS, _MAX_NODES = 1500, 4000


class NoBackwardError(RuntimeError):
    """A training step ran no backward, so there is no graph to look at."""


def report(
    model: nn.Module | None,
    step: Callable[[], object],
    path: str | os.PathLike[str],
    *,
    before: tuple[nn.Module | None, Callable[[], object]] | None = None,
    title: str | None = None,
    warmup: int = 1,
) -> pathlib.Path:
    """Write one HTML page that says what a training step saves, where its memory and its time go.

    The page needs no network: what autograd saves by module, memory over time and what was alive at the peak, a table
    of saved storages to search and sort, the graph to unfold module by module, time and memory of each module's
    forward and backward.

    Args:
        model: The model, where parts of it are called by themselves; ``None``: the outermost module that runs.
        step: One training step: forward, backward, optimizer. It runs ``warmup + 2`` times: to warm up, for memory and
            for time; whatever it changes, such as parameters, it changes that often.
        path: The file to write.
        before: A model and a step to compare with, which the page calls "before".
        title: Of the page.
        warmup: How many steps run first.

    Returns:
        The path.

    Raises:
        ModuleNotFoundError: plotly is not installed.
        TypeError: A step is no function, a model no module, or ``before`` no pair of these.
        FileNotFoundError: There is no folder for the file.
        ValueError: ``warmup`` is negative.
        NoBackwardError: A step ran no backward.
    """
    path = pathlib.Path(path)
    # before the steps run, which may take long
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path: there is no folder {path.parent} to write {path.name} to; make it first")
    path.write_text(_page.render(contents(model, step, before, title, warmup)), encoding="utf-8")
    return path


def contents(
    model: nn.Module | None,
    step: Callable[[], object],
    before: tuple[nn.Module | None, Callable[[], object]] | None,
    title: str | None,
    warmup: int,
) -> dict[str, Any]:
    """Return what the page of :func:`report` shows, as plain numbers, strings, lists and dictionaries."""
    passes = []
    if before is not None:
        if not isinstance(before, tuple) or len(before) != 2:
            raise TypeError(f"before is a pair of a model, or None, and its step; got {type(before).__name__}")
        passes.append(_pass("before", *before, warmup))
    passes.append(_pass("after" if before is not None else "", model, step, warmup))
    name = "a training step" if model is None else type(model).__name__
    return {
        "title": title or f"What {name} saves, and where its memory and time go",
        "subtitle": f"torch {torch.__version__}, {_devices(passes)}, {torch.get_num_threads()} threads",
        "passes": passes,
    }


def _devices(passes: list[dict[str, Any]]) -> str:
    names = [name for each in passes for name in each["timeline"]["devices"]]
    return ", ".join(dict.fromkeys(names))


@dataclasses.dataclass(frozen=True)
class Look:
    """What a training step keeps for backward when that begins, its graph, and its memory over time."""

    saved: SavedReport
    graph: Graph
    timeline: Timeline


def look_into(step: Callable[[], object], model: nn.Module | None, warmup: int) -> Look:
    """Run a step under the profiler, and look at its graph right before backward: of several the one that holds most.

    Raises:
        NoBackwardError: It ran none.
    """
    looks: list[tuple[SavedReport, Graph]] = []

    def before_backward(modules: ModuleWatch, outputs: list[Tensor]) -> None:
        # a graph may be partly freed, if no path through that part is asked for
        whole = all(held_by(node) is not None for node in walk(outputs) if leaf_of(node) is None)
        drawn = outputs[0] if len(outputs) == 1 else outputs
        looks.append((look(outputs, modules), graph(drawn, record=modules, show_saved=whole)))

    # anomaly mode is how torch notes the lines that make nodes
    lines = functools.partial(torch.autograd.set_detect_anomaly, True, check_nan=False)
    timeline = summarize(run(step, model, warmup, before_backward, lines))
    if not looks:
        raise NoBackwardError(
            "the step ran no backward(), autograd.backward() or autograd.grad(), so nothing is saved for one; let it "
            "call loss.backward()"
        )
    saved, drawn = max(looks, key=lambda pair: pair[0].held_bytes)
    notes = saved.notes
    if len(looks) > 1:
        notes += (f"the step ran {len(looks)} graphs backward: this is the one that holds most",)
    peak = sum(device.peak_bytes for device in timeline.devices.values())
    return Look(dataclasses.replace(saved, peak_bytes=peak, notes=notes), drawn, timeline)


def _pass(name: str, model: nn.Module | None, step: Callable[[], object], warmup: int) -> dict[str, Any]:
    seen = look_into(step, model, warmup)
    with profile(model=model) as profiled:
        step()
    return {
        "name": name,
        "saved": _bounded(seen.saved),
        "timeline": seen.timeline.to_dict(),
        "graph": seen.graph.to_dict() if len(seen.graph.nodes) <= _MAX_NODES else None,
        "profile": profiled.to_dict(),
    }


def _bounded(saved: SavedReport) -> dict[str, Any]:
    """Return the report with the largest rows first, and without the rest where there are too many for a page."""
    whole = dataclasses.replace(saved, rows=saved.largest(_MAX_ROWS)).to_dict() | {"totals": saved.totals()}
    rest = len(saved.rows) - _MAX_ROWS
    if rest > 0:
        whole["notes"].append(f"the {rest} rows that hold least are left out; to_json() has them")
    return whole
