"""What the manager does with which tensor, and what it says of it."""

import dataclasses
import gc
import weakref

import pytest
import torch
from helpers import Mixer, equal, hand_computed, mlp, small, through
from torch import nn

import torchadx
from torchadx.memory import ActivationManager, Rule, TensorMeta, compress, managed, offload


def rows_of(policy, model, *inputs, **options):
    """Rows of one forward, in the order of saving."""
    manager = small(policy, **options).watch(model)
    with manager:
        y = model(*inputs).square().mean()
    rows = manager.report().rows
    y.backward()
    return rows


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


def test_hooks_that_someone_disabled():
    with torch.autograd.graph.disable_saved_tensors_hooks("not here"), pytest.raises(RuntimeError, match="not here"):
        small("int8").__enter__()
    with small("bf16") as manager:
        torch.randn(8, requires_grad=True).exp()
    assert manager.report().tensors == 1
