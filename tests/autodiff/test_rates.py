"""Rates of this machine: measured when asked for, kept on disk, and never trusted when they are not its own."""

import dataclasses
import itertools
import json
import pathlib
import warnings

import pytest
import torch

from torchadx.autodiff import _rates
from torchadx.autodiff._rates import Rates, rates

CPU = torch.device("cpu")
KINDS = ["reshape", "view", "stream", "product", "convolution", "sweep"]


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Measure into an empty folder, as a process does that has measured nothing yet."""
    monkeypatch.setenv("TORCHADX_TUNING", "full")
    monkeypatch.setenv("TORCHADX_CACHE_DIR", str(tmp_path))
    forget(monkeypatch)
    return tmp_path


def forget(monkeypatch):
    monkeypatch.setattr(_rates, "_known", {})


def numbers(found):
    return {name: value for name, value in dataclasses.asdict(found).items() if name != "source"}


def stored(folder):
    (path,) = pathlib.Path(folder).rglob("rates-*.json")
    return path


def test_static_when_tuning_is_off(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHADX_TUNING", "off")
    monkeypatch.setenv("TORCHADX_CACHE_DIR", str(tmp_path))
    forget(monkeypatch)
    assert rates(CPU, torch.float32) == Rates()
    assert Rates().source == "static"
    assert list(tmp_path.iterdir()) == []


def test_static_when_nothing_is_cached(monkeypatch, folder):
    monkeypatch.setenv("TORCHADX_TUNING", "cached")
    assert rates(CPU, torch.float32) == Rates()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_measured_once_and_stored(monkeypatch, folder, dtype):
    found = rates(CPU, dtype)
    assert found.source == "measured"
    assert all(value > 0 for value in numbers(found).values())
    assert rates(CPU, dtype) is found
    assert str(dtype).removeprefix("torch.") in stored(folder).name
    assert json.loads(stored(folder).read_text())["rates"] == dataclasses.asdict(found)
    # another process, whether it may measure or not
    for mode in ("full", "cached"):
        monkeypatch.setenv("TORCHADX_TUNING", mode)
        forget(monkeypatch)
        again = rates(CPU, dtype)
        assert again.source == "disk"
        assert numbers(again) == numbers(found)
    # what is measured has no say when tuning is off
    monkeypatch.setenv("TORCHADX_TUNING", "off")
    assert rates(CPU, dtype) == Rates()


def test_dtypes_and_thread_counts_are_apart(monkeypatch, folder):
    monkeypatch.setenv("TORCHADX_TUNING", "cached")
    keys = list(itertools.product((torch.float32, torch.float64), (1, 2)))
    for number, (dtype, threads) in enumerate(keys, 1):
        _rates._write(CPU, dtype, threads, Rates(product=float(number)))
    assert len(list(folder.rglob("rates-*.json"))) == 4
    threads = torch.get_num_threads()
    try:
        for number, (dtype, count) in enumerate(keys, 1):
            torch.set_num_threads(count)
            assert rates(CPU, dtype) == Rates(product=float(number), source="disk")
    finally:
        torch.set_num_threads(threads)


@pytest.fixture
def kept(monkeypatch, folder):
    """A file of rates, which a process reads that may not measure."""
    monkeypatch.setenv("TORCHADX_TUNING", "cached")
    _rates._write(CPU, torch.float64, torch.get_num_threads(), Rates(product=1e9, source="measured"))
    path = stored(folder)
    assert rates(CPU, torch.float64) == Rates(product=1e9, source="disk")
    forget(monkeypatch)
    return path


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null"], ids=["empty", "half", "list", "nothing", "null"])
def test_damaged_files_are_told_and_ignored(kept, text):
    kept.write_text(text)
    with pytest.warns(UserWarning, match=r"rates-.*\.json"):
        assert rates(CPU, torch.float64) == Rates()


def test_damaged_files_are_replaced(monkeypatch, kept):
    kept.write_text("{")
    monkeypatch.setenv("TORCHADX_TUNING", "full")
    with pytest.warns(UserWarning, match=r"rates-.*\.json"):
        found = rates(CPU, torch.float64)
    assert found.source == "measured"
    assert json.loads(kept.read_text())["rates"] == dataclasses.asdict(found)


@pytest.mark.parametrize(
    "change",
    [
        {"unknown": 1.0},
        {"product": "fast"},
        {"stream": -1.0},
        {"call": 0.0},
        {"sweep_call": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_files_with_wrong_entries_are_told_and_ignored(kept, change):
    content = json.loads(kept.read_text())
    content["rates"].update(change)
    kept.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match=r"rates-.*\.json"):
        assert rates(CPU, torch.float64) == Rates()


def test_another_machines_are_measured_anew(monkeypatch, kept):
    content = json.loads(kept.read_text())
    kept.write_text(json.dumps(content | {"machine": "another"}))
    assert rates(CPU, torch.float64) == Rates()
    monkeypatch.setenv("TORCHADX_TUNING", "full")
    assert rates(CPU, torch.float64).source == "measured"
    assert json.loads(kept.read_text())["machine"] == content["machine"]


def test_a_folder_that_cannot_be_written_is_told(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCHADX_TUNING", "full")
    monkeypatch.setenv("TORCHADX_CACHE_DIR", str(tmp_path / "file" / "below"))
    forget(monkeypatch)
    with pytest.warns(UserWarning, match="file"):
        found = rates(CPU, torch.float64)
    assert found.source == "measured"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rates(CPU, torch.float64) is found


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_measuring_leaves_settings_alone(folder, around):
    with around():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_num_threads()
        generator = torch.get_rng_state()
        assert rates(CPU, torch.float64).source == "measured"
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_num_threads()) == before
        assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("kind", KINDS)
def test_seconds_grow_with_the_work(kind):
    some = Rates()
    assert some.overhead(kind) > 0
    assert 0 < some.seconds(kind, 1e6, 1e6) <= some.seconds(kind, 1e9, 1e6) <= some.seconds(kind, 1e9, 1e9)
    faster = dataclasses.replace(some, product=6e12, convolution=6e12, stream=6e12)
    assert faster.seconds(kind, 1e9, 1e9) < some.seconds(kind, 1e9, 1e9)


def test_seconds_by_hand():
    some = Rates(product=100.0, convolution=10.0, stream=1000.0, call=1.0, sweep_call=7.0)
    assert some.seconds("product", 500.0, 10.0) == 5.0
    assert some.seconds("convolution", 500.0, 10.0) == 50.0
    assert some.seconds("product", 500.0, 9000.0) == 9.0
    assert some.seconds("stream", 500.0, 9000.0) == 9.0
    assert some.seconds("sweep", 0.0, 9000.0) > 9.0
    assert (some.overhead("stream"), some.overhead("sweep")) == (1.0, 7.0)
