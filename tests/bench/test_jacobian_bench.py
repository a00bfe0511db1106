"""The Jacobian benchmark compares what is right, counts what is allocated, and judges by its targets."""

import dataclasses
import json
import os
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from torchadx.bench import __main__ as command
from torchadx.bench import _jacobian_cases, _jacobian_peers, _jacobian_random, _jacobian_targets, jacobian
from torchadx.bench._harness import Timing, WrongResultError
from torchadx.bench._jacobian_cases import PROBLEMS, mlp_problem
from torchadx.bench._jacobian_check import check
from torchadx.bench._jacobian_first_call import FirstCall
from torchadx.bench._jacobian_memory import peak, peak_besides_result
from torchadx.bench._jacobian_peers import EAGER, Peer
from torchadx.bench._jacobian_results import Case, Planning, Row, Sample

CPU = torch.device("cpu")
TINY = mlp_problem("6-3-80-tanh")
SLOW = ("compile", "jax")


def test_command_writes_tables_and_json(tmp_path):
    report = tmp_path / "bench.json"
    tiny = ["--cases", "6-3-80-tanh", "--rounds", "2", "--random", "2", "--without", "compile,jax"]
    arguments = [sys.executable, "-m", "torchadx.bench", "jacobian", *tiny, "--json", str(report)]
    # threads gain nothing at these sizes, and wait for each other on a busy machine
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for title in ("Whole Jacobians", "Planning 50 layers", "2 random networks", "Must reach"):
        assert title in done.stdout

    found = json.loads(report.read_text())
    assert set(found) == {"machine", "settings", "cases", "planning", "random", "targets"}
    [case] = found["cases"]
    assert (case["name"], case["inputs"], case["outputs"]) == ("6-3-80-tanh", [6], [80])
    assert case["explanation"]
    rows = {row["name"]: row for row in case["rows"]}
    assert tuple(rows) == ("torchadx", *EAGER)
    for row in rows.values():
        assert row["left_out"] is None
        assert row["timing"]["rounds"] == 2
        assert row["error"] < 1e-5
        assert row["peak"] >= 0
    assert rows["torchadx"]["prepared"] > 0
    assert rows["jacrev-chunked"]["detail"] == "64 at once"
    assert case["times_faster_than_eager"] > 0
    assert case["times_faster_than_compiled"] is None
    assert len(found["random"]) == 2
    # speeds are judged in the stated cases only
    assert len(found["targets"]) == 3


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--cases", "nope"], "expected some of 784-256-16-256-784-relu"),
        (["--cases", "4-4-gelu"], "WIDTH-...-WIDTH-relu"),
        (["--without", "torchadx"], "expected some of compile,jax,jacrev"),
        (["--random", "-1"], "expected a whole number"),
        (["--compile-limit", "0"], "expected a whole number above 0"),
    ],
)
def test_bad_arguments_are_named(arguments, complaint, capsys):
    with pytest.raises(SystemExit):
        command.main(["jacobian", *arguments])
    assert complaint in capsys.readouterr().err


def test_cases_are_known_or_described():
    known, described = _jacobian_cases.parse("u-net,5-4-relu")
    assert known is PROBLEMS[-1]
    assert described.shape == (5,)
    f, x = described.build(CPU)
    assert f(x).shape == (4,)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_stated_cases_can_be_built(problem):
    f, x = problem.build(CPU)
    assert f(x).dtype is torch.float32
    assert not any(parameter.requires_grad for parameter in f.parameters())


@pytest.fixture
def tiny():
    return TINY.build(CPU)


def test_every_eager_peer_computes_the_same(tiny):
    f, x = tiny
    peers = list(_jacobian_peers.eager(TINY, f, x))
    assert tuple(peer.name for peer in peers) == EAGER
    admitted, errors, left_out = check(peers, TINY, f, x)
    assert [contender.name for contender in admitted] == list(EAGER) == list(errors)
    assert left_out == {}


def test_every_eager_peer_computes_one_jacobian_a_sample():
    problem = dataclasses.replace(mlp_problem("6-3-80-tanh"), shape=(4, 6), batched=True)
    f, x = problem.build(CPU)
    admitted, _, _ = check(list(_jacobian_peers.eager(problem, f, x)), problem, f, x)
    assert [contender.name for contender in admitted] == list(EAGER)
    assert all(contender.run().shape == (4, 80, 6) for contender in admitted)


def test_wrong_peer_is_left_out_with_a_reason(tiny):
    f, x = tiny
    right = torch.func.jacrev(f)(x)
    peers = [Peer("right", "eager", lambda: right), Peer("wrong", "eager", lambda: right + 1e-3 * right.abs().max())]
    admitted, _, left_out = check(peers, TINY, f, x)
    assert [contender.name for contender in admitted] == ["right"]
    assert left_out["wrong"].startswith("wrong result")


@pytest.mark.parametrize("group", ["torchadx", "limited"])
def test_wrong_torchadx_ends_the_benchmark(group, tiny):
    f, x = tiny
    wrong = torch.func.jacrev(f)(x) * (1 + 1e-3)
    with pytest.raises(WrongResultError, match="nothing was timed"):
        check([Peer("torchadx", group, lambda: wrong)], TINY, f, x)


def test_zeros_are_wrong_where_all_entries_are_small(tiny):
    f, x = tiny
    f[-1].weight.mul_(1e-9)
    _, _, left_out = check([Peer("zeros", "eager", lambda: torch.zeros(80, 6))], TINY, f, x)
    assert "zeros" in left_out


def test_first_call_is_timed_and_may_take_too_long():
    run = FirstCall(lambda: torch.ones(1), limit=60)
    assert run.seconds is None
    run()
    taken = run.seconds
    assert taken > 0
    run()
    assert run.seconds == taken

    def patient():
        try:
            time.sleep(60)
        except Exception:
            time.sleep(60)

    with pytest.raises(TimeoutError, match=r"not ready after 0\.05 s"):
        FirstCall(patient, limit=0.05)()


def test_networks_without_translation_are_left_out_of_jax(tiny):
    pytest.importorskip("jax")
    f, x = nn.Sequential(nn.GELU()), torch.randn(3)
    first, _ = _jacobian_peers.jitted(TINY, f, x, limit=60)
    with pytest.raises(NotImplementedError, match="GELU is not translated to JAX"):
        first.run()


@pytest.mark.parametrize("problem", [TINY, PROBLEMS[3]], ids=lambda problem: problem.name)
def test_translation_to_jax_computes_the_same(problem):
    pytest.importorskip("jax")
    from torchadx.bench import _jacobian_jax

    f, x = problem.build(CPU)
    y = torch.from_dlpack(_jacobian_jax.translate(f)(_jacobian_jax._array(x)))
    torch.testing.assert_close(y, f(x))


def test_peak_leaves_out_the_result_alone(tiny):
    def run():
        scratch = torch.ones(1000)
        result = torch.zeros(50)
        return result.add_(scratch[:50].neg())

    # 1000 numbers, and 50 of their negatives
    assert peak_besides_result(run, CPU) == 4 * 1050


def test_peak_counts_what_the_result_keeps_alive_of_its_storage():
    result = torch.zeros(10)[:4]
    at = result.untyped_storage().data_ptr()
    assert peak([(at, 40)], result) == 24
    # the address was somebody else's before
    assert peak([(at, 100), (at, -100), (at, 40)], result) == 100
    assert peak([(at + 64, 8), (at, 40), (at + 64, -8)], result) == 32


def test_a_case_has_a_row_a_contender():
    case = jacobian.measure(TINY, CPU, rounds=1, without=(*SLOW, "jacfwd", "autograd-forward"))
    assert [row.name for row in case.rows] == ["torchadx", "jacrev", "jacrev-chunked", "autograd-reverse"]
    assert case.ratio("eager") == case.best("eager").timing.median / case.row("torchadx").timing.median
    assert case.best("compiled") is None


def test_a_limit_adds_a_row():
    limited = dataclasses.replace(TINY, memory="1 MiB")
    case = jacobian.measure(limited, CPU, rounds=1, without=(*SLOW, *EAGER))
    assert [(row.name, row.group) for row in case.rows] == [("torchadx", "torchadx"), ("torchadx in 1 MiB", "limited")]
    assert case.rows[1].peak <= 1 << 20


def test_wrong_plan_ends_the_benchmark(monkeypatch):
    def wrong(*given, **options):
        peer, plan = honest(*given, **options)
        return dataclasses.replace(peer, run=lambda: peer.run() * 1.01), plan

    honest = _jacobian_peers.ours
    monkeypatch.setattr(_jacobian_peers, "ours", wrong)
    with pytest.raises(WrongResultError, match="torchadx: wrong result"):
        jacobian.measure(TINY, CPU, rounds=1, without=(*SLOW, *EAGER))
    with pytest.raises(WrongResultError, match="torchadx: wrong result"):
        list(_jacobian_random.measure(1, CPU, begin=lambda _: None))


def test_random_networks_stay_within_their_sizes():
    problems = [_jacobian_random.problem(number) for number in range(100)]
    assert problems[7].name == _jacobian_random.problem(7).name
    assert len({problem.name for problem in problems}) > 90
    depths, residual = set(), 0
    for problem in problems:
        *layers, _ = problem.name.split("-")
        widths = [int(layer.removesuffix("+")) for layer in layers]
        depths.add(len(widths) - 1)
        residual += "+" in problem.name
        assert 1 <= min(widths) <= max(widths) <= 512
        f, x = problem.build(CPU)
        assert (len(x), len(f(x))) == (widths[0], widths[-1])
    assert (min(depths), max(depths)) == (1, 12)
    assert 20 < residual < 95


def row_of(name, group, median, peak=0):
    return Row(name, group, "", Timing(median, median, median, 2, 1), 0.0, peak, None, None)


def case_of(name, *rows, memory=None):
    return Case(name, (1,), (1,), memory, "", None, rows)


def judged(*cases, planning=None, samples=()):
    return {verdict.what: verdict.met for verdict in _jacobian_targets.judge(cases, planning, samples)}


@pytest.mark.parametrize(("eager", "met"), [(10.0, True), (9.9, False)])
def test_target_compares_with_the_best_peer(eager, met):
    rows = [row_of("torchadx", "torchadx", 1.0), row_of("slow", "eager", 20.0), row_of("fast", "eager", eager)]
    name = PROBLEMS[0].name
    assert judged(case_of(name, *rows)) == {f"{name}: speed over fast, the best eager": met}
    assert judged(case_of("8-8-relu", *rows)) == {}


def test_where_once_is_wanted_it_has_to_be_faster():
    mine = row_of("torchadx", "torchadx", 1.0)
    for median, met in ((1.0, False), (1.01, True)):
        case = case_of("784-per-sample", mine, row_of("jax:jacrev", "compiled", median))
        assert list(judged(case).values()) == [met]


@pytest.mark.parametrize(("median", "met"), [(0.95, True), (0.94, False)])
def test_elsewhere_it_is_never_slower(median, met):
    case = case_of("u-net", row_of("torchadx", "torchadx", 1.0), row_of("jacfwd", "eager", median))
    assert list(judged(case).values()) == [met]


@pytest.mark.parametrize(("peak", "met"), [(64 << 20, True), ((64 << 20) + 1, False)])
def test_target_limits_memory(peak, met):
    limited = row_of("torchadx in 64 MiB", "limited", 1.0, peak)
    case = case_of("conv-autoencoder", row_of("torchadx", "torchadx", 1.0), limited, memory="64 MiB")
    assert judged(case) == {"conv-autoencoder: bytes besides the result": met}


@pytest.mark.parametrize(("seconds", "met"), [(0.3, True), (0.31, False)])
def test_target_limits_planning(seconds, met):
    planning = Planning(50, Timing(seconds, seconds, seconds, 2, 1))
    assert judged(planning=planning) == {"planning 50 layers": met}


def test_targets_of_random_networks():
    def sample(planned, peak):
        return Sample("4-4-relu", {"jacrev": 2.0, "jacfwd": 1.0, "torchadx": planned}, 100, peak)

    good = [sample(1.1, 100), sample(1.2, None), sample(1.0, 0)]
    assert [sample.above for sample in good] == [False] * 3
    assert list(judged(samples=good).values()) == [True, True]
    assert list(judged(samples=[sample(1.2, 101)]).values()) == [False, False]


def test_what_is_timed_is_not_what_was_scaled(tiny):
    f, x = tiny
    [admitted], _, _ = check([Peer("jacrev", "eager", lambda: torch.func.jacrev(f)(x))], TINY, f, x)
    torch.testing.assert_close(admitted.run(), torch.func.jacrev(f)(x))
