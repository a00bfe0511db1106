"""The benchmark measures what it says and refuses wrong results. No time is asserted."""

import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from torchadx.bench import _results, _targets, linear
from torchadx.bench._harness import Contender, WrongResultError, admit, race, saved_bytes

CPU = torch.device("cpu")


def run_bench(*arguments, cwd):
    command = [sys.executable, "-m", "torchadx.bench", "linear", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_command_writes_tables_and_json(tmp_path):
    report = tmp_path / "bench.json"
    arguments = ["--shapes", "7x5x3", "--dtypes", "fp32,bf16", "--rounds", "2", "--without", "compile", "--json"]
    done = run_bench(*arguments, str(report), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for title in ("Forward, no gradient", "Forward and backward", "JVP", "MeanFlow", "Must reach"):
        assert title in done.stdout

    found = json.loads(report.read_text())
    assert set(found) == {"machine", "backends", "choices", "settings", "cases", "targets"}
    assert found["machine"]["torch"] == torch.__version__
    assert found["backends"]["fp32"]["backend"] in ("aten", "triton")
    keys = [(case["mode"], tuple(case["shape"]), case["dtype"]) for case in found["cases"]]
    modes = [(mode, (7, 5, 3)) for mode in ("forward", "train", "jvp", "meanflow")]
    overhead = [("forward", (4, 8, 8)), ("train", (4, 8, 8))]
    assert keys == [(*where, dtype) for where in modes + overhead for dtype in ("fp32", "bf16")]
    for case in found["cases"]:
        rows = {row["name"]: row for row in case["rows"]}
        assert rows["eager"]["times_faster_than_eager"] == 1
        timing = rows["torchadx"]["timing"]
        assert 0 < timing["q1"] <= timing["median"] <= timing["q3"]
        assert timing["rounds"] == 2
        assert (rows["torchadx"]["saved"] is not None) == (case["mode"] in ("train", "meanflow"))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--shapes", "7x5"], "expected MxKxN"),
        (["--dtypes", "int8"], "expected some of fp32"),
        (["--modes", "backwards"], "expected some of forward,train"),
        (["--activation", "nope"], "invalid choice"),
    ],
)
def test_bad_arguments_are_named(arguments, complaint, tmp_path):
    done = run_bench(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert complaint in done.stderr


@pytest.fixture
def product():
    a, b = torch.randn(16, 16), torch.randn(16, 16)
    return Contender("eager", lambda: a @ b), a.double() @ b.double()


def test_wrong_contender_ends_the_benchmark(product):
    eager, reference = product
    wrong = Contender("wrong", lambda: eager.run() + 1e-3)
    with pytest.raises(WrongResultError, match="wrong: wrong result"):
        admit([eager, wrong], eager, reference)


@pytest.mark.parametrize(
    "result",
    [lambda y: y + 1e-3, lambda y: y * torch.nan, lambda y: y[:1], lambda y: (y, y)],
    ids=["off", "nan", "shape", "too many"],
)
def test_wrong_optional_contender_is_left_out_with_a_reason(product, result):
    eager, reference = product
    wrong = Contender("wrong", lambda: result(eager.run()), check="may")
    admitted, _, left_out = admit([eager, wrong], eager, reference)
    assert admitted == [eager]
    assert list(left_out) == ["wrong"]


def test_failing_optional_contender_is_left_out_with_its_error(product):
    eager, reference = product

    def fail():
        raise RuntimeError("no compiler\nand more")

    failing = Contender("failing", fail, check="may")
    admitted, _, left_out = admit([eager, failing], eager, reference)
    assert admitted == [eager]
    assert left_out == {"failing": "RuntimeError: no compiler"}


def test_every_contender_runs_in_every_round(product):
    eager, _ = product
    calls = []
    counted = Contender("counted", lambda: calls.append(1))
    timings = race([eager, counted], rounds=3, device=CPU)
    assert set(timings) == {"eager", "counted"}
    assert len(calls) >= 3 * timings["counted"].calls_per_round


def test_saved_bytes_counts_each_storage_once_and_no_inputs():
    x = torch.randn(4, 8, requires_grad=True)
    assert saved_bytes(lambda: x.exp().square(), [x]) == 4 * 8 * 4
    assert saved_bytes(lambda: x * x, [x]) == 0


@pytest.mark.parametrize("mode", sorted(linear.MODES))
def test_wrong_torchadx_is_not_timed(mode, monkeypatch):
    def biased(x, weight, bias=None, activation=None):
        return F.gelu(F.linear(x, weight, bias)) * 1.01

    monkeypatch.setattr("torchadx.functional.linear", biased)
    with pytest.raises(WrongResultError, match="torchadx"):
        linear.measure(mode, (7, 5, 3), "fp32", "gelu", CPU, rounds=1, without=["compile"])


def test_targets_compare_medians():
    timings = {"eager": 2.0e-3, "torchadx": 1.0e-3, "bare GEMM": 0.5e-3}
    rows = tuple(_results.Row(name, _timing(median), 0.0, None, None) for name, median in timings.items())
    case = _results.Case("jvp", (256, 1024, 4096), "fp32", 1, rows)
    verdicts = {verdict.what: verdict for verdict in _targets.judge([case], CPU)}
    assert verdicts["jvp 256x1024x4096 fp32: speed over eager"].met
    assert verdicts["jvp 256x1024x4096 fp32: time over bare GEMMs"].measured == "2.00x"
    assert not verdicts["jvp 256x1024x4096 fp32: time over bare GEMMs"].met


def _timing(median):
    return _results.Timing(median, median, median, 1, 1)
