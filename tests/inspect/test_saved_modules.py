"""Which module and which line of whose code saved a tensor; and that nothing is left of the watching."""

import inspect
import os
import threading

import pytest
import torch
from saving import Nested, mlp, row_of
from torch import nn
from torch.nn.modules import module as hooks

import torchadx
from torchadx.inspect import saved


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    assert not hooks._global_forward_hooks
    assert not hooks._global_forward_pre_hooks
    assert not torch.is_anomaly_enabled()


def modules(report):
    """Modules of activations with the slot that saved first."""
    return [(row.module, row.node) for row in report.rows if row.alias is None]


def test_nested_modules_and_one_that_runs_twice():
    report = saved(Nested(), torch.randn(4, 8))
    assert modules(report) == [
        *(("twice", "TanhBackward0"), ("body.0.1", "GeluBackward0"), ("body.1", "AddmmBackward0")),
        ("twice", "TanhBackward0"),
    ]
    assert row_of(report, "GeluBackward0.self").module == "body.0.1"
    assert report.classes["body.0.1"] == "GELU"
    assert report.classes[""] == "Nested"


def test_what_a_parent_does_itself_is_the_parents():
    class Parent(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, x):
            before = x * self.inner.weight.sum()
            return self.inner(before.sin()).cos()

    report = saved(nn.Sequential(Parent(), nn.Tanh()), torch.randn(4, 8))
    assert row_of(report, "SinBackward0.self").module == "0"
    assert row_of(report, "CosBackward0.self").module == "0"
    assert row_of(report, "TanhBackward0.result").module == "1"
    assert [row.module for row in report.rows if "AddmmBackward0.mat1" in row.slots] == ["0.inner"]


def test_a_loss_beside_the_model_goes_by_its_class():
    model, loss_of, x, target = mlp(), nn.CrossEntropyLoss(), torch.randn(4, 8), torch.tensor([0, 1, 1, 0])
    with saved() as seen:
        loss = loss_of(model(x), target)
    report = seen.report(loss)
    assert row_of(report, "LogSoftmaxBackward0.result").module == "CrossEntropyLoss"
    assert row_of(report, "NllLossBackward0.target").alias == "input"
    rows = {row.module: row for row in report.by_module()}
    assert rows["CrossEntropyLoss"].depth == 0
    assert rows["CrossEntropyLoss"].kind == "CrossEntropyLoss"
    assert rows[""].total_bytes + rows["CrossEntropyLoss"].total_bytes == report.held_bytes
    assert rows[""].total_bytes == row_of(report, "ReluBackward0.result").held_bytes


def test_a_function_around_a_model_is_outside():
    model, x = mlp(), torch.randn(4, 8)
    report = saved(lambda: (model(x).sin() ** 2).mean())
    assert row_of(report, "SinBackward0.self").module is None
    assert row_of(report, "ReluBackward0.result").module == "1"
    (outside,) = [row for row in report.by_module() if row.module is None]
    assert (outside.kind, outside.depth) == (None, 0)
    assert outside.own_bytes == row_of(report, "SinBackward0.self").held_bytes + 4 * 2 * 4


def test_of_two_models_the_larger_is_the_model():
    small, large, x = nn.Sequential(nn.Linear(8, 8), nn.Tanh()), Nested(), torch.randn(4, 8)
    with saved() as seen:
        y = large(small(x))
    report = seen.report(y)
    assert {row.module for row in report.rows} == {
        *("Sequential.0", "Sequential.1", "stem", "twice", "body.0.0", "body.0.1", "body.1"),
    }
    assert report.classes["Sequential.1"] == "Tanh"
    weights = [row.alias for row in report.rows if row.alias and row.alias.startswith("parameter")]
    assert "parameter stem.weight" in weights
    assert sum(row.total_bytes for row in report.by_module() if row.depth == 0) == report.held_bytes


def test_two_modules_of_one_class_are_told_apart():
    with saved(model=Nested()) as seen:
        y = nn.Tanh()(nn.Tanh()(torch.randn(4, requires_grad=True)))
    assert [row.module for row in seen.report(y).rows] == ["Tanh", "Tanh_2"]


def test_a_part_of_a_given_model_keeps_its_name():
    model, x = Nested(), torch.randn(4, 8)
    with saved(model=model) as seen:
        y = model.body(x)
    report = seen.report(y)
    assert row_of(report, "GeluBackward0.self").module == "body.0.1"
    assert [row.alias for row in report.rows if row.alias] == ["input", "parameter body.1.weight"]


def test_a_model_that_is_called_first_by_a_part_has_its_parameters_names():
    model, x = Nested(), torch.randn(4, 8)
    with saved() as seen:
        y = model.body(x) + model(x)
    aliases = {row.alias for row in seen.report(y).rows if row.alias and row.alias.startswith("parameter")}
    assert aliases == {"parameter body.0.0.weight", "parameter body.1.weight"}


def test_a_module_made_inside_of_forward_goes_by_its_class():
    class Maker(nn.Module):
        def forward(self, x):
            return nn.Tanh()(x)

    report = saved(nn.Sequential(Maker()), torch.randn(4, requires_grad=True))
    assert [row.module for row in report.rows] == ["0.Tanh"]
    assert [row.module for row in report.by_module()] == ["", "0", "0.Tanh"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_forward_that_raises_leaves_nothing_behind(error):
    class Raises(nn.Module):
        def forward(self, x):
            raise error("stop")

    class Catches(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.then = Raises(), nn.Tanh()

        def forward(self, x):
            try:
                return self.inner(x)
            except error:
                return self.then(x.sin())

    model, x = nn.Sequential(nn.Linear(8, 8), Raises()), torch.randn(4, 8)
    with pytest.raises(error, match="stop"):
        saved(model, x)
    with pytest.raises(error, match="stop"), saved():
        model(x)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.catches = Catches()

        def forward(self, x):
            return self.catches(x).sigmoid()

    report = saved(nn.Sequential(Outer(), nn.Tanh()), torch.randn(4, requires_grad=True))
    assert modules(report) == [
        *(("0.catches.then", "TanhBackward0"), ("0", "SigmoidBackward0"), ("1", "TanhBackward0")),
    ]


def test_forwards_of_other_threads_are_not_noted():
    x, wait, go = torch.randn(4, 8), threading.Event(), threading.Event()

    class Slow(nn.Module):
        def forward(self, x):
            go.set()
            wait.wait(10)
            return x.sin()

    thread = threading.Thread(target=lambda: Slow()(torch.randn(4, requires_grad=True)))
    with saved() as seen:
        thread.start()
        assert go.wait(10)
        y = mlp()(x).sin()
        wait.set()
        thread.join()
    report = seen.report(y)
    assert set(report.classes.values()) == {"Sequential", "Linear", "ReLU"}
    assert row_of(report, "SinBackward0.self").module is None


def in_a_thread(function, *args):
    """Call a function in a thread of its own, where the numbers of nodes begin anew."""
    got = []
    thread = threading.Thread(target=lambda: got.append(function(*args)))
    thread.start()
    thread.join()
    return got[0]


def test_nodes_of_two_threads_are_told_apart():
    def elsewhere(x):
        lines.append(inspect.currentframe().f_lineno + 1)
        return x.exp().tanh()

    def here(x):
        y = in_a_thread(elsewhere, x)
        lines.append(inspect.currentframe().f_lineno + 1)
        return y.sin().cos()

    lines = []
    report = in_a_thread(saved, here, torch.randn(4, requires_grad=True))
    assert report.nodes == 5
    for row in report.rows:
        line = lines[row.slots[0].startswith(("Sin", "Cos"))]
        assert row.source == f"{os.path.relpath(__file__)}:{line}", row
    assert {slot: row.used_at for row in report.rows for slot in row.slots} == {
        **{"CosBackward0.self": 0, "TanhBackward0.result": 2, "SinBackward0.self": 2, "ExpBackward0.result": 3},
    }


def test_lines_are_those_of_the_code_that_saved():
    def function(x):
        lines.append(inspect.currentframe().f_lineno + 1)
        y = x.exp()
        lines.append(inspect.currentframe().f_lineno + 1)
        return torch.nn.functional.softplus(y)

    lines = []
    report = saved(function, torch.randn(4, requires_grad=True))
    here = os.path.relpath(__file__)
    assert row_of(report, "ExpBackward0.result").source == f"{here}:{lines[0]}"
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    lines.append(inspect.currentframe().f_lineno + 1)
    report = saved(lambda: model(torch.randn(4, 8)))
    assert {row.source for row in report.rows} == {f"{here}:{lines[2]}"}


def test_a_file_elsewhere_goes_by_its_last_two_parts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (row,) = saved(lambda x: x.exp(), torch.randn(4, requires_grad=True)).rows
    assert row.source.startswith("inspect/test_saved_modules.py:")


@pytest.mark.parametrize("check", [True, False])
def test_anomaly_mode_is_left_as_it_was(check):
    with torch.autograd.set_detect_anomaly(True, check_nan=check):
        saved(mlp(), torch.randn(4, 8))
        assert torch.is_anomaly_enabled()
        assert torch.is_anomaly_check_nan_enabled() == check
    assert not torch.is_anomaly_enabled()


def test_an_existing_loss_is_told_apart_by_the_parameters_of_a_model():
    model, x = Nested(), torch.randn(4, 8)
    loss = model(x).square().sum()
    report = saved(loss, model=model)
    # tanh, which has no parameters, saved what is the body's input: somewhere between stem and body
    assert [row.module for row in report.rows if "AddmmBackward0.mat1" in row.slots] == ["stem", "", "body.1"]
    assert {row.alias for row in report.rows} == {None, "parameter body.0.0.weight", "parameter body.1.weight"}
    assert {row.source for row in report.rows} == {None}
    assert {row.module for row in saved(loss).rows} == {None}
    with torch.autograd.set_detect_anomaly(True):
        line = inspect.currentframe().f_lineno + 1
        loss = mlp()(x).square().sum()
    assert {row.source for row in saved(loss).rows} == {f"{os.path.relpath(__file__)}:{line}"}


def test_a_wrapped_model_saves_what_it_saves_bare():
    model, x = mlp(), torch.randn(4, 8)
    bare, wrapped = saved(model, x), saved(torchadx.inference.InferenceAware(model), x)
    sizes = [[(row.node, row.slots, row.held_bytes) for row in report.rows] for report in (bare, wrapped)]
    assert sizes[0] == sizes[1]
    assert bare.held_bytes == wrapped.held_bytes > 0


def test_a_child_that_is_called_like_its_class_is_inside_of_the_model():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.Tanh = nn.Tanh()

        def forward(self, x):
            return self.Tanh(x)

    x = torch.randn(4, requires_grad=True)
    report = saved(lambda: nn.MSELoss()(Model()(x), torch.zeros(4)))
    rows = {row.module: (row.depth, row.total_bytes) for row in report.by_module()}
    assert report.beside == ("MSELoss",)
    assert rows[""] == (0, 16)
    assert rows["Tanh"] == (1, 16)
    assert rows["MSELoss"] == (0, 0)  # it keeps the output of Tanh, which saved it first


def test_a_module_that_is_compiled_in_place_is_seen_uncompiled_and_a_note_says_so():
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    model.compile(backend="eager")
    report = saved(model, torch.randn(3, 2))
    assert any("eagerly" in note for note in report.notes)
    assert not saved(nn.Linear(2, 2), torch.randn(3, 2)).notes


def test_what_was_seen_draws_the_graph_with_its_modules():
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    with saved(model=model) as seen:
        y = model(torch.randn(3, 2))
    made = {node.label: node.module for node in seen.graph(y, show_saved=True).nodes if node.kind != "leaf"}
    assert made["TanhBackward0"] == "1"  # which has no parameters to tell it by
    assert made["AddmmBackward0"] == "0"
