"""Measured choices: what is measured when, what is kept, what pins do. No test looks at real times."""

import json
import os
import subprocess
import sys
import threading

import pytest
import torch

import torchadx
from torchadx import dispatch, tuning

CPU = torch.device("cpu")
KEY = tuning.Key("product", CPU, torch.float32, 64, 128, 256, "bias", threads=2)


@pytest.fixture
def measuring(monkeypatch):
    """``TORCHADX_TUNING=full``; a candidate takes the time that the dictionary says; its runs are counted."""
    monkeypatch.setenv("TORCHADX_TUNING", "full")
    return Stopwatch(monkeypatch)


class Stopwatch:
    def __init__(self, monkeypatch):
        self.seconds = {"aten": 1.0, "fast": 0.5, "near": 0.99, "slow": 2.0}
        self.runs = []
        monkeypatch.setattr(tuning, "_time", self.time)

    def time(self, run, name, device):
        run(name)
        return self.seconds[name]

    def choose(self, key=KEY, candidates=("aten", "fast", "slow"), default="aten", run=None, **options):
        return tuning.choose(key, candidates, run or self.runs.append, default, **options)


def sources():
    return {record.key: record.source for record in tuning.list()}


def new_process():
    tuning.clear(disk=False)


def files():
    folder = dispatch.cache_directory()
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def test_bucket_rounds_up_to_a_power_of_two():
    assert [tuning.bucket(rows) for rows in (0, 1, 2, 3, 64, 65, 1000)] == [0, 1, 2, 4, 64, 128, 1024]


def test_full_measures_once_and_takes_the_fastest(measuring):
    assert measuring.choose() == "fast"
    assert set(measuring.runs) == {"aten", "fast", "slow"}
    count = len(measuring.runs)
    assert measuring.choose() == "fast"
    assert len(measuring.runs) == count
    (record,) = tuning.list()
    assert record == (KEY, "fast", "measured", {"aten": 1.0, "fast": 0.5, "slow": 2.0})
    assert tuning.find(KEY) == "fast"


def test_each_key_is_measured_for_itself(measuring):
    measuring.choose()
    measuring.seconds["fast"] = 3.0
    assert measuring.choose(KEY._replace(threads=1)) == "aten"
    assert measuring.choose() == "fast"


@pytest.mark.parametrize("default", ["aten", "near"])
def test_near_ties_keep_the_default(measuring, default):
    assert measuring.choose(candidates=("near", "aten"), default=default) == default


def test_off_takes_the_default_and_reads_and_writes_nothing(measuring, monkeypatch):
    measuring.choose()
    new_process()
    measuring.runs.clear()
    monkeypatch.setenv("TORCHADX_TUNING", "off")
    assert measuring.choose() == "aten"
    assert measuring.runs == []
    assert sources() == {KEY: "static"}


def test_cached_takes_what_is_on_disk_and_the_default_otherwise(measuring, monkeypatch):
    measuring.choose()
    new_process()
    measuring.runs.clear()
    monkeypatch.setenv("TORCHADX_TUNING", "cached")
    assert measuring.choose() == "fast"
    new = KEY._replace(n=1)
    assert measuring.choose(new) == "aten"
    assert measuring.runs == []
    assert sources() == {KEY: "disk", new: "static"}


def test_a_single_candidate_is_not_measured(measuring):
    assert measuring.choose(candidates=("aten",)) == "aten"
    assert measuring.runs == []


def test_what_was_measured_survives_the_process(measuring):
    other = KEY._replace(op="other", dtype=torch.bfloat16)
    measuring.choose()
    measuring.choose(other)
    new_process()
    measuring.runs.clear()
    assert measuring.choose() == measuring.choose(other) == "fast"
    assert measuring.runs == []
    assert sources() == {KEY: "disk", other: "disk"}
    assert len(files()) == 1


def test_what_another_process_wrote_meanwhile_is_kept(measuring):
    measuring.choose()
    new_process()
    # this one has looked before the other wrote
    tuning._loaded.add(CPU)
    other = KEY._replace(n=1)
    measuring.choose(other)
    new_process()
    measuring.runs.clear()
    assert measuring.choose() == measuring.choose(other) == "fast"
    assert measuring.runs == []


def test_a_candidate_on_disk_that_is_gone_is_measured_anew(measuring):
    keys = [KEY._replace(n=n) for n in (1, 2)]
    for key in keys:
        measuring.choose(key)
    new_process()
    for key in keys:
        assert measuring.choose(key, candidates=("aten", "slow")) == "aten"


def test_a_real_process_reads_what_this_one_measured(measuring, monkeypatch):
    x, w = torch.randn(64, 64), torch.randn(128, 64)
    if not dispatch.onednn_serves(x):
        pytest.skip("nothing to measure: this CPU has no oneDNN")
    measuring.seconds |= {"aten": 1.0, "onednn": 0.5}
    torchadx.linear(x, w, None, "gelu")
    code = (
        "import torch, torchadx; from torchadx import tuning\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        "torchadx.linear(torch.randn(63, 64), torch.randn(128, 64), None, 'gelu')\n"
        "print([(r.key.op, r.choice, r.source) for r in tuning.list()])"
    )
    environment = os.environ | {"TORCHADX_TUNING": "cached"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "('affine_gelu', 'onednn', 'disk')" in done.stdout


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "5", "{}", '{"records": 5}', '{"records": [{}]}', '{"records": [{"key": {"dtype": "float33"}}]}',
     '{"records": [{"key": {"dtype": "float32"}, "choice": "fast", "seconds": {}}]}', "\udcff"],
)  # fmt: skip
def test_a_corrupt_cache_warns_and_is_replaced(measuring, content):
    measuring.choose()
    (name,) = files()
    path = os.path.join(dispatch.cache_directory(), name)
    with open(path, "w", errors="surrogateescape") as file:
        file.write(content)
    new_process()
    with pytest.warns(UserWarning, match=f"ignores its tuning cache .*{name}"):
        assert measuring.choose() == "fast"
    with open(path) as file:
        assert len(json.load(file)["records"]) == 1


def test_an_unwritable_cache_warns_and_works(measuring, monkeypatch, tmp_path):
    blocked = tmp_path / "a file"
    blocked.write_text("")
    monkeypatch.setenv("TORCHADX_CACHE_DIR", str(blocked / "folder"))
    unreadable = pytest.warns(UserWarning, match="cannot be read")
    with unreadable, pytest.warns(UserWarning, match=r"cannot write .*TORCHADX_CACHE_DIR"):
        assert measuring.choose() == "fast"
    assert measuring.choose() == "fast"
    assert sources() == {KEY: "measured"}


def test_unusable_candidates_are_left_out(measuring):
    def run(name):
        if name == "fast":
            raise MemoryError("too large")

    assert measuring.choose(run=run, unusable=(MemoryError,)) == "aten"
    assert tuning.list()[0].seconds == {"aten": 1.0, "slow": 2.0, "fast": float("inf")}
    new_process()
    assert measuring.choose() == "aten"
    assert sources() == {KEY: "disk"}


def test_an_unusable_default_is_left_out(measuring):
    def run(name):
        if name == "aten":
            raise MemoryError("too large")

    assert measuring.choose(candidates=("aten", "slow"), run=run, unusable=(MemoryError,)) == "slow"


def test_other_errors_of_a_candidate_are_not_hidden(measuring):
    def run(name):
        raise ArithmeticError(name)

    with pytest.raises(ArithmeticError):
        measuring.choose(run=run, unusable=(MemoryError,))
    assert tuning.list() == []


def test_a_pin_beats_what_was_measured_and_unpinning_brings_it_back(measuring):
    measuring.choose()
    tuning.pin("product", "slow")
    assert measuring.choose() == "slow"
    assert sources() == {KEY: "pinned"}
    assert measuring.choose(KEY._replace(op="other")) == "fast"
    tuning.pin("product", None)
    measuring.runs.clear()
    assert measuring.choose() == "fast"
    assert measuring.runs == []


def test_a_pin_holds_in_every_mode_and_is_not_written(measuring, monkeypatch):
    tuning.pin("product", "slow")
    for mode in ("off", "cached", "full"):
        monkeypatch.setenv("TORCHADX_TUNING", mode)
        assert measuring.choose() == "slow"
    assert measuring.runs == []
    assert files() == []


def test_a_pin_that_does_not_serve_is_an_error(measuring):
    tuning.pin("product", "nothing")
    with pytest.raises(
        ValueError, match=r"pinned to 'nothing'.*candidates here: aten, fast, slow.*pin\('product', None\)"
    ):
        measuring.choose()


def test_clear_forgets_choices_pins_and_files(measuring):
    measuring.choose()
    tuning.pin("product", "slow")
    tuning.clear()
    assert tuning.list() == []
    assert files() == []
    assert measuring.choose() == "fast"


def test_clear_deletes_what_an_earlier_process_wrote(measuring):
    measuring.choose()
    new_process()
    tuning.clear()
    assert files() == []


def test_threads_measure_once(measuring):
    start, found = threading.Barrier(8), []

    def work():
        start.wait()
        found.append(measuring.choose())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["fast"] * 8
    assert len(measuring.runs) == 3 * (1 + tuning._ROUNDS)


def test_an_unknown_mode_is_an_error(measuring, monkeypatch):
    monkeypatch.setenv("TORCHADX_TUNING", "always")
    with pytest.raises(ValueError, match="TORCHADX_TUNING is 'always'; expected 'off', 'cached' or 'full'"):
        measuring.choose()


def test_an_op_measures_once_a_bucket_of_rows(measuring):
    if not dispatch.onednn_serves(torch.ones(1)):
        pytest.skip("nothing to measure: this CPU has no oneDNN")
    measuring.seconds["onednn"] = 0.5
    w, b = torch.randn(128, 64, requires_grad=True), torch.randn(128)
    for rows in (64, 63, 40, 65):
        x = torch.randn(rows, 64, requires_grad=True)
        torchadx.linear(x, w, b, "gelu").sum().backward()
    measured = {(record.key.op, record.key.m) for record in tuning.list()}
    assert measured == {(op, m) for op in ("affine", "input_grad", "weight_grad") for m in (64, 128)}
    assert {record.choice for record in tuning.list()} == {"onednn"}


def test_small_products_and_float64_are_not_measured(measuring):
    for args in ((torch.randn(4, 8), torch.randn(8, 8)), (torch.randn(64, 64).double(), torch.randn(128, 64).double())):
        torchadx.linear(*args, None, "gelu")
    assert tuning.list() == []
