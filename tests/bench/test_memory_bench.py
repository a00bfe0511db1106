"""The memory benchmark counts what is there, checks gradients first, and judges by its targets. No time is asserted."""

import dataclasses
import gc
import json
import os
import subprocess
import sys

import pytest
import torch

from torchadx.bench import __main__ as command
from torchadx.bench import _language, _memory_growth, _memory_strategies, _memory_targets, memory
from torchadx.bench._harness import Timing, WrongResultError
from torchadx.bench._language import Size, Text
from torchadx.bench._memory_results import Check, Count, Growth, Loss, Overhead, Row, Steps
from torchadx.bench._memory_strategies import NAMES, PLAIN, Strategy
from torchadx.bench._memory_training import Training
from torchadx.memory import ActivationManager, codecs

CPU = torch.device("cpu")
TINY = Size(layers=2, width=64, sequence=32, batch=2)


def test_command_writes_tables_and_json(tmp_path):
    report = tmp_path / "bench.json"
    tiny = ["--size", "2x64x32x2", "--steps", "2", "--loss-steps", "3", "--growth-steps", "20", "--rounds", "2"]
    arguments = [sys.executable, "-m", "torchadx.bench", "memory", *tiny, "--json", str(report)]
    # threads gain nothing at these sizes, and wait for each other on a busy machine
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for title in ("2 training steps", "after 3 steps", "Overhead", "Growth", "Must reach"):
        assert title in done.stdout

    found = json.loads(report.read_text())
    assert set(found) == {"machine", "settings", "steps", "loss", "overhead", "growth", "targets"}
    assert found["settings"]["size"] == TINY._asdict()
    assert found["steps"]["left_out"] == {}
    rows = {row["name"]: row for row in found["steps"]["rows"]}
    assert tuple(rows) == NAMES
    for name in ("plain", "checkpoint", "save_on_cpu", "keep", "lossless@host", "@disk"):
        assert rows[name]["check"]["bitwise"]
        assert rows[name]["loss"] == rows["plain"]["loss"]
    plain = rows["plain"]["saved"]
    # counted by hooks of the benchmark, and reported by the manager
    assert rows["save_on_cpu"]["saved"] == rows["keep"]["saved"] == rows["@disk"]["saved"] == plain
    assert rows["checkpoint"]["saved"] < rows["checkpoint"]["peak"] < plain
    assert rows["int4"]["saved"] < rows["int8"]["saved"] < rows["fit"]["peak"] <= plain / 3 < rows["bf16"]["saved"]
    assert set(found["loss"]["losses"]) == {"plain", "int8"}
    assert set(found["overhead"]["timings"]) == {"no hooks", "identity hooks", "keep"}
    assert found["overhead"]["tensors"] == 200
    assert [growth["store"] for growth in found["growth"]] == ["device", "host", "disk"]
    # bytes and losses are judged at the stated size only
    assert len(found["targets"]) == 4


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--size", "6x256x512"], "expected LxWxSxB"),
        (["--sections", "time"], "expected some of overhead,growth,steps,loss"),
        (["--without", "plain"], "expected some of checkpoint,save_on_cpu"),
        (["--steps", "0"], "expected a whole number above 0"),
    ],
)
def test_bad_arguments_are_named(arguments, complaint, capsys):
    with pytest.raises(SystemExit):
        command.main(["memory", *arguments])
    assert complaint in capsys.readouterr().err


@pytest.fixture
def text():
    return Text(TINY, CPU)


@pytest.fixture
def batch(text):
    return text.batch(0)


@pytest.fixture
def plain_gradient(text, batch):
    return Training(PLAIN, TINY, text, CPU).gradient(batch)


@pytest.mark.parametrize(("bound", "wanted"), [(0.0, "the same bits were expected"), (1e-6, "at most 1.0e-06")])
def test_gradient_out_of_bounds_ends_the_benchmark(bound, wanted, text, batch, plain_gradient):
    training = Training(Strategy("int8", bound, lambda: ActivationManager("int8")), TINY, text, CPU)
    with pytest.raises(WrongResultError, match=wanted):
        training.check(batch, plain_gradient, noise=0.0)


def test_where_plain_does_not_repeat_itself_nobody_has_to(text, batch, plain_gradient):
    training = Training(PLAIN, TINY, text, CPU)
    other = plain_gradient * (1 + 1e-6)
    with pytest.raises(WrongResultError):
        training.check(batch, other, noise=0.0)
    assert not training.check(batch, other, noise=1e-6).bitwise


def test_manager_that_reports_too_little_ends_the_benchmark(text, batch, monkeypatch):
    training = Training(Strategy("int8", 1.0, lambda: ActivationManager("int8")), TINY, text, CPU)
    training.count(batch)
    honest = ActivationManager.report
    monkeypatch.setattr(ActivationManager, "report", lambda self: dataclasses.replace(honest(self), resident_bytes=9))
    with pytest.raises(WrongResultError, match="9 bytes of saved tensors are said to be in memory"):
        training.count(batch)


def test_missing_extra_leaves_a_strategy_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "blosc2", None)
    codecs.resolve.cache_clear()
    contest = memory.Contest(TINY, CPU, ["plain", "lossless@host"], None, begin=lambda _: None)
    assert list(contest.trainings) == ["plain"]
    assert 'pip install "torchadx[lossless]"' in contest.left_out["lossless@host"]


def test_budget_that_cannot_be_met_leaves_a_strategy_out(monkeypatch):
    monkeypatch.setattr(_memory_strategies, "FIT", 100)
    contest = memory.Contest(TINY, CPU, ["plain", "fit"], None, begin=lambda _: None)
    assert list(contest.trainings) == ["plain"]
    assert "cannot be met" in contest.left_out["fit"]


def test_everyone_trains_on_the_same_batches():
    contest = memory.Contest(TINY, CPU, ["plain", "keep"], None, begin=lambda _: None)
    assert contest.steps_until(2) == 4
    contest.train(2, begin=lambda _: None)
    assert contest.steps_until(3) == 2
    plain, keep = (training.model.state_dict() for training in contest.trainings.values())
    assert all(torch.equal(plain[name], keep[name]) for name in plain)


def test_nothing_is_left_of_a_contest():
    def tensors():
        gc.collect()
        return sum(type(thing) is torch.nn.Parameter for thing in gc.get_objects())

    before = tensors()
    contest = memory.Contest(TINY, CPU, NAMES, None, begin=lambda _: None)
    contest.train(1, begin=lambda _: None)
    contest.drop(list(contest.trainings))
    assert tensors() <= before


def test_held_out_text_is_never_trained_on(monkeypatch):
    # every character once: its number is its place
    monkeypatch.setattr(_language, "topics", {"all": "".join(map(chr, range(1000, 2000)))})
    text = Text(TINY, CPU)
    trained = max(text.batch(step).following.max() for step in range(300))
    held_out = torch.stack([held.characters for held in text.held_out(300)])
    assert trained < held_out.min()
    assert held_out.max() < 1000
    batch = text.batch(0)
    assert batch.characters.shape == (TINY.batch, TINY.sequence)
    torch.testing.assert_close(batch.following, batch.characters + 1)


def test_growth_is_what_there_is_more_of():
    before = Count(tensors=9, held_bytes=0, files=0, open_files=None, pinned_bytes=0, threads=3, rss=100)

    def grown(**more):
        return Growth("disk", "@disk", 10, 1.0, before, dataclasses.replace(before, **more)).grown()

    assert grown(rss=200, tensors=8) == []
    assert grown(files=1, threads=4) == ["files", "threads"]


def test_a_leak_shows_as_growth(monkeypatch):
    leaked = []
    exit_ = ActivationManager.__exit__

    def leaking(self, *arguments):
        leaked.append(torch.zeros(1))
        exit_(self, *arguments)

    monkeypatch.setattr(ActivationManager, "__exit__", leaking)
    assert _memory_growth.measure("device", 20, None, CPU).grown() == ["tensors"]


def steps_of(size=memory.SIZE, **changed):
    check, timing = Check(True, 0.0, 0.0), Timing(1.0, 1.0, 1.0, 20, 1)
    saved = {"plain": 1000, "int8": 300, "bf16": 521, "lossless@host": 999, "@disk": 1000} | changed
    rows = [Row(name, check, count, count // 20, timing, None, None, 2.0) for name, count in saved.items()]
    return Steps(size, 1, 1, 1, 20, tuple(rows), {})


def judged(steps=None, loss=None, overhead=None, growth=()):
    return {verdict.what: verdict.met for verdict in _memory_targets.judge(steps, loss, overhead, growth)}


def test_targets_compare_bytes_with_plain():
    met = {
        "int8: bytes saved over plain's": True,
        "bf16: bytes saved over plain's": False,
        "lossless@host: bytes saved over plain's": True,
        "lossless@host: gradients": True,
        "@disk: resident at most, over plain's": True,
        "@disk: gradients": True,
    }
    assert judged(steps_of()) == met
    assert judged(steps_of(bf16=520, int8=301)) == met | {
        "int8: bytes saved over plain's": False,
        "bf16: bytes saved over plain's": True,
    }
    assert judged(steps_of(TINY)) == {}


@pytest.mark.parametrize(("loss", "met"), [(2.0199, True), (2.021, False), (1.979, False)])
def test_target_compares_losses(loss, met):
    assert list(judged(loss=Loss(memory.SIZE, 200, {"plain": 2.0, "int8": loss})).values()) == [met]
    assert judged(loss=Loss(memory.SIZE, 199, {"plain": 2.0, "int8": loss})) == {}


@pytest.mark.parametrize(("microseconds", "met"), [(8.0, True), (8.1, False)])
def test_target_compares_overhead(microseconds, met):
    medians = {"identity hooks": 1e-3, "keep": 1e-3 + 100 * microseconds * 1e-6}
    timings = {name: Timing(median, median, median, 2, 1) for name, median in medians.items()}
    assert list(judged(overhead=Overhead(100, timings)).values()) == [met]
