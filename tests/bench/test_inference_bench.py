"""The inference benchmark serves modules in inference mode, checks them first, and judges by its targets."""

import json
import os
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

import torchadx
from torchadx import dispatch
from torchadx.bench import __main__ as command
from torchadx.bench import _inference_cases, _inference_contenders, _inference_table, _inference_targets, inference
from torchadx.bench._harness import Contender, Timing, WrongResultError
from torchadx.bench._inference_cases import MODELS, Problem, mlp_problems
from torchadx.bench._inference_contenders import GROUPS, Entrant
from torchadx.bench._inference_results import Case, Row

CPU = torch.device("cpu")
TINY = mlp_problems("mlp-6-5-3")[1]
JIT = ("jit:freeze", "jit:optimize")
BF16 = torch.bfloat16 in dispatch.onednn_dtypes()


def test_command_writes_tables_and_json(tmp_path):
    report = tmp_path / "bench.json"
    tiny = ["--cases", "mlp-64-256-64@4,overhead", "--rounds", "1", "--without", "compile"]
    arguments = [sys.executable, "-m", "torchadx.bench", "inference", *tiny, "--json", str(report)]
    # threads gain nothing at these sizes, and wait for each other on a busy machine
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for title in ("Modules in inference mode", "mlp-64-256-64@4", "overhead@4", "Must reach"):
        assert title in done.stdout
    assert "deprecated" not in done.stderr

    found = json.loads(report.read_text())
    assert set(found) == {"machine", "settings", "cases", "targets"}
    assert found["settings"] == {"rounds": 1, "without": ["compile"]}
    mlp, overhead = found["cases"]
    assert (mlp["name"], mlp["inputs"]) == ("mlp-64-256-64@4", [4, 64])
    assert mlp["weights"] == 4 * (64 * 256 + 256 + 256 * 64 + 64)
    assert (overhead["name"], overhead["inputs"], overhead["weights"]) == ("overhead@4", [4, 8], 4 * 72)
    for case in (mlp, overhead):
        rows = {row["name"]: row for row in case["rows"]}
        assert tuple(rows) == ("eager", *JIT, "torchadx", "torchadx bf16")
        timed = [row for row in rows.values() if row["left_out"] is None]
        assert len(timed) == (5 if BF16 else 4)
        for row in timed:
            assert row["timing"]["rounds"] == 1
            assert 0 < row["timing"]["q1"] <= row["timing"]["median"] <= row["timing"]["q3"]
            assert row["error"] <= (0.01 if row["name"] == "torchadx bf16" else 1e-5)
            assert row["times_faster_than_eager"] > 0
            assert row["times_faster_than_compile"] is None
            # only a wrapper tells what it prepared, and why
            wrapped = row["name"].startswith("torchadx")
            assert (row["prepared"] is not None) == (row["explanation"] is not None) == wrapped
        assert rows["torchadx"]["explanation"]
    # speeds are judged in the stated cases only
    [target] = found["targets"]
    assert target["what"] == "4x8x8: time a call over the bare module"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--cases", "nope"], "expected some of mlp-1024-4096-1024,encoder,digits,overhead,mlp-WIDTH"),
        (["--cases", "mlp-4"], "'mlp-4': expected some of"),
        (["--cases", ","], "expected some of"),
        (["--cases", "digits@many"], "'many': expected a whole number above 0"),
        (["--without", "torchadx"], "expected some of compile,jit,bf16"),
        (["--rounds", "0"], "expected a whole number above 0"),
    ],
)
def test_bad_arguments_are_named(arguments, complaint, capsys):
    with pytest.raises(SystemExit):
        command.main(["inference", *arguments])
    assert complaint in capsys.readouterr().err


def test_cases_are_all_batches_of_a_model_or_one():
    problems = _inference_cases.parse("digits,encoder@3,mlp-5-4-2@7,mlp-5-4-2")
    names = [problem.name for problem in problems]
    digits = ["digits@1", "digits@32", "digits@360"]
    assert names == [*digits, "encoder@3", "mlp-5-4-2@7", "mlp-5-4-2@1", "mlp-5-4-2@16", "mlp-5-4-2@256"]
    module, x = problems[4].build(CPU)
    assert module(x).shape == (7, 2)


@pytest.mark.parametrize("model", MODELS)
def test_stated_cases_can_be_built(model):
    module, x = MODELS[model][0].build(CPU)
    assert not module.training
    assert module(x).dtype is torch.float32
    judged = {name for name, *_ in _inference_targets.FASTER} | {"overhead@4"}
    assert {problem.name for problem in MODELS[model]} <= judged


def _encoder():
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 24, batch_first=True), 1)


@pytest.mark.parametrize("problem", [TINY, Problem("encoder", _encoder, (5, 16), 1)], ids=lambda problem: problem.model)
def test_everyone_computes_the_same(problem):
    case = inference.measure(problem, CPU, rounds=1, without=["compile"])
    assert [row.name for row in case.rows] == ["eager", *JIT, "torchadx", "torchadx bf16"]
    for row in case.rows:
        if row.name != "torchadx bf16" or BF16:
            assert row.left_out is None
            assert row.timing is not None


def test_everyone_runs_in_inference_mode():
    seen = set()

    class Look(nn.Linear):
        def forward(self, x):
            seen.add(torch.is_inference_mode_enabled())
            return super().forward(x)

    inference.measure(Problem("look", lambda: Look(3, 2), (3,), 2), CPU, rounds=1, without=["compile", "jit"])
    assert seen == {True}


@pytest.mark.parametrize("without", GROUPS)
def test_groups_can_be_left_out(without):
    module, x = TINY.build(CPU)
    entrants = list(_inference_contenders.entrants(module, x))
    groups = {"compile": {"compile"}, "jit": set(JIT), "bf16": {"torchadx bf16"}}
    assert {entrant.name for entrant in entrants if entrant.group == without} == groups[without]
    case = inference.measure(TINY, CPU, rounds=1, without={"compile", without})
    assert {row.name for row in case.rows} == {entrant.name for entrant in entrants} - groups[without] - {"compile"}


def test_bfloat16_is_left_out_where_the_processor_lacks_it(monkeypatch):
    monkeypatch.setattr(dispatch, "onednn_dtypes", lambda: frozenset({torch.float32}))
    case = inference.measure(TINY, CPU, rounds=1, without=["compile", "jit"])
    row = case.row("torchadx bf16")
    assert row == Row("torchadx bf16", None, None, None, None, row.left_out)
    [line] = _inference_table.left_out([case])
    assert line.startswith("left out: torchadx bf16 in mlp-6-5-3@16: oneDNN's fused linear does not run in bfloat16")


def test_a_module_that_cannot_be_traced_is_served_by_the_others():
    class Untraceable(nn.Linear):
        def forward(self, x):
            if torch.jit.is_tracing():
                raise RuntimeError("not to be traced")
            return super().forward(x)

    problem = Problem("untraceable", lambda: Untraceable(3, 2), (3,), 2)
    case = inference.measure(problem, CPU, rounds=1, without=["compile", "bf16"])
    assert {row.name: row.left_out for row in case.rows if row.timing is None} == dict.fromkeys(
        JIT, "RuntimeError: not to be traced"
    )


def test_only_the_deprecation_of_torchscript_is_silenced():
    module, x = TINY.build(CPU)
    module.register_forward_hook(lambda *_: warnings.warn("of the module", stacklevel=1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for entrant in _inference_contenders.entrants(module, x):
            if entrant.group == "jit":
                entrant.contender.run()
    assert caught
    assert {str(warning.message) for warning in caught} == {"of the module"}


def _off_by(factor, lowered):
    """A wrapper that multiplies the result, in one of the two precisions."""

    class Off(torchadx.InferenceAware):
        def __init__(self, module, **options):
            super().__init__(module, **options)
            self.factor = factor if ("dtype" in options) == lowered else 1.0

        def forward(self, *inputs):
            return super().forward(*inputs) * self.factor

    return Off


@pytest.mark.parametrize(
    ("factor", "lowered", "complaint"),
    [
        (1 + 1e-3, False, "torchadx: wrong result"),
        (float("nan"), False, "torchadx: wrong result"),
        pytest.param(1.02, True, "torchadx bf16: relative error", marks=pytest.mark.skipif(not BF16, reason="no bf16")),
        pytest.param(
            float("nan"), True, "torchadx bf16: relative error inf",
            marks=pytest.mark.skipif(not BF16, reason="no bf16"),
        ),
    ],
)  # fmt: skip
def test_wrong_torchadx_is_not_timed(factor, lowered, complaint, monkeypatch):
    monkeypatch.setattr(torchadx, "InferenceAware", _off_by(factor, lowered))
    with pytest.raises(WrongResultError, match=complaint):
        inference.measure(mlp_problems("mlp-64-32-16")[1], CPU, rounds=1, without=["compile", "jit"])


def test_wrong_rival_is_left_out_with_a_reason():
    right = torch.randn(4, 3)
    entered = [
        Entrant(Contender("eager", lambda: right)),
        Entrant(Contender("compile", lambda: right + 1e-3, check="may"), "compile"),
        Entrant(Contender("torchadx bf16", lambda: right.bfloat16().float()), "bf16"),
    ]
    admitted, errors, left_out = inference.check(entered, right.double())
    assert [contender.name for contender in admitted] == ["eager", "torchadx bf16"]
    assert errors["eager"] == 0 < errors["torchadx bf16"] < 0.01
    assert left_out["compile"].startswith("wrong result")


def test_calls_before_each_round_are_not_counted():
    calls = {"a": [], "b": []}
    contenders = [Contender(name, lambda name=name: calls[name].append(calls)) for name in calls]
    timings = inference.race_warm(contenders, 2, CPU)
    for name, timing in timings.items():
        assert timing.rounds == 2
        assert len(calls[name]) > 2 * timing.rounds * timing.calls_per_round


def test_relative_error_is_that_of_the_norm():
    reference = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert inference.relative_error(torch.tensor([3.0, 4.5]), reference) == pytest.approx(0.1, abs=1e-12)
    assert inference.relative_error(torch.tensor([3.0]), reference) == torch.inf
    assert inference.relative_error(torch.tensor([3.0, torch.nan]), reference) == torch.inf


def _case(name, errors=None, **medians):
    rows = [
        Row(contender, Timing(seconds, seconds, seconds, 1, 1), (errors or {}).get(contender, 0.0), None, None, None)
        for contender, seconds in medians.items()
    ]
    return Case(name, (1,), 4, tuple(rows))


def test_targets_of_the_mlp_are_judged_against_eager_and_compile():
    seconds = {"eager": 6.0, "compile": 5.9, "torchadx": 2.6, "torchadx bf16": 1.0}
    case = _case("mlp-1024-4096-1024@1", {"torchadx bf16": 0.004}, **seconds)
    found = {verdict.what.partition(": ")[2]: verdict for verdict in _inference_targets.judge([case])}
    assert {what: (verdict.wanted, verdict.measured, verdict.met) for what, verdict in found.items()} == {
        "speed of torchadx over eager": ("≥ 2.30x", "2.31x", True),
        "speed of torchadx over compile": ("≥ 2.30x", "2.27x", False),
        "speed of torchadx bf16 over eager": ("≥ 6.00x", "6.00x", True),
        "speed of torchadx bf16 over compile": ("≥ 6.00x", "5.90x", False),
        "relative error of torchadx bf16": ("≤ 1.00%", "0.40%", True),
    }


def test_targets_follow_the_batch_and_never_below_one_elsewhere():
    least = {(name, mine, rival): least for name, mine, rival, least in _inference_targets.FASTER}
    mlp = "mlp-1024-4096-1024"
    for batch, fp32, bf16 in ((1, 2.3, 6.0), (16, 2.3, 4.0), (256, 1.2, 2.2)):
        for rival in ("eager", "compile"):
            assert least.pop((f"{mlp}@{batch}", "torchadx", rival)) == fp32
            assert least.pop((f"{mlp}@{batch}", "torchadx bf16", rival)) == bf16
    assert set(least.values()) == {1.0}
    assert {name for name, *_ in least} == {"encoder@1", "encoder@8", "digits@1", "digits@32", "digits@360"}


def test_what_was_not_timed_is_not_judged():
    cases = [_case("encoder@1", eager=2.0, torchadx=1.0), _case("digits@32", torchadx=1.0), _case("other@1", eager=1.0)]
    [verdict] = _inference_targets.judge(cases)
    assert (verdict.what, verdict.measured) == ("encoder@1: speed of torchadx over eager", "2.00x")


@pytest.mark.parametrize(("ours", "measured", "met"), [(1.004, "1.00x", True), (1.02, "0.98x", False)])
def test_speeds_are_judged_by_the_digits_that_are_shown(ours, measured, met):
    [verdict] = _inference_targets.judge([_case("digits@1", eager=1.0, torchadx=ours)])
    assert (verdict.measured, verdict.met) == (measured, met)


@pytest.mark.parametrize(("extra", "measured", "met"), [(19e-6, "+19.0 µs", True), (20.1e-6, "+20.1 µs", False)])
def test_overhead_is_what_a_call_takes_beyond_the_bare_module(extra, measured, met):
    [verdict] = _inference_targets.judge([_case("overhead@4", eager=6e-6, torchadx=6e-6 + extra)])
    assert (verdict.wanted, verdict.measured, verdict.met) == ("< 20 µs", measured, met)
