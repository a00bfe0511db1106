"""The parts of the inspection benchmark that look at one graph: what it saves, and its picture."""

import functools
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

import torchadx.inspect
from torchadx.bench import _inspect_check
from torchadx.bench._harness import Contender, race
from torchadx.bench._inspect_models import Training
from torchadx.bench._inspect_results import Drawn, Row, Saved

PLAIN, HOOKS, SAVED = "plain forward", "counting hooks", "saved()"
TORCHVIZ, GRAPH, MODULES = "torchviz", "graph()", "graph(), by module"


def measure_saved(training: Training, device: torch.device, rounds: int, without: Collection[str]) -> Saved:
    """Check, then time ``inspect.saved`` against a forward alone, and against hooks that only count.

    Raises:
        WrongResultError: Counts differ from those of hooks, or bytes from the growth of torch's allocator.
    """
    what = f"saved, {training.name}"
    training.forward()
    count = _inspect_check.count_saved(training.forward)
    # with its model, the inputs are no activations
    report = torchadx.inspect.saved(training.model, *training.args, measure=True)
    found = (report.tensors, report.storages, report.unique_bytes)
    _inspect_check.same(f"{what}: tensors, storages, bytes", found, (count.tensors, count.storages, count.nbytes))
    expected = report.activation_bytes + count.more_outputs
    grown = report.measured_bytes
    _inspect_check.near(f"{what}: bytes of activations and outputs, by the allocator's growth", expected, grown)
    runs: dict[str, Callable[[], Any]] = {
        PLAIN: training.forward,
        HOOKS: functools.partial(_inspect_check.count_saved, training.forward),
        SAVED: functools.partial(torchadx.inspect.saved, training.model, *training.args),
    }
    rows = timed({name: run for name, run in runs.items() if name != HOOKS or "hooks" not in without}, rounds, device)
    return Saved(training.name, training.described, rows, *found, expected, grown)


def measure_graph(training: Training, device: torch.device, rounds: int, without: Collection[str]) -> Drawn:
    """Check, then time ``inspect.graph`` and its text against torchviz.

    Raises:
        WrongResultError: The picture has other edges than the graph has.
    """
    what = f"graph, {training.name}: edges"
    loss = training.loss()
    parameters: dict[str, Tensor] = dict(training.model.named_parameters())
    expected = _inspect_check.count_edges(loss)
    graph = torchadx.inspect.graph(loss, parameters, collapse=None)
    text = graph.dot()
    _inspect_check.same(what, len(graph.edges), expected)
    _inspect_check.same(f"{what} of the text", _inspect_check.arrows(text), expected)

    def drawn(collapse: Any) -> str:
        return torchadx.inspect.graph(loss, parameters, collapse=collapse).dot()

    runs: dict[str, Callable[[], Any]] = {}
    left_out: dict[str, str] = {}
    if "torchviz" not in without:
        picture = functools.partial(_torchviz, loss, parameters)
        reason = _wrong_picture(picture, expected)
        if reason is None:
            runs[TORCHVIZ] = picture
        else:
            left_out[TORCHVIZ] = reason
    runs |= {GRAPH: functools.partial(drawn, None), MODULES: functools.partial(drawn, "module")}
    rows = (*(Row(name, None, reason) for name, reason in left_out.items()), *timed(runs, rounds, device))
    return Drawn(training.name, training.described, rows, len(graph.nodes), expected, len(text.encode()))


def _torchviz(loss: Tensor, parameters: dict[str, Tensor]) -> str:
    from torchviz import make_dot

    return make_dot(loss, parameters).source


def _wrong_picture(picture: Callable[[], str], expected: int) -> str | None:
    """Return why torchviz is not to be timed, or ``None``."""
    try:
        edges = _inspect_check.arrows(picture())
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed: pip install torchviz"
    except RecursionError:
        return "RecursionError: it calls itself once for each node of the longest path"
    return None if edges == expected else f"wrong result: {edges} edges, counted {expected}"


def timed(runs: dict[str, Callable[[], Any]], rounds: int, device: torch.device) -> tuple[Row, ...]:
    """Race contenders that have been checked; return a row for each."""
    timings = race([Contender(name, run) for name, run in runs.items()], rounds, device)
    return tuple(Row(name, timing) for name, timing in timings.items())
