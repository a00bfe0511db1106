"""Advice: each rule speaks up for its evidence, is silent without, and what matters most comes first."""

import json

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from torchadx.inspect._profile import _advice
from torchadx.inspect._profile._advice import RULES, advise
from torchadx.inspect._profile._evidence import Evidence
from torchadx.inspect._profile._ops import OpRow, RangeRow
from torchadx.inspect._profile._profile import profile
from torchadx.inspect._profile._rows import ModuleRow

MIB = 2**20


def module(path, kind="Linear", **columns):
    return ModuleRow(path, None if path is None else kind, **{"calls": 1, **columns})


def op(name, calls, total, device=0.0):
    return OpRow(name, calls, total, total, device, 0)


def evidence(modules=(), ops=(), ranges=(), **others):
    """100 ms, of which the given."""
    rows = (ModuleRow(None, None), *modules)
    return Evidence(tuple(rows), tuple(ops), tuple(ranges), 100.0, **others)


THREE = (module("a", forward_self_ms=5.0), module("b", forward_self_ms=5.0))
STEP = "Optimizer.step#AdamW.step"

# rule, what makes it speak, its share, words it must say; then what is like it, but no reason to speak
CASES = {
    "heavy_module": (
        evidence([*THREE, module("c", forward_self_ms=20.0, backward_self_ms=40.0)]),
        0.6,
        "c (Linear) takes 60% of the time",
        evidence([module("c", forward_self_ms=20.0, backward_self_ms=40.0)]),
    ),
    "slow_backward": (
        evidence([module("a", forward_self_ms=2.0, backward_self_ms=15.0)]),
        0.15,
        "15.000 ms in backward, 15% of the time, for 2.000 ms in forward",
        evidence([module("a", forward_self_ms=2.0, backward_self_ms=15.0, recomputed_ms=10.0)]),
    ),
    "small_ops": (
        evidence(ops=[op("aten::add", 6000, 12.0), op("aten::mm", 10, 50.0), op("aten::mul", 4000, 8.0)]),
        0.2,
        "10000 operators take less than 5 us each: 20.000 ms in all, 20% of the time, 2.0 us each",
        evidence(ops=[op("aten::add", 900, 4.0), op("aten::mm", 5000, 50.0)]),
    ),
    "idle_device": (
        evidence(kernels=1000, busy_ms=10.0),
        0.9,
        "1000 kernels ran for 10.000 ms of 100.000 ms, 10.0 us each",
        evidence(kernels=0, busy_ms=0.0),
    ),
    "conversions": (
        evidence(ops=[op("aten::_to_copy", 12, 8.0)]),
        0.08,
        "12 conversions",
        evidence(ops=[op("aten::_to_copy", 12, 4.0)]),
    ),
    "layouts": (
        evidence(ops=[op("aten::clone", 9, 8.0), op("aten::contiguous", 7, 8.0)]),
        0.08,
        "9 copies of tensors, for a contiguous layout: aten::clone takes 8.000 ms, 8% of the time; 7 of",
        evidence(ops=[op("aten::contiguous", 700, 4.0)]),
    ),
    "synchronizations": (
        evidence(ops=[op("aten::_local_scalar_dense", 3, 25.0)], kernels=5),
        0.25,
        "waits 3 times",
        evidence(ops=[op("aten::_local_scalar_dense", 3, 25.0)]),
    ),
    "data": (
        evidence(ranges=[RangeRow("enumerate(DataLoader)#_SingleProcess", 4, 30.0, 0, frozenset())]),
        0.3,
        "4 batches in 30.000 ms",
        evidence(ranges=[RangeRow("mine", 4, 30.0, 0, frozenset())]),
    ),
    "outside": (
        Evidence(
            (ModuleRow(None, None, forward_self_ms=80.0),),
            (),
            (RangeRow(STEP, 1, 30.0, 3, frozenset({"aten::_fused_adamw_"})),),
            100.0,
        ),
        0.5,
        "50.000 ms of 100.000 ms, optimizers and DataLoaders apart",
        Evidence(
            (ModuleRow(None, None, forward_self_ms=80.0),),
            (),
            (RangeRow(STEP, 1, 60.0, 3, frozenset({"aten::_fused_adamw_"})),),
            100.0,
        ),
    ),
    "optimizer": (
        evidence(ranges=[RangeRow(STEP, 2, 10.0, 200, frozenset({"aten::lerp_"}))]),
        0.1,
        "10.000 ms in 2 steps, 100 operators each",
        evidence(ranges=[RangeRow(STEP, 2, 10.0, 200, frozenset({"aten::_foreach_lerp_"}))]),
    ),
    "recomputation": (
        evidence([module("", "Net", recomputed_ms=20.0), module("b", recomputed=2, recomputed_ms=20.0)]),
        0.2,
        "20.000 ms in backward; most of it b (Linear), 2 times",
        evidence([module("b", recomputed=2, recomputed_ms=5.0)]),
    ),
    "memory": (
        evidence([*THREE, module("c", kept_bytes=3 * MIB), module("d", kept_bytes=MIB)]),
        0.75,
        "3.0 MiB of 4.0 MiB",
        evidence([*THREE, module("c", kept_bytes=3000), module("d", kept_bytes=1000)]),
    ),
    "fusion": (
        evidence(
            [module("0"), module("1", "GELU", device_forward_ms=2.0, device_backward_ms=3.0)], pairs=(("0", "1"),)
        ),
        0.05,
        "the first is 1 (GELU) after 0 (Linear)",
        evidence(
            [module("0"), module("1", "Dropout", device_forward_ms=2.0, device_backward_ms=3.0)], pairs=(("0", "1"),)
        ),
    ),
}


def test_every_rule_has_a_case():
    assert {rule.__name__ for rule in RULES} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_rule_speaks_for_its_evidence_and_is_silent_without(name):
    speaking, share, words, silent = CASES[name]
    rule = getattr(_advice, name)
    (advice,) = rule(speaking)
    assert advice.share == pytest.approx(share)
    assert words in f"{advice.what}: {advice.why}"
    assert advice.remedy
    assert advice.of == ("memory" if name == "memory" else "time")
    assert list(rule(silent)) == []


def test_an_empty_profile_gives_no_advice():
    assert advise(Evidence((ModuleRow(None, None),), (), (), 0.0)) == ()


def test_the_largest_share_comes_first():
    rows = [*THREE, module("c", forward_self_ms=35.0, kept_bytes=2 * MIB)]
    found = advise(evidence(rows, ops=[op("aten::clone", 9, 40.0)]))
    assert [(advice.of, round(advice.share, 2)) for advice in found] == [("memory", 1.0), ("time", 0.4), ("time", 0.35)]


def test_a_real_profile_knows_its_loader_its_optimizer_its_pairs_and_what_is_kept():
    first, second = nn.Linear(32, 64), nn.Linear(64, 64)
    net = nn.Sequential(first, nn.GELU(), second)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(64, 32)), batch_size=32)
    optimizer = torch.optim.AdamW(net.parameters(), foreach=False)
    with profile() as measured:
        for (batch,) in data:
            optimizer.zero_grad()
            net(checkpoint(nn.Identity(), batch, use_reentrant=False)).sum().backward()
            optimizer.step()
    found = measured._evidence
    assert ("0", "1") in found.pairs
    assert found.range("enumerate(DataLoader)").calls == 3
    step = found.range("Optimizer.step#")
    assert step.calls == 2
    assert step.ops >= 2 * 4 * 5
    assert "aten::lerp_" in step.names
    kept = {row.module: row.kept_bytes for row in measured.modules()}
    # GELU needs the first product, the second Linear needs what GELU made, and sum needs no value of the second
    assert (kept["0"], kept["1"], kept["2"]) == (2 * 32 * 64 * 4, 2 * 32 * 64 * 4, 0)


def test_printed_advice_is_that_of_the_json():
    with profile() as measured:
        torch.ones(3).clone()
    written = json.loads(measured.to_json())["advice"]
    assert [one["what"] for one in written] == [advice.what for advice in measured.advice()]
    assert len(measured.advice(1)) <= 1
    for one in written[:3]:
        assert one["what"] in str(measured)
        assert one["remedy"] in str(measured)
