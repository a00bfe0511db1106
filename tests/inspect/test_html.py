"""``inspect.report``: one page from a model and a step, with all there is to see in it."""

import re

import pytest
import torch
from torch import nn

import torchadx
from torchadx import inspect
from torchadx.inspect import _html


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 8))


def step_of(model, manager=None):
    x, y = torch.randn(32, 64), torch.randint(8, (32,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step():
        optimizer.zero_grad()
        if manager is None:
            loss = nn.functional.cross_entropy(model(x), y)
        else:
            with manager:
                loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return step


@pytest.fixture(scope="module")
def payload():
    torch.set_num_threads(1)
    model = network()
    manager = torchadx.memory.ActivationManager("int8", min_bytes=0)
    return _html.contents(model, step_of(model, manager), (model, step_of(model)), "two passes", 1)


def only_pass(model, step):
    (only,) = _html.contents(model, step, None, None, 1)["passes"]
    return only


def test_both_passes_are_on_the_page_with_all_parts(payload):
    assert payload["title"] == "two passes"
    assert "cpu" in payload["subtitle"]
    assert [each["name"] for each in payload["passes"]] == ["before", "after"]
    for each in payload["passes"]:
        assert all(each[part] for part in ("saved", "timeline", "graph", "profile"))


def test_what_is_saved_is_what_saved_says(payload):
    model, x = network(), torch.randn(32, 64)
    y = torch.randint(8, (32,))
    report = inspect.saved(lambda: nn.functional.cross_entropy(model(x), y))
    before = payload["passes"][0]["saved"]
    for total in ("tensors", "naive_bytes", "unique_bytes", "activation_bytes", "held_bytes"):
        assert before["totals"][total] == getattr(report, total)
    assert {row["module"] for row in before["rows"]} == {row.module for row in report.rows}
    assert all(re.fullmatch(r".*test_html\.py:\d+", row["source"]) for row in before["rows"])


def test_the_manager_is_seen_after(payload):
    rows = payload["passes"][1]["saved"]["rows"]
    assert {row["residence"] for row in rows if row["alias"] is None and row["dtype"] == "float32"} == {"int8"}


def test_the_peak_is_that_of_the_timeline(payload):
    for each in payload["passes"]:
        peak = each["timeline"]["devices"]["cpu"]["peak"]["bytes"]
        assert each["saved"]["totals"]["peak_bytes"] == peak > each["saved"]["totals"]["held_bytes"]


def test_nodes_of_the_graph_have_the_modules_that_made_them(payload):
    nodes = payload["passes"][0]["graph"]["nodes"]
    made = {node["label"].split("\n")[0]: node["module"] for node in nodes if node["kind"] == "backward"}
    assert made["GeluBackward0"] == "1"


def test_the_step_runs_as_often_as_stated(tmp_path):
    model = network()
    step, calls = step_of(model), []
    path = tmp_path / "page.html"
    assert inspect.report(model, lambda: calls.append(step()), path, warmup=1) == path
    assert len(calls) == 3
    assert path.read_text(encoding="utf-8").lower().startswith("<!doctype html>")


def test_of_several_graphs_the_one_that_holds_most_is_shown():
    model, x = network(), torch.randn(32, 64)

    def step():
        model(x[:4]).sum().backward()
        model(x).sum().backward()

    saved = only_pass(model, step)["saved"]
    assert saved["totals"]["activation_bytes"] == inspect.saved(model, x).activation_bytes
    assert any("2 graphs" in note for note in saved["notes"])


def test_a_graph_that_an_earlier_backward_freed_in_part_is_shown_as_far_as_it_is_left():
    model, other = nn.Sequential(nn.Linear(64, 8), nn.Tanh()), nn.Sequential(nn.Linear(64, 8), nn.Sigmoid())
    x = torch.randn(4, 64)

    def step():
        first = model(x).sum()
        torch.autograd.grad(first, list(model.parameters()))
        # nobody asks for what was freed
        torch.autograd.grad(first + other(x).sum() ** 2, list(other.parameters()))

    saved = only_pass(None, step)["saved"]
    assert saved["totals"]["held_bytes"] > 0
    seen = inspect.timeline(step)
    assert max(seen.devices["cpu"].curve.categories["activation"]) > 0


def test_a_page_of_a_large_model_leaves_the_smallest_rows_out(monkeypatch):
    monkeypatch.setattr(_html, "_MAX_ROWS", 3)
    monkeypatch.setattr(_html, "_MAX_NODES", 5)
    model = network()
    only = only_pass(model, step_of(model))
    assert len(only["saved"]["rows"]) == 3
    assert any("left out" in note for note in only["saved"]["notes"])
    largest = max(row["held_bytes"] for row in only["saved"]["rows"])
    assert largest == 32 * 128 * 4
    assert only["graph"] is None


def test_a_step_without_backward_is_refused(tmp_path):
    model = network()
    with pytest.raises(RuntimeError, match=r"ran no backward\(\)"):
        inspect.report(model, lambda: model(torch.randn(2, 64)), tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
