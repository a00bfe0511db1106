"""``inspect.timeline`` and ``inspect.profile`` of whole programs, against the allocator's events added up by hand."""

import json
import threading

import pytest
import torch
from programs import (
    FLOAT,
    PROGRAMS,
    ROWS,
    WIDTH,
    interrupted,
    made_anew,
    nbytes_of,
    network,
    recurrent,
    without_modules,
)
from torch import nn

from torchadx import inspect
from torchadx.inspect._modules import ModuleWatch


def peak_by_hand(step, path):
    """The most that blocks allocated since before a first step took in a second one."""
    with torch.profiler.profile(profile_memory=True) as profiler:
        step()
        with torch.profiler.record_function("second"):
            step()
    profiler.export_chrome_trace(str(path))
    events = json.loads(path.read_text(), strict=False)["traceEvents"]
    start = next(event["ts"] for event in events if event["name"] == "second" and event["ph"] == "X")
    told = [event for event in events if event["name"] == "[memory]"]
    blocks, now, most = {}, 0, 0
    for event in sorted(told, key=lambda event: (event["ts"], event["args"]["Ev Idx"])):
        address, size = event["args"]["Addr"], event["args"]["Bytes"]
        now += size if size > 0 else -blocks.pop(address, 0)
        if size > 0:
            blocks[address] = size
        most = max(most, now) if event["ts"] >= start else now
    return most


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_peak_is_what_was_there_before_and_what_the_allocator_did(program, tmp_path):
    step, before = PROGRAMS[program]()
    expected = nbytes_of(*before) + peak_by_hand(step, tmp_path / "trace.json")
    device = inspect.timeline(PROGRAMS[program]()[0]).devices["cpu"]
    assert device.peak_bytes == expected == sum(each.nbytes for each in device.alive)


@pytest.mark.parametrize("program", PROGRAMS)
def test_nothing_that_outlives_a_step_is_of_no_kind(program):
    curve = inspect.timeline(PROGRAMS[program]()[0]).devices["cpu"].curve
    kept = {category: values[-1] for category, values in curve.categories.items()}
    # a scaler's numbers, and the indices of a sparse gradient's sum
    assert kept["temporary"] <= 16
    assert kept["activation"] <= 8
    assert kept == {category: values[0] for category, values in curve.categories.items()}


@pytest.mark.parametrize("program", PROGRAMS)
def test_self_times_of_a_program_sum_to_the_time_recorded(program, tmp_path):
    step, _ = PROGRAMS[program]()
    with inspect.profile() as measured:
        step()
    measured.export_chrome_trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text(), strict=False)["traceEvents"]
    (whole,) = (event["dur"] / 1e3 for event in events if event["name"] == "torchadx.inspect.profile")
    rows = measured.modules()
    assert all(row.forward_self_ms <= row.forward_ms + 1e-9 for row in rows)
    assert all(0 <= row.backward_self_ms <= row.backward_ms + 1e-9 for row in rows)
    assert sum(row.forward_self_ms + row.backward_self_ms for row in rows) == pytest.approx(whole)


def last(step):
    """What each category holds when a step is over."""
    curve = inspect.timeline(step).devices["cpu"].curve
    return {category: values[-1] for category, values in curve.categories.items()}


def test_a_gradient_is_one_whoever_its_leaf_belongs_to():
    assert last(without_modules()[0])["gradient"] == WIDTH * WIDTH * FLOAT


def test_values_of_a_sparse_gradient_are_a_gradient_and_its_indices_an_input():
    step, (model, words) = recurrent()
    kept, (weight, *others) = last(step), model.parameters()
    assert weight.grad.is_sparse
    assert kept["gradient"] == sum(each.nbytes for each in others) + words.numel() * WIDTH * FLOAT
    assert kept["input"] == words.nbytes


@pytest.mark.parametrize("program", ["keywords", "without modules"])
def test_what_was_there_before_the_recording_is_no_activation(program):
    step, before = PROGRAMS[program]()
    kept = last(step)
    assert kept["activation"] == 0
    assert kept["input"] + kept["parameter"] == nbytes_of(*before)


def test_modules_that_a_step_makes_anew_go_by_one_name_and_are_gone_after_it():
    memory = inspect.timeline(made_anew()[0])
    assert {rise.module for rise in memory.rises} <= {None, "", "0", "1", "2", "MSELoss"}
    for values in memory.devices["cpu"].curve.categories.values():
        assert values[0] == values[-1] == 0


def test_two_modules_of_one_class_in_one_step_keep_two_names():
    with ModuleWatch() as watch:
        for _ in range(2):
            watch.again()
            network()(torch.randn(ROWS, WIDTH)), nn.Tanh()(nn.Tanh()(torch.randn(1)))
    assert set(watch.classes()) == {"", "0", "1", "2", "Tanh", "Tanh_2"}


def test_memory_that_a_step_replaces_is_not_counted_on():
    model, x = network(), torch.randn(ROWS, WIDTH)

    def step():
        model.zero_grad()
        model(x).sum().backward()
        for parameter in model.parameters():
            parameter.data = parameter.data - 0.1 * parameter.grad

    curve = inspect.timeline(step).devices["cpu"].curve
    assert curve.categories["parameter"][0] == curve.categories["parameter"][-1] == nbytes_of(model)


def test_gradients_from_before_the_recording_end_when_they_are_freed():
    step, (model, x) = interrupted()
    step()
    assert last(step)["gradient"] == nbytes_of(model)


def test_an_optimizer_of_many_parameters_asks_for_names_a_few_times(monkeypatch):
    model, x = network(), torch.randn(ROWS, WIDTH)
    others = [nn.Parameter(torch.zeros(1)) for _ in range(50)]
    optimizer = torch.optim.SGD([*model.parameters(), *others], lr=0.1)
    for other in others:
        other.grad = torch.ones(1)
    asked, parameters = [], ModuleWatch.parameters
    monkeypatch.setattr(ModuleWatch, "parameters", lambda watch: asked.append(0) or parameters(watch))
    inspect.timeline(lambda: (model(x).sum().backward(), optimizer.step()))
    assert 0 < len(asked) < len(others)


def test_a_page_of_modules_with_hostile_names_is_written(tmp_path):
    names = ("<script>alert(1)</script>", 'quo"te', "new\nline", "back\\slash", "</script><!--", "\ud800", "😀")
    model = nn.Sequential()
    for name in names:
        model.add_module(name, nn.Linear(WIDTH, WIDTH))
    path = inspect.report(model, lambda: model(torch.randn(ROWS, WIDTH)).sum().backward(), tmp_path / "page.html")
    assert "<script>alert(1)" not in path.read_text(encoding="utf-8")
    with inspect.profile() as measured:
        model(torch.randn(ROWS, WIDTH))
    assert {row.module for row in measured.modules()} == {None, "", *names}


def test_a_profiler_with_a_schedule_is_left_alone_while_it_warms_up():
    model, x = network(), torch.randn(ROWS, WIDTH)
    schedule = torch.profiler.schedule(wait=1, warmup=1, active=1)
    with torch.profiler.profile(schedule=schedule) as theirs:
        assert inspect.timeline(lambda: model(x)).devices
        theirs.step()
        with pytest.raises(RuntimeError, match="a schedule is warming up"):
            inspect.timeline(lambda: model(x))
        theirs.step()
        model(x)
    assert "aten::addmm" in {event.key for event in theirs.key_averages()}
    assert inspect.timeline(lambda: model(x)).devices


def test_what_is_not_a_model_a_pair_or_a_folder_is_refused(tmp_path):
    model, x = network(), torch.randn(ROWS, WIDTH)

    def step():
        model(x).sum().backward()

    with pytest.raises(TypeError, match=r"model is the torch.nn.Module .*; got function"):
        inspect.report(step, model, tmp_path / "page.html")
    with pytest.raises(TypeError, match=r"model is the torch.nn.Module .*; got str"):
        inspect.timeline(step, model="model")
    with pytest.raises(TypeError, match="before is a pair of a model, or None, and its step; got function"):
        inspect.report(model, step, tmp_path / "page.html", before=step)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        inspect.report(model, step, tmp_path / "none" / "page.html")


def test_an_optimizer_may_step_in_a_thread_of_its_own():
    model, beside, x = network(), network(), torch.randn(ROWS, WIDTH)
    optimizer = torch.optim.SGD(beside.parameters(), lr=0.1)

    def work():
        beside(x).sum().backward()
        optimizer.step()

    def step():
        model.zero_grad()
        thread = threading.Thread(target=work)
        thread.start()
        model(x).sum().backward()
        thread.join()

    memory = inspect.timeline(step, model=model)
    assert memory.devices["cpu"].curve.categories["parameter"][-1] >= nbytes_of(model)
    assert {"forward", "backward"} <= {phase.name for phase in memory.phases}


def test_an_optimizer_may_step_inside_of_backward():
    model, x = network(), torch.randn(ROWS, WIDTH)
    optimizers = {parameter: torch.optim.SGD([parameter], lr=0.1, momentum=0.9) for parameter in model.parameters()}

    def hook(parameter):
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(hook)
    kept = last(lambda: model(x).square().mean().backward())
    assert kept["optimizer state"] == kept["parameter"] == nbytes_of(model)
    assert kept["gradient"] == kept["temporary"] == 0


def test_what_the_allocator_says_of_memory_from_before_counts_at_once():
    model, x = network(), torch.randn(ROWS, WIDTH)
    with torch.profiler.profile(profile_memory=True):
        model(x).sum().backward()

    def step():
        model(x).sum().backward()
        model.zero_grad()
        torch.zeros(100 * nbytes_of(model))

    (device,) = inspect.timeline(step, warmup=0).devices.values()
    assert device.curve.categories["gradient"][0] == nbytes_of(model)
    assert {each.category for each in device.alive} == {"parameter", "input", "temporary"}
