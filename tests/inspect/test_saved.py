"""What a report says of itself: text, JSON, data frame, by module; and what saved() takes."""

import collections
import dataclasses
import json
import sys

import pytest
import torch
from saving import Nested, mlp, row_of, totals
from torch import nn

from torchadx.inspect import SavedReport, SavedRow, saved


@pytest.fixture
def report():
    return saved(mlp(), torch.randn(4, 8))


def test_text_has_totals_rows_and_remedies(report):
    text = str(report)
    lines = [line.strip() for line in text.splitlines()]
    assert lines[:5] == [
        "4 saved tensors in 9 nodes show 3 storages",
        *("768 B  the tensors' own sizes, as if none shared memory", "512 B  the storages, each once and whole"),
        *("256 B  without parameters, buffers and inputs, which others hold anyway",),
        "256 B  held now, 256 B of it where it came from",
    ]
    assert "ReluBackward0.result +1  float32[4, 16]" in text
    assert "view of parameter 2.weight, transposed" in text
    # what others hold anyway needs no remedy
    assert [line for line in lines if 'codec "mask"' in line] == [lines[-1]]
    assert lines[-1].startswith("256 B  ReluBackward0.result: ")


def test_the_table_is_of_what_holds_most(report):
    assert len(report.table().splitlines()) == 4
    heading, row = report.table(limit=1).splitlines()
    assert heading.split() == ["module", "where", "slot", "tensor", "storage", "held", "residence", "used", "why"]
    assert row.startswith("1 ")
    assert [row.held_bytes for row in report.largest()] == [256, 0, 0]
    assert len(report.largest(1)) == 1


def test_json_has_everything(report):
    plain = json.loads(report.to_json(indent=1))
    assert plain == report.to_dict()
    assert set(plain) == {"totals", "rows", "nodes", "notes"}
    assert plain["totals"] == report.totals()
    assert set(plain["totals"]) >= {
        *("tensors", "naive_bytes", "unique_bytes", "activation_bytes", "held_bytes", "resident_bytes", "peak_bytes"),
    }
    row = plain["rows"][1]
    assert set(row) == {field.name for field in dataclasses.fields(SavedRow)}
    assert row["slots"] == ["ReluBackward0.result", "AddmmBackward0.mat1"]
    assert (row["shape"], row["strides"], row["dtype"]) == ([4, 16], [16, 1], "float32")
    assert (row["module"], row["node"], row["slot"]) == ("1", "ReluBackward0", "result")
    assert json.loads(saved(lambda: None).to_json())["rows"] == []


def test_a_data_frame_has_a_column_for_each_attribute(report):
    frame = report.to_dataframe()
    assert list(frame.columns) == [field.name for field in dataclasses.fields(SavedRow)]
    assert len(frame) == report.storages
    assert frame.held_bytes.sum() == report.held_bytes
    assert frame.slots.map(len).sum() == report.tensors
    empty = saved(lambda: None).to_dataframe()
    assert list(empty.columns) == list(frame.columns)
    assert len(empty) == 0
    modules = report.by_module().to_dataframe()
    assert list(modules.columns) == ["module", "kind", "depth", "storages", "own_bytes", "total_bytes"]
    assert list(report.diff(report).to_dataframe().columns)[:2] == ["module", "slot"]


def test_a_missing_pandas_is_named_with_its_extra(report, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    for frame in (report.to_dataframe, report.by_module().to_dataframe, report.diff(report).to_dataframe):
        with pytest.raises(ModuleNotFoundError, match=r"torchadx\[dataframe\]") as raised:
            frame()
        assert raised.value.name == "pandas"


def test_sums_by_module_are_nested():
    rows = saved(Nested(), torch.randn(4, 8)).by_module()
    # tanh's results, of which the caller has one; gelu's input, and its output
    assert [(row.module, row.kind, row.depth, row.storages, row.own_bytes, row.total_bytes) for row in rows] == [
        ("", "Nested", 0, 0, 0, 768),
        ("stem", "Linear", 1, 1, 0, 0),
        ("twice", "Tanh", 1, 2, 256, 256),
        ("body", "Sequential", 1, 0, 0, 512),
        ("body.0", "Sequential", 2, 0, 0, 256),
        ("body.0.0", "Linear", 3, 1, 0, 0),
        ("body.0.1", "GELU", 3, 1, 256, 256),
        ("body.1", "Linear", 2, 2, 256, 256),
    ]
    assert len(rows) == 8
    text = str(rows).splitlines()
    assert text[0].split() == ["module", "class", "storages", "own", "with", "submodules"]
    assert [line.split()[0] for line in text[1:]] == ["(model)", "stem", "twice", "body", "0", "0", "1", "1"]
    assert text[6].startswith("      0")


def test_reports_are_frozen_and_equal_if_they_say_the_same(report):
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.rows = ()
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.rows[0].held_bytes = 1
    assert dataclasses.replace(report) == report
    assert isinstance(report, SavedReport)
    measured = report.measured(10, 20)
    assert (measured.measured_bytes, measured.peak_bytes, report.peak_bytes) == (10, 20, None)


Pair = collections.namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: {"y": y, "nothing": None},
        lambda y: (y, 3, "text"),
        lambda y: [[y], (y.detach(),)],
        lambda y: Pair(None, y),
        lambda y: {"deep": [{"er": y}]},
    ],
)
def test_outputs_may_be_nested(wrap):
    x = torch.randn(4, requires_grad=True)
    report = saved(lambda x: wrap(x.exp()), x)
    assert totals(report) == (1, 1, 16, 16, 16, 16)
    assert totals(saved(wrap(x.exp()))) == totals(report)


@pytest.mark.parametrize("function", [lambda: None, lambda: torch.ones(2), lambda: 3, lambda: {}])
def test_no_graph_is_noted(function):
    report = saved(function)
    assert totals(report) == (0,) * 6
    assert report.notes == ("no graph was recorded: gradients are off, or nothing requires grad",)
    assert "note: no graph was recorded" in str(report)


def test_no_graph_without_gradients():
    for mode in ((torch.no_grad(), torch.inference_mode()),):
        with mode[0]:
            assert saved(mlp(), torch.randn(4, 8)).notes[0].startswith("no graph was recorded")
        with mode[1]:
            assert saved(mlp(), torch.randn(4, 8)).rows == ()


def test_keyword_arguments_are_inputs():
    x, y = torch.randn(4, requires_grad=True), torch.randn(4)
    report = saved(lambda a, *, b: a * b, x, b=y)
    assert {row.alias for row in report.rows} == {"input"}
    held = saved(lambda: x * y.sin())
    # nobody else holds what the function made; its leaf belongs to somebody
    assert [(row.slot, row.alias) for row in held.rows] == [("other", None)]
    assert {row.alias for row in saved(lambda: x * x).rows} == {"leaf"}
    assert {row.alias for row in saved(lambda p: p * p, nn.Parameter(torch.ones(3))).rows} == {"parameter"}


def test_an_input_with_a_history_is_somebodys_activation():
    x = torch.randn(4, requires_grad=True)
    y = x.tanh()
    report = saved(lambda y: y.sin(), y)
    row = row_of(report, "SinBackward0.self")
    assert (row.slots, row.alias) == (("TanhBackward0.result", "SinBackward0.self"), None)
