"""The parts of the inspection benchmark that record training steps: memory over time, time by module, the page."""

import contextlib
import functools
import pathlib
import tempfile
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

import torchadx.inspect
from torchadx.bench import _inspect_check
from torchadx.bench._harness import Contender, race
from torchadx.bench._inspect_graphs import timed
from torchadx.bench._inspect_models import Training
from torchadx.bench._inspect_results import Memory, Page, Profiled, Row, Written
from torchadx.memory import ActivationManager

STEP, PROFILER, TIMELINE = "plain step", "torch.profiler", "timeline()"
OFF, AVERAGES, PROFILE = "profile(enabled=False)", "torch.profiler, key_averages()", "profile()"
STEPS, REPORT = "its steps alone", "report()"

#: steps of each pass of a page: one warms up, one is recorded for memory, one for time
_STEPS_PER_PASS = 3
#: a page takes seconds
_MOST_PAGES = 3


def measure_timeline(training: Training, device: torch.device, rounds: int, without: Collection[str]) -> Memory:
    """Check, then time ``inspect.timeline`` against the step alone and under torch's profiler.

    Raises:
        WrongResultError: The peak differs from that of torch's own events.
    """
    counted = _inspect_check.count_peak(training)
    # the step before it finds no state either, so the one recorded is the second one, too
    training.forget()
    found = torchadx.inspect.timeline(training.step, model=training.model)
    name = str(training.tensors()[0].device)
    _inspect_check.same(f"timeline, {training.name}: is {name} a device of it", name in found.devices, True)
    peak = found.devices[name].peak_bytes
    _inspect_check.near(f"timeline, {training.name}: bytes at the peak", peak, counted)
    runs: dict[str, Callable[[], Any]] = {
        STEP: training.step,
        PROFILER: functools.partial(_profiled, training.step, shapes=False),
        TIMELINE: functools.partial(torchadx.inspect.timeline, training.step, model=training.model, warmup=0),
    }
    rows = timed({key: run for key, run in runs.items() if key not in without}, rounds, device)
    return Memory(training.name, training.described, rows, peak, counted)


def measure_profile(training: Training, device: torch.device, rounds: int, without: Collection[str]) -> Profiled:
    """Check, then time ``inspect.profile``, on and off, against the step alone and under torch's profiler.

    Raises:
        WrongResultError: The self times of all modules do not sum to the time recorded.
    """
    training.step()
    with torchadx.inspect.profile(model=training.model) as found:
        training.step()
    whole = _inspect_check.recorded_ms(_inspect_check.trace_events(found.export_chrome_trace))
    total = sum(row.forward_self_ms + row.backward_self_ms for row in found.modules())
    what = f"profile, {training.name}: ms of the self times of all modules"
    _inspect_check.near(what, total, whole, _inspect_check.ROUNDING)
    known = {path for path, module in training.model.named_modules() if not isinstance(module, torch.nn.ModuleList)}
    ran = {row.module for row in found.modules() if row.calls and row.module is not None}
    _inspect_check.same(f"profile, {training.name}: modules that ran", sorted(ran), sorted(known))

    runs: dict[str, Callable[[], Any]] = {
        STEP: training.step,
        OFF: functools.partial(_looked, training.step, enabled=False),
        PROFILER: functools.partial(_profiled, training.step, shapes=True),
        AVERAGES: functools.partial(_averaged, training.step, shapes=True),
        PROFILE: functools.partial(_looked, training.step, model=training.model),
    }
    shown = {key: run for key, run in runs.items() if key.partition(",")[0] not in without}
    rows = timed(shown, rounds, device)
    return Profiled(training.name, training.described, rows, total, whole, _entry_ns(rounds, device))


def _profiled(step: Callable[[], Tensor], shapes: bool) -> torch.profiler.profile:
    with torch.profiler.profile(profile_memory=True, record_shapes=shapes) as profiler:
        step()
    return profiler


def _averaged(step: Callable[[], Tensor], shapes: bool) -> Any:
    return _profiled(step, shapes).key_averages()


def _looked(step: Callable[[], Tensor], **options: Any) -> None:
    with torchadx.inspect.profile(**options):
        step()


def _entry_ns(rounds: int, device: torch.device) -> float:
    """Return what a block under ``profile(enabled=False)`` takes beyond one under nothing."""

    def bare() -> None:
        pass

    def off() -> None:
        with torchadx.inspect.profile(enabled=False):
            pass

    timings = race([Contender("bare", bare), Contender("off", off)], rounds, device)
    return (timings["off"].median - timings["bare"].median) * 1e9


def measure_page(training: Training, device: torch.device, rounds: int, without: Collection[str]) -> Page:
    """Check, then time ``inspect.report`` of a step, before and after an int8 manager, against the steps in it.

    Raises:
        WrongResultError: The page tells other bytes than hooks on saved tensors, or than the manager does.
    """
    manager = ActivationManager("int8").watch(training.model)

    def managed() -> Tensor:
        with manager:
            return training.loss()

    compressed = functools.partial(training.step_with, managed)

    def steps() -> None:
        for step in (training.step, compressed):
            for _ in range(_STEPS_PER_PASS):
                step()

    with tempfile.TemporaryDirectory(prefix="torchadx-") as folder, contextlib.closing(manager):
        path = pathlib.Path(folder) / "report.html"
        before = training.model, training.step

        def write() -> None:
            torchadx.inspect.report(training.model, compressed, path, before=before)

        try:
            write()
        except ModuleNotFoundError as error:
            return Page(training.name, training.described, (Row(REPORT, None, str(error)),), None)
        nbytes = path.stat().st_size
        plain, after = _totals(path)
        _check_page(training, plain, after, manager)
        rows = timed({STEPS: steps, REPORT: write}, min(rounds, _MOST_PAGES), device)
    written = Written(nbytes, plain["held_bytes"], after["held_bytes"])
    return Page(training.name, training.described, rows, written)


def _totals(path: pathlib.Path) -> tuple[dict[str, int], ...]:
    passes = _inspect_check.payload_of(path.read_text(encoding="utf-8"))["passes"]
    return tuple(each["saved"]["totals"] for each in passes)


def _check_page(training: Training, before: dict[str, int], after: dict[str, int], manager: ActivationManager) -> None:
    """Compare what a page tells with hooks on saved tensors, and with what the manager did in the last step."""
    what = f"page, {training.name}"
    count = _inspect_check.count_saved(training.loss)
    got = before["tensors"], before["storages"], before["unique_bytes"]
    _inspect_check.same(f"{what}: tensors, storages, bytes", got, (count.tensors, count.storages, count.nbytes))
    # to the manager, an input that it keeps is held by the graph as well
    rows = manager.report().rows
    held = sum(row.held_bytes for row in rows if (row.alias, row.action) != ("input", "keep"))
    _inspect_check.same(f"{what}: bytes that the manager holds", after["held_bytes"], held)
