"""What the manager does with which tensor, and what it says of it."""

import dataclasses
import gc
import json
import math
import sys
import weakref

import pytest
import torch
from helpers import Mixer, equal, gradients, mlp, through
from torch import nn
from torch.autograd.graph import save_on_cpu

import torchadx
from torchadx.memory import ActivationManager, DiskStore, Rule, TensorMeta, compress, managed, offload


def small(policy, **options):
    return ActivationManager(policy, **({"min_bytes": 0} | options))


def rows_of(policy, model, *inputs, **options):
    """Rows of one forward, in the order of saving."""
    manager = small(policy, **options).watch(model)
    with manager:
        y = model(*inputs).square().mean()
    rows = manager.report().rows
    y.backward()
    return rows


def hand_computed(policy="bf16", **options):
    """A case small enough to count: x is saved once, relu's result twice, one weight, the result."""
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    manager = small(policy, **options).watch(model)
    with manager:
        loss = model(torch.randn(8, 16)).square().mean()
    return manager, loss


# policies


@pytest.mark.parametrize(
    ("policy", "action"),
    [
        ("keep", "keep"),
        ("@device", "keep"),
        ("@host", "keep"),
        ("bf16", "bf16"),
        ("int8@host", "int8@host"),
        ("int4@disk", "int4@disk"),
        ("lossless@host", "lossless@host"),
        ("int8:32", "int8:32"),
    ],
)
def test_policy_strings(policy, action):
    _, manager = through(policy, torch.arange(4096.0))
    (row,) = manager.report().rows
    assert row.action == action
    assert f"the policy is '{policy}'" in row.reason
    assert repr(policy)[1:-1] in str(manager.report())


def test_rules_are_tried_in_order():
    rules = [
        Rule(modules="mlp.*", min_bytes=2048, then="int8"),
        Rule(modules=["norm", "qk?"], then="bf16"),
        Rule(ops="*softmax*", then="int4"),
        Rule(dtypes=torch.float32, max_bytes=2048, then="@disk"),
        Rule(modules="mlp.*", then="int4"),
    ]
    rows = rows_of(rules, Mixer(), torch.randn(2, 8, 32))
    managed_rows = [row for row in rows if row.alias != "parameter"]
    by_module = {row.module: row for row in managed_rows if row.dtype == torch.float32 and row.shape[-1] != 8}
    assert by_module["mlp.0"].action == "int8"
    assert by_module["norm"].action == by_module["qkv"].action == "bf16"
    assert by_module[""].action == "@disk"  # of attention, in the forward of the model itself
    assert by_module["mlp.0"].reason == "rule modules=('mlp.*',), min_bytes=2048"
    assert {row.action for row in rows if row.alias == "parameter"} == {"keep"}


def test_rules_by_bytes_are_inclusive():
    x = torch.randn(1024)
    for bounds, action in (
        ({"min_bytes": 4096}, "bf16"),
        ({"min_bytes": 4097}, "keep"),
        ({"max_bytes": 4096}, "bf16"),
        ({"max_bytes": 4095}, "keep"),
    ):
        _, manager = through([Rule(**bounds, then="bf16")], x)
        (row,) = manager.report().rows
        assert row.action == action
        assert row.reason == ("no rule matches" if action == "keep" else str(Rule(**bounds, then="bf16")))


class Masked(nn.Module):
    def forward(self, x):
        return torch.where(x > 0, x.exp(), x)


def test_rules_by_op_and_dtype():
    model = nn.Sequential(nn.Linear(16, 32), nn.Hardtanh(), nn.Linear(32, 8), Masked())
    rules = [Rule(ops="hardtanh", then="bf16"), Rule(dtypes=[torch.bool], then="mask"), Rule(ops=["exp", "where"])]
    rows = rows_of(rules, model, torch.randn(8, 16))
    found = [(row.module, row.op, row.dtype, row.action) for row in rows if row.alias is None]
    assert found == [
        ("1", "addmm", torch.float32, "keep"),
        ("2", "hardtanh", torch.float32, "bf16"),
        ("3", "exp", torch.float32, "keep"),
        ("3", None, torch.bool, "mask"),
        (None, "where", torch.float32, "keep"),
    ]


def test_what_is_held_anyway_is_not_encoded_on_top():
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    (row,) = (row for row in rows_of(Rule(modules="2", then="bf16"), model, torch.randn(8, 16)) if row.op == "relu")
    assert (row.module, row.action, row.tensors, row.held_bytes) == ("1", "keep", 2, 8 * 32 * 4)
    assert row.reason == "no rule matches"
    # but what was encoded may be kept as well
    rows = rows_of(Rule(modules="1", then="bf16"), model, torch.randn(8, 16))
    assert [(row.module, row.action) for row in rows if row.op == "relu"] == [("1", "bf16"), ("2", "keep")]


def test_a_rule_alone_and_none_at_all():
    assert through(Rule(then="bf16"), torch.randn(64))[1].report().rows[0].action == "bf16"
    assert through([], torch.randn(64))[1].report().rows[0].reason == "no rule matches"
    assert through(iter([Rule(then="bf16")]), torch.randn(64))[1].report().rows[0].action == "bf16"


def test_a_function_sees_what_is_saved():
    seen = []

    def chooses(meta: TensorMeta) -> str:
        seen.append(meta)
        return "bf16" if meta.module == "1" else "keep"

    manager, loss = hand_computed(chooses)
    assert all(isinstance(meta, TensorMeta) for meta in seen)
    (x, relu, y) = (meta for meta in seen if meta.module != "2")
    assert (x.shape, x.dtype, x.stride, x.nbytes, x.ordinal) == ((8, 16), torch.float32, (16, 1), 512, 0)
    assert (x.module, x.alias, x.op, x.device) == ("0", "input", None, torch.device("cpu"))
    assert (relu.module, relu.op, relu.shape, relu.ordinal) == ("1", "relu", (8, 32), 1)
    assert (y.module, y.op, y.nbytes, y.ordinal) == (None, "addmm", 128, 4)
    assert len({x.storage, relu.storage, y.storage}) == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        x.nbytes = 3
    loss.backward()
    reasons = {row.reason for row in manager.report().rows if row.alias != "parameter"}
    assert all("chooses said so" in reason for reason in reasons)


WRONG = [
    ("int9", ValueError, "int9"),
    ("", ValueError, "expected 'keep', a codec"),
    ("int8@moon", ValueError, "device.*host.*disk"),
    ("int8@", ValueError, "'int8@host'"),
    ("keep@host", ValueError, "keep"),
    (None, TypeError, "expected a string such as"),
    (3, TypeError, "expected a string such as"),
    (["int8"], TypeError, r"holds 'int8'; expected torchadx.memory.Rule"),
    ([Rule(), None], TypeError, "holds None"),
    ({"int8": 1}, TypeError, "holds 'int8'"),
    (Rule(then="int9"), ValueError, "int9"),
    ([Rule(then="int8@moon")], ValueError, "int8@moon"),
]


@pytest.mark.parametrize(("policy", "error", "words"), WRONG)
def test_wrong_policies(policy, error, words):
    with pytest.raises(error, match=f"(?s){words}"):
        ActivationManager(policy)
    with pytest.raises(error, match=f"(?s){words}"):
        managed(nn.Linear(2, 2), policy)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: ActivationManager("int8", min_bytes="1 MiB"),
        lambda: Rule(dtypes="float32"),
        lambda: Rule(modules=3),
        lambda: Rule(min_bytes="1 MiB"),
        lambda: Rule(then=None),
        lambda: ActivationManager("int8", stores=["host"]),
    ],
)
def test_wrong_types_are_told_at_once(wrong):
    with pytest.raises(TypeError, match="got"):
        wrong()


def test_wrong_arguments_of_presets():
    with pytest.raises(ValueError, match="expected 'host' or 'disk'"):
        offload(to="moon")
    with pytest.raises(ValueError, match="int9"):
        compress("int9")
    with pytest.raises(ValueError, match="int9"):
        torchadx.memory.fit("1 GiB", actions=["int9"])
    with pytest.raises(ValueError, match="many"):
        torchadx.memory.fit("many")


# what is left alone


def test_min_bytes():
    x = torch.randn(1024)
    assert through("bf16", x, min_bytes=4096)[1].report().rows[0].action == "bf16"
    (row,) = through("bf16", x, min_bytes=4097)[1].report().rows
    assert (row.action, row.reason) == ("keep", "smaller than min_bytes=4097")


def test_a_small_part_of_a_big_storage_is_copied_out():
    for numel, action in ((100_000, "copy"), (1024, "copy"), (1023, "keep"), (64, "keep")):
        part = torch.randn(numel)[8:24]
        got, manager = through("int8", part, min_bytes=4096)
        equal(got, part)
        (row,) = manager.report().rows
        assert (row.action, row.held_bytes) == (action, 64 if action == "copy" else 4 * numel)
        assert row.reason.startswith("smaller than min_bytes=4096")
    # less than twice its own size is not worth it
    assert through("int8", torch.randn(1100)[:200], min_bytes=5000)[1].report().rows[0].action == "keep"
    # a copy is a snapshot
    data, weight = torch.randn(100_000), torch.randn(16, requires_grad=True)
    with ActivationManager("int8"):
        loss = (data[:16] * weight).sum()
    expected = data[:16].clone()
    data.zero_()
    equal(torch.autograd.grad(loss, weight), (expected,))


def test_aliases():
    model = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 16)).eval()
    leaf = torch.randn(8, 16, requires_grad=True)
    manager = small("int8").watch(model)
    with manager:
        y = (model(leaf) * leaf * leaf.t().t() * torch.randn(8, 16)).sum()
    rows = manager.report().rows
    aliases = {alias: [row for row in rows if row.alias == alias] for alias in ("leaf", "buffer", "parameter", None)}
    assert [row.tensors for row in aliases["leaf"]] == [3]
    assert len(aliases["buffer"]) == 2
    assert {row.shape for row in aliases["parameter"]} == {(16, 16), (16,)}
    for alias, reason in (("leaf", "a leaf that requires grad"), ("buffer", "a buffer"), ("parameter", "a parameter")):
        for row in aliases[alias]:
            assert (row.action, row.held_bytes) == ("keep", 0)
            assert row.reason.startswith(reason)
    assert any(row.action == "int8" for row in aliases[None])
    y.backward()
    # the data of a model is an input, moved like any other, and only while the model runs
    x = torch.randn(8, 16)
    with manager:
        y = model(x).sum() + (x * leaf).sum()
    first = manager.report().rows[0]
    assert (first.alias, first.tensors, first.action) == ("input", 2, "int8")


def test_frozen_and_tied_parameters():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16, bias=False))
    model[2].weight = model[1].weight
    model[1].requires_grad_(False)
    for watched in (True, False):
        manager = small("int8")
        if watched:
            manager.watch(model)
        with manager:
            y = model(torch.randn(8, 16, requires_grad=True)).sum()
        weights = [row for row in manager.report().rows if row.shape == (16, 16)]
        assert [(row.alias, row.tensors) for row in weights] == [("parameter", 1), ("parameter", 2)]
        del y


def test_watch_names_modules():
    model = nn.Sequential(mlp(), nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
    manager = small("bf16").watch(model, "net")
    for _ in range(2):
        with manager:
            y = model(torch.randn(8, 16)).exp()
        names = [row.module for row in manager.report().rows]
        assert names == [f"net.{n}" for n in ("0.0", "0.1", "0.2", "0.3", "0.4", "0.4", "0.5", "1.0", "1.1")] + [None]
        manager.watch(model, "net")
    del y
    with manager:
        torch.randn(8, requires_grad=True).exp()
    assert [row.module for row in manager.report().rows] == [None]
    manager.unwatch(model)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_manager_does_not_hold_its_models():
    model = mlp()
    reference = weakref.ref(model)
    manager = small("bf16").watch(model)
    del model
    gc.collect()
    assert reference() is None
    with manager:
        torch.randn(8, requires_grad=True).exp()


# counting


def test_numbers_of_a_hand_computed_case():
    manager, loss = hand_computed()
    report = manager.report()
    assert (report.tensors, report.tensor_bytes) == (5, 512 + 1024 + 1024 + 512 + 128)
    assert (report.storages, report.storage_bytes, report.owned_bytes) == (4, 2176, 512)
    assert (report.activation_bytes, report.held_bytes, report.ratio) == (1664, 832, 0.5)
    assert report.resident_bytes == 832
    assert report.peak_bytes <= 832
    assert [(row.shape, row.tensors, row.storages, row.nbytes, row.held_bytes, row.action) for row in report.rows] == [
        ((8, 16), 1, 1, 512, 256, "bf16"),
        ((8, 32), 2, 1, 1024, 512, "bf16"),
        ((32, 4), 1, 1, 512, 0, "keep"),
        ((8, 4), 1, 1, 128, 64, "bf16"),
    ]
    assert [(skip.reason, skip.tensors, skip.nbytes) for skip in report.skipped] == [
        ("a parameter: its module holds it", 1, 512)
    ]
    assert report.errors == {}
    assert [row.decodes for row in report.rows] == [0, 0, 0, 0]
    loss.backward()
    after = manager.report()
    assert [row.decodes for row in after.rows] == [1, 1, 0, 1] or [row.decodes for row in after.rows] == [1, 2, 0, 1]
    assert after.resident_bytes == 0
    assert after.peak_bytes >= 832
    assert after.decode_seconds > 0
    assert after.encode_seconds == report.encode_seconds > 0
    assert report.rows[0].decodes == 0, "reports are frozen"


def test_a_shared_storage_is_encoded_once_a_version():
    leaf = torch.randn(64, requires_grad=True)
    with small("bf16") as manager:
        x = torch.randn(64)
        y = (leaf * x).sum() + (leaf * x[32:].repeat(2)).sum() + (leaf[:32] * x[:32]).sum()
        x.add_(1)
        y = y + (leaf * x).sum()
    rows = [row for row in manager.report().rows if row.alias is None]
    assert [(row.tensors, row.held_bytes) for row in rows] == [(2, 128), (1, 128), (1, 128)]
    del y
    # a view that is encoded by itself does not stand for the whole
    memory = torch.randn(4096)
    with small("bf16") as manager:
        y = (leaf * memory[:64]).sum() + (torch.ones(4096, requires_grad=True) * memory).sum()
    assert [row.held_bytes for row in manager.report().rows if row.alias is None] == [128, 8192]
    del y


def test_the_report_begins_anew_with_every_entry():
    manager, x = small("bf16"), torch.randn(64, requires_grad=True)
    for _ in range(3):
        with manager:
            a = x.exp()
            with manager:
                b = a.exp()
        assert manager.report().tensors == 2
    assert manager.report().resident_bytes == 2 * 128
    del a, b
    assert manager.report().resident_bytes == 0


def test_measured_errors():
    x = torch.randn(4096)
    for policy in ("bf16", "int8", "int8@disk"):
        got, manager = through(policy, x, measure_error=True)
        report = manager.report()
        expected = ((got.double() - x).norm() / x.double().norm()).item()
        assert report.rows[0].relative_error == pytest.approx(expected, rel=1e-6)
        assert report.errors == {policy: pytest.approx(expected, rel=1e-6)}
        assert f"relative error of {policy}" in str(report)
        assert expected > 0
    values = torch.tensor([math.nan, math.inf, 1.0, 1.5]).repeat(64)
    assert through("bf16", values, measure_error=True)[1].report().errors == {"bf16": 0.0}
    assert through("lossless", x, measure_error=True)[1].report().errors == {}
    assert through("bf16", torch.zeros(64), measure_error=True)[1].report().errors == {"bf16": 0.0}


# the report


def test_report_as_text_dictionary_and_frame(monkeypatch):
    manager, loss = hand_computed("int8@disk", measure_error=True)
    loss.backward()
    report = manager.report()
    text = str(report)
    for words in ("5 tensors saved", "int8@disk", "float32[8, 32]", "store disk", "a parameter: its module holds it"):
        assert words in text
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["tensors"] == 5
    assert plain["rows"][1]["shape"] == [8, 32]
    assert plain["rows"][0]["dtype"] == "torch.float32"
    assert plain["ratio"] == report.ratio
    assert plain["stores"][0]["name"] == "disk"
    frame = report.to_dataframe()
    assert list(frame.columns) == [field.name for field in dataclasses.fields(report.rows[0])]
    assert frame["held_bytes"].sum() == report.held_bytes
    assert frame["module"].tolist()[:3] == ["0", "1", "2"]
    assert frame["module"].isna().tolist() == [False] * 3 + [True]
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.tensors = 3
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "torchadx\[dataframe\]"'):
        report.to_dataframe()


def test_an_empty_report():
    report = small("int8").report()
    assert (report.tensors, report.ratio, report.held_bytes) == (0, 1.0, 0)
    assert "autograd saved nothing" in str(report)
    json.dumps(report.to_dict())
    assert len(report.to_dataframe()) == 0


def test_rows_beyond_the_first_thousands_share(monkeypatch):
    from torchadx.memory import _ledger

    monkeypatch.setattr(_ledger, "MAX_ROWS", 16)
    x = torch.randn(64, requires_grad=True)
    with small("bf16") as manager:
        y = x
        for _ in range(100):
            y = y.sin()
    report = manager.report()
    assert len(report.rows) <= 18
    assert sum(row.storages for row in report.rows) == report.storages == 100
    assert report.held_bytes == 99 * 128
    assert len(str(report).splitlines()) < 20


# presets and stores


def test_offload_stands_in_for_save_on_cpu(tmp_path):
    model, x = Mixer(), torch.randn(2, 8, 32)
    expected = gradients(model, x, context=save_on_cpu())
    for manager in (offload(), offload(False), offload(pin_memory=True, device_type="cpu"), offload(to="disk")):
        equal(gradients(model, x, context=manager), expected)
    with offload(to="disk", directory=tmp_path, min_bytes=0):
        y = model(x).sum()
        assert list(tmp_path.rglob("*"))
    y.backward()
    (skipped,) = through_preset(offload(device_type="cuda", to="disk", min_bytes=0)).report().skipped
    assert skipped.tensors == 1


def through_preset(manager):
    with manager:
        torch.randn(64, requires_grad=True).exp()
    return manager


def test_compress():
    model = nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.5), nn.GELU())
    manager = compress("int8", min_bytes=0).watch(model)
    with manager:
        loss = model(torch.randn(64, 64)).sum()
    report = manager.report()
    assert {row.action for row in report.rows if row.dtype == torch.bool} <= {"mask"}
    assert {row.action for row in report.rows if row.alias is None and row.dtype == torch.float32} == {"int8"}
    assert report.ratio < 0.3
    loss.backward()


def test_stores_of_ones_own(tmp_path):
    store = DiskStore(directory=tmp_path)
    with ActivationManager("@disk", min_bytes=0, stores=[store]) as manager:
        y = torch.randn(64, requires_grad=True).exp()
    assert store.bytes_now == store.bytes_peak == 256
    assert manager.report().stores[0].bytes_peak == 256
    manager.flush()
    assert [path for path in tmp_path.rglob("*") if path.is_file()]
    y.sum().backward()
    del y
    manager.flush()
    assert store.bytes_now == 0
    manager.close()
    manager.close()
    assert not list(tmp_path.rglob("*"))
