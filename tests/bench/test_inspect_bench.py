"""The inspection benchmark counts by other means what torchadx.inspect tells, and times only what agrees."""

import dataclasses
import json
import sys
import types

import pytest
import torch
from torch import nn

import torchadx.inspect
from torchadx.bench import __main__ as command
from torchadx.bench import _inspect_check, _inspect_graphs, _inspect_models, _inspect_table, _inspect_targets, inspect
from torchadx.bench._harness import Timing, WrongResultError
from torchadx.bench._inspect_models import QUICK, STATED
from torchadx.bench._inspect_results import Case, Drawn, Memory, Page, Profiled, Row, Saved, Written

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
ALL = {
    "saved": ["plain forward", "counting hooks", "saved()"],
    "graph": ["torchviz", "graph()", "graph(), by module"],
    "timeline": ["plain step", "torch.profiler", "timeline()"],
    "profile": [
        *("plain step", "profile(enabled=False)", "torch.profiler", "torch.profiler, key_averages()", "profile()"),
    ],
    "page": ["its steps alone", "report()"],
}


def measured(section, name="transformer", without=()):
    return inspect.measure(section, name, QUICK, CPU, 1, without)


def test_command_writes_tables_and_json(tmp_path, capsys):
    report = tmp_path / "bench.json"
    command.main(["inspect", "--quick", "--cases", "transformer", "--device", "cpu", "--json", str(report)])
    printed = capsys.readouterr().out
    for title in (*_inspect_table.TITLES.values(), "transformer", "agree with a count by other means", "Must reach"):
        assert title in printed

    found = json.loads(report.read_text())
    assert set(found) == {"machine", "settings", "cases", "targets"}
    settings = {"sections": list(ALL), "cases": ["transformer"], "without": [], "quick": True, "rounds": 1}
    assert found["settings"] == settings
    assert [(case["section"], case["name"]) for case in found["cases"]] == [(section, "transformer") for section in ALL]
    for case in found["cases"]:
        assert [row["name"] for row in case["rows"]] == ALL[case["section"]]
        timed = [row for row in case["rows"] if row["left_out"] is None]
        assert {row["name"] for row in case["rows"]} - {row["name"] for row in timed} <= {"torchviz"}
        assert timed[0]["of_first"] == 1
        for row in timed:
            assert row["timing"]["rounds"] == 1
            assert 0 < row["timing"]["q1"] <= row["timing"]["median"] <= row["timing"]["q3"]
            assert row["of_first"] > 0
    # what depends on the models' size is judged at the stated one only
    assert [target["what"].partition(":")[0] for target in found["targets"]] == [
        *("saved, transformer", "timeline, transformer", "profile, transformer"),
    ]
    assert found["cases"][4]["written"]["after"] < found["cases"][4]["written"]["before"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--cases", "nope"], "expected some of deep,transformer,conv"),
        (["--sections", ","], "expected some of saved,graph,timeline,profile,page"),
        (["--without", "saved()"], "expected some of hooks,torchviz,torch.profiler"),
        (["--rounds", "0"], "expected a whole number above 0"),
        (["--sections", "graph,page", "--cases", "conv"], "none of graph,page looks at conv: see --sections"),
    ],
)
def test_bad_arguments_are_named(arguments, complaint, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["inspect", *arguments])
    assert complaint in capsys.readouterr().err + str(ended.value)


@pytest.mark.parametrize("name", ["deep", "conv"])
@pytest.mark.parametrize("section", ["saved", "timeline"])
def test_bytes_of_other_models_agree(section, name):
    case = measured(section, name)
    assert [row.name for row in case.rows if row.timing is not None] == ALL[section]
    assert case.agreement == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("name", _inspect_models.NAMES)
def test_stated_models_can_be_trained(name):
    training = _inspect_models.build(name, STATED, CPU)
    assert training.loss().dtype is torch.float32
    assert training.step().isfinite()
    sizes = {parameter.shape: None for parameter in training.model.parameters()}
    training.forget()
    assert {parameter.shape: parameter.grad for parameter in training.model.parameters()} == sizes
    assert not training.optimizer.state


def test_hooks_count_what_a_hand_counts():
    model, x = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2)), torch.randn(4, 8)
    # the input, relu's result in two slots, and the second weight; the output is in no slot
    nbytes = 4 * (4 * 8 + 4 * 32 + 2 * 32)
    assert _inspect_check.count_saved(lambda: model(x)) == _inspect_check.Count(4, 3, nbytes, 4 * 4 * 2)
    assert _inspect_check.count_saved(lambda: model(x).exp()).more_outputs == 0


def test_edges_are_counted_as_a_hand_counts():
    a = torch.ones(3, requires_grad=True)
    # from the leaf to its node, twice to the product, to the sum, to the output
    assert _inspect_check.count_edges((a * a).sum()) == 5
    assert _inspect_check.arrows("digraph {\n\t1 -> 2\n\t2 -> 3 [dir=none]\n\t1 [label=a]\n}") == 2


def test_a_peak_is_the_most_within_the_step_without_what_is_freed_from_before():
    events = [(0, 1, 100), (1, 9, -7), (2, 1, -100), (3, 2, 30), (5, 3, 20), (6, 3, -20), (8, 4, 90)]
    assert _inspect_check._peak(events, 4, 7) == 50
    assert _inspect_check._peak(events, 0, 9) == 120


def _changed(monkeypatch, name, change):
    """Let a function of torchadx.inspect tell something else."""
    function = getattr(torchadx.inspect, name)
    monkeypatch.setattr(torchadx.inspect, name, lambda *args, **options: change(function(*args, **options)))


def _more_peak(found):
    (name,) = found.devices
    device = found.devices[name]
    return dataclasses.replace(found, devices={name: dataclasses.replace(device, peak_bytes=device.peak_bytes * 2)})


def _resized(found, factor):
    rows = tuple(dataclasses.replace(row, storage_bytes=int(row.storage_bytes * factor)) for row in found.rows)
    return dataclasses.replace(found, rows=rows)


@pytest.mark.parametrize(
    ("section", "name", "change", "complaint"),
    [
        ("saved", "saved", lambda found: dataclasses.replace(found, rows=found.rows[1:]), "tensors, storages, bytes"),
        ("saved", "saved", lambda found: _resized(found, 1.001), "tensors, storages, bytes: got"),
        ("saved", "saved", lambda found: found.measured(int(found.measured_bytes * 1.06), 0), "by the allocator's"),
        ("graph", "graph", lambda found: dataclasses.replace(found, edges=found.edges[1:]), "transformer: edges: got"),
        ("timeline", "timeline", _more_peak, "timeline, transformer: bytes at the peak: got"),
        ("timeline", "timeline", lambda found: dataclasses.replace(found, devices={}), "is cpu a device of it"),
    ],
)  # fmt: skip
def test_what_is_told_wrong_is_not_timed(section, name, change, complaint, monkeypatch):
    _changed(monkeypatch, name, change)
    with pytest.raises(WrongResultError, match=complaint):
        measured(section)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda rows: [dataclasses.replace(rows[0], forward_self_ms=rows[0].forward_self_ms + 1), *rows[1:]], "ms of"),
        (lambda rows: [dataclasses.replace(row, calls=0) for row in rows], "modules that ran"),
    ],
)
def test_a_profile_that_does_not_add_up_is_not_timed(change, complaint, monkeypatch):
    whole = torchadx.inspect.Profile.modules
    monkeypatch.setattr(torchadx.inspect.Profile, "modules", lambda profile: change(whole(profile)))
    with pytest.raises(WrongResultError, match=f"profile, transformer: {complaint}"):
        measured("profile")


@pytest.mark.parametrize(("index", "total"), [(0, "unique_bytes"), (0, "tensors"), (1, "held_bytes")])
def test_a_page_that_tells_other_bytes_is_not_timed(index, total, monkeypatch):
    payload_of = _inspect_check.payload_of

    def wrong(page):
        payload = payload_of(page)
        payload["passes"][index]["saved"]["totals"][total] += 1
        return payload

    monkeypatch.setattr(_inspect_check, "payload_of", wrong)
    with pytest.raises(WrongResultError, match="page, transformer"):
        measured("page")


def test_a_page_without_plotly_is_left_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    case = measured("page")
    assert case.written is None
    [line] = _inspect_table.left_out([case])
    assert line.startswith("left out: report() in page transformer: the HTML report needs plotly")
    assert list(_inspect_table.facts(case)) == []
    assert _inspect_targets.judge([case], stated=True) == []


def _torchviz(monkeypatch, missing):
    """A torchviz that draws as many edges as there are, less some."""

    def make_dot(loss, params):
        edges = _inspect_check.count_edges(loss) - missing
        return types.SimpleNamespace(source="\n".join(f"\t{place} -> {place + 1}" for place in range(edges)))

    monkeypatch.setitem(sys.modules, "torchviz", types.SimpleNamespace(make_dot=make_dot))


def test_torchviz_is_timed_if_it_draws_the_same_edges(monkeypatch):
    _torchviz(monkeypatch, missing=0)
    case = measured("graph")
    assert [row.name for row in case.rows if row.timing is not None] == ALL["graph"]


def test_torchviz_is_left_out_if_it_draws_others(monkeypatch):
    _torchviz(monkeypatch, missing=1)
    case = measured("graph")
    assert case.row("torchviz").left_out == f"wrong result: {case.edges - 1} edges, counted {case.edges}"
    assert case.row("graph()").timing is not None


def test_torchviz_is_left_out_where_it_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchviz", None)
    case = measured("graph")
    [line] = _inspect_table.left_out([case])
    assert line == "left out: torchviz in graph transformer: torchviz is not installed: pip install torchviz"
    # the first that was timed is what the others are compared with
    assert case.of_first("torchviz") is None
    assert case.of_first("graph()") == 1


def test_torchviz_is_left_out_where_the_graph_is_too_deep_for_it(monkeypatch):
    def make_dot(loss, params):
        return make_dot(loss, params)

    monkeypatch.setitem(sys.modules, "torchviz", types.SimpleNamespace(make_dot=make_dot))
    assert measured("graph").row("torchviz").left_out.startswith("RecursionError: it calls itself")


@pytest.mark.parametrize(
    ("section", "group"), [("saved", "hooks"), ("graph", "torchviz"), ("timeline", "torch.profiler")]
)
def test_groups_can_be_left_out(section, group):
    case = measured(section, without=[group])
    gone = {"hooks": "counting hooks"}.get(group, group)
    assert [row.name for row in case.rows] == [name for name in ALL[section] if name != gone]


def test_both_ways_to_use_torchs_profiler_can_be_left_out():
    names = [row.name for row in measured("profile", without=["torch.profiler"]).rows]
    assert names == ["plain step", "profile(enabled=False)", "profile()"]


def test_the_deep_model_runs_in_one_thread_and_the_others_as_they_were(monkeypatch):
    seen = []

    def measure(training, *_):
        seen.append((training.name, torch.get_num_threads()))

    monkeypatch.setitem(inspect._MEASURES, "saved", measure)
    torch.set_num_threads(2)
    for name in ("deep", "conv"):
        measured("saved", name)
    assert seen == [("deep", 1), ("conv", 2)]


def _rows(**medians):
    return tuple(Row(name, Timing(seconds, seconds, seconds, 1, 1)) for name, seconds in medians.items())


def _saved(seconds, name="deep", grown=100):
    rows = (*_rows(plain=1.0), Row(_inspect_graphs.SAVED, Timing(seconds, seconds, seconds, 1, 1)))
    return Saved(name, "200 layers", rows, 1, 1, 1, 100, grown)


def _judged(cases, stated=True):
    verdicts = _inspect_targets.judge(cases, stated)
    return {verdict.what: (verdict.wanted, verdict.measured, verdict.met) for verdict in verdicts}


@pytest.mark.parametrize(("seconds", "measured", "met"), [(1.99, "1.99 s", True), (2.01, "2.01 s", False)])
def test_seconds_are_judged_of_the_deep_model_at_the_stated_size(seconds, measured, met):
    assert _judged([_saved(seconds)])["saved, deep: 200 layers"] == ("< 2 s", measured, met)
    growth = "growth of torch's allocator over what is told"
    assert set(_judged([_saved(seconds)], stated=False)) == {f"saved, deep: {growth}"}
    assert set(_judged([_saved(seconds, name="conv")])) == {f"saved, conv: {growth}"}


@pytest.mark.parametrize(("bytes_", "measured", "met"), [(104, "1.0400x", True), (94, "0.9400x", False)])
def test_bytes_are_judged_by_the_account_of_the_allocator(bytes_, measured, met):
    cases = [_saved(1.0, "conv", bytes_), Memory("conv", "small", _rows(plain=1.0), bytes_, 100)]
    assert list(_judged(cases).values()) == [("within 5%", measured, met)] * 2


@pytest.mark.parametrize(("entry", "measured", "met"), [(1170, "1.17 µs", True), (5000, "5.00 µs", False)])
def test_an_entry_that_is_not_profiled_is_judged_by_its_nanoseconds(entry, measured, met):
    case = Profiled("transformer", "small", _rows(plain=1.0), 2.0, 2.0, entry)
    assert _judged([case]) == {"profile, transformer: a block with enabled=False": ("< 5 µs", measured, met)}


@pytest.mark.parametrize(("nbytes", "measured", "met"), [(5_990_000, "5.99 MB", True), (6_000_000, "6.00 MB", False)])
def test_a_page_is_judged_by_its_bytes_at_the_stated_size(nbytes, measured, met):
    case = Page("transformer", "small", _rows(plain=1.0), Written(nbytes, 2, 1))
    assert _judged([case]) == {"page, transformer: bytes of the page": ("< 6 MB", measured, met)}
    assert _judged([case], stated=False) == {}


def test_a_picture_is_compared_and_not_judged():
    case = Drawn("deep", "small", _rows(torchviz=2.0, graph=1.0), 3, 2, 10)
    assert _judged([case]) == {}
    assert case.of_first("graph") == 0.5
    assert isinstance(case, Case)
    assert case.to_dict()["rows"][1]["of_first"] == 0.5
