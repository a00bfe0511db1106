"""Two reports compared: what a manager, a checkpoint or another model changed."""

import json

import pytest
import torch
from saving import mlp
from torch import nn
from torch.utils.checkpoint import checkpoint

from torchadx.inspect import saved
from torchadx.memory import ActivationManager


@pytest.fixture
def model():
    return mlp(64)


@pytest.fixture
def x():
    return torch.randn(32, 8)


def test_equal_reports_do_not_differ(model, x):
    before, after = saved(model, x), saved(model, x)
    difference = before.diff(after)
    assert difference.rows == ()
    assert difference.change == 0
    assert difference.before == difference.after == before.totals()
    assert "every slot holds what it held" in str(difference)
    assert len(difference.to_dataframe()) == 0


def test_a_manager_shrinks_what_is_held(model, x):
    before = saved(model, x)
    with ActivationManager("bf16", min_bytes=0):
        after = saved(model, x)
    difference = before.diff(after)
    rows = {(row.module, row.slot): row for row in difference.rows}
    relu = rows["1", "ReluBackward0.result"]
    assert (relu.before_bytes, relu.after_bytes, relu.change) == (8192, 4096, -4096)
    assert (relu.before_count, relu.after_count) == (1, 1)
    assert (relu.before_residence, relu.after_residence) == ("cpu", "bf16")
    # held by the graph in a form of its own now, where it was the input's memory before
    assert (rows["0", "AddmmBackward0.mat1"].before_bytes, rows["0", "AddmmBackward0.mat1"].after_bytes) == (0, 512)
    assert len(rows) == 2
    assert difference.change == after.held_bytes - before.held_bytes == 512 - 4096
    assert difference.rows[0] == relu
    assert after.diff(before).rows[0].slot == relu.slot


def test_a_move_is_a_change_though_it_holds_as_much(model, x):
    before = saved(model, x)
    with ActivationManager("@disk", min_bytes=2048):
        after = saved(model, x)
    (row,) = before.diff(after).rows
    assert (row.slot, row.change, row.before_residence, row.after_residence) == (
        *("ReluBackward0.result", 0, "cpu", "@disk"),
    )


def test_text_says_from_what_to_what(model, x):
    with ActivationManager("bf16", min_bytes=0):
        after = saved(model, x)
    before = saved(model, x)
    lines = str(before.diff(after)).splitlines()
    assert lines[0].split() == ["before", "after", "change"]
    (held,) = [line for line in lines if line.startswith("held")]
    assert held.split() == ["held", "8.0", "KiB", "4.5", "KiB", "-3.5", "KiB"]
    (relu,) = [line for line in lines if "ReluBackward0.result" in line]
    assert relu.endswith("-4.0 KiB  cpu -> bf16")
    back = str(after.diff(before))
    assert "+3.5 KiB" in back
    assert "bf16 -> cpu" in back
    assert not any(line.startswith("peak") for line in lines)


def test_measured_peaks_are_compared_where_both_are(model, x):
    before, after = saved(model, x, measure=True), saved(model, x)
    assert "peak" not in str(before.diff(after))
    assert "peak" in str(before.diff(before))


def test_what_came_and_went_counts_from_nothing(x):
    before, after = saved(mlp(64), x), saved(nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 2)), x)
    rows = {row.slot: row for row in before.diff(after).rows}
    assert set(rows) == {"ReluBackward0.result", "GeluBackward0.self", "AddmmBackward0.mat1"}
    gone, came = rows["ReluBackward0.result"], rows["GeluBackward0.self"]
    assert (gone.before_count, gone.after_count, gone.before_bytes, gone.after_bytes) == (1, 0, 8192, 0)
    assert (gone.before_residence, gone.after_residence) == ("cpu", "")
    assert (came.before_count, came.after_count, came.change) == (0, 1, 8192)
    assert rows["AddmmBackward0.mat1"].module == "2"
    assert before.diff(after).change == 8192


def test_a_checkpoint_leaves_nothing(model, x):
    before = saved(model, x)
    after = saved(lambda x: checkpoint(model, x, use_reentrant=False), x, model=model)
    difference = before.diff(after)
    assert difference.change == -before.held_bytes
    assert {row.after_residence for row in difference.rows if row.after_count} == {"recomputed"}


def test_slots_of_one_name_are_summed():
    three = nn.Sequential(nn.Tanh(), nn.Tanh(), nn.Tanh())
    x = torch.randn(8, requires_grad=True)
    before = saved(lambda x: x.tanh().tanh(), x)
    after = saved(lambda x: x.tanh().tanh().tanh(), x)
    (row,) = before.diff(after).rows
    assert (row.module, row.before_count, row.after_count, row.change) == (None, 2, 3, 32)
    assert [row.module for row in before.diff(saved(three, x)).rows] == [None, "0", "1", "2"]


def test_it_is_plain_for_json_and_data_frames(model, x):
    with ActivationManager("int8", min_bytes=0):
        after = saved(model, x)
    difference = saved(model, x).diff(after)
    plain = json.loads(json.dumps(difference.to_dict()))
    assert plain == difference.to_dict()
    assert [row["change"] for row in plain["rows"]] == [row.change for row in difference.rows]
    frame = difference.to_dataframe()
    assert (frame.after_bytes - frame.before_bytes).sum() == difference.change
