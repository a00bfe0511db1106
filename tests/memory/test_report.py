"""The numbers of a report, how it is drawn, and the presets and stores that it tells of."""

import dataclasses
import json
import math
import sys

import pytest
import torch
from helpers import Mixer, equal, gradients, hand_computed, small, through
from torch import nn
from torch.autograd.graph import save_on_cpu

from torchadx.memory import ActivationManager, DiskStore, compress, offload


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
