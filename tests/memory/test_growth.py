"""Hundreds of steps leave no more behind than a few did."""

import gc
import os
import threading
import time
from pathlib import Path

import pytest
import torch
from helpers import EXACT, Token, mlp
from torch import nn

from torchadx.memory import ActivationManager, Budget, DiskStore, Rule, _ledger, fit, managed

POLICIES = {
    **{policy: policy for policy in (*EXACT, "bf16", "fp8", "int8", "int4", "int2", "int8@disk")},
    "rules": [Rule(modules="0", then="int8@disk"), Rule(ops="relu", then="sparse"), Rule(then="bf16")],
    "function": lambda meta: ("keep", "int8", "@disk", "lossless@host")[meta.ordinal % 4],
    "budget": Budget("8 KiB"),
}


@pytest.fixture(autouse=True)
def newcomers():
    """Count only what is made from here on."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def census(manager, directory):
    """Count what could grow."""
    manager.flush()
    gc.collect()
    alive = list(map(type, gc.get_objects()))
    report = manager.report()
    return {
        "tensors": sum(issubclass(kind, torch.Tensor) for kind in alive),
        "ours": sum(kind.__module__.startswith("torchadx.memory") for kind in alive),
        "files": len([path for path in directory.rglob("*") if path.is_file()]),
        "threads": threading.active_count(),
        "descriptors": len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0,
        "bytes": report.resident_bytes + sum(store.bytes_now for store in report.stores),
    }


def grown(after, before):
    return {what: (before[what], count) for what, count in after.items() if count > before[what]}


def step(model, manager=None):
    x = torch.randn(32, 16)
    if manager is None:
        loss = model(x).square().mean()
    else:
        with manager:
            loss = model(x).square().mean()
    loss.backward()
    for parameter in model.parameters():
        parameter.grad = None


@pytest.mark.parametrize("name", POLICIES)
def test_steps(name, tmp_path):
    model = mlp()
    manager = ActivationManager(POLICIES[name], min_bytes=0, stores=[DiskStore(directory=tmp_path)]).watch(model)
    for _ in range(10):
        step(model, manager)
    before = census(manager, tmp_path)
    for _ in range(100):
        step(model, manager)
    after = census(manager, tmp_path)
    assert not grown(after, before)
    assert after["bytes"] == 0
    assert after["files"] == 0
    manager.close()
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("name", ["keep", "int8", "@disk", "lossless@host", "function", "budget"])
def test_steps_inside_one_entry(name, tmp_path, monkeypatch):
    monkeypatch.setattr(_ledger, "MAX_ROWS", 32)
    model = mlp()
    manager = ActivationManager(POLICIES[name], min_bytes=0, stores=[DiskStore(directory=tmp_path)]).watch(model)
    with manager:
        for _ in range(40):
            step(model)
        before = census(manager, tmp_path)
        for _ in range(160):
            step(model)
        after = census(manager, tmp_path)
        ledger = manager._packer.ledger
        assert len(ledger.entries) < 3000
        assert len(ledger.rows) < 100
    # entries of storages that are gone are forgotten now and then, not at once
    assert after.pop("ours") < before.pop("ours") + 3000
    assert not grown(after, before)
    assert manager.report().tensors > 200 * 5


def test_managers_come_and_go(tmp_path):
    model = mlp()

    def use():
        for policy in ("@disk", "int8@disk", "lossless@host", "@host"):
            with ActivationManager(policy, min_bytes=0, stores=[DiskStore(directory=tmp_path)]).watch(model):
                loss = model(torch.randn(32, 16)).sum()
            loss.backward()
            model.zero_grad()
        with fit("8 KiB", min_bytes=0):
            loss = model(torch.randn(32, 16)).sum()
        return loss

    idle = ActivationManager("keep")
    for _ in range(3):
        use()
    before = census(idle, tmp_path)
    for _ in range(20):
        use()
    # threads of stores that are gone end in their own time
    deadline = time.monotonic() + 20
    while grown(census(idle, tmp_path), before) and time.monotonic() < deadline:
        time.sleep(0.05)
    # not even the hooks of managers that are gone
    assert not grown(census(idle, tmp_path), before)


def test_graphs_that_never_run_backward(tmp_path):
    model = mlp()
    manager = ActivationManager("int8@disk", min_bytes=0, stores=[DiskStore(directory=tmp_path)])
    before = None
    for index in range(60):
        with manager:
            model(torch.randn(32, 16)).square().mean()
        if index == 5:
            before = census(manager, tmp_path)
    assert not grown(census(manager, tmp_path), before)
    assert before["files"] == 0


def test_failed_steps(tmp_path):
    class Fails(nn.Module):
        def forward(self, x):
            self.token = Token()
            raise ValueError

    model = managed(nn.Sequential(mlp(), Fails()), "int8@disk", min_bytes=0, stores=[DiskStore(directory=tmp_path)])
    before = None
    for index in range(60):
        with pytest.raises(ValueError):  # noqa: PT011
            model(torch.randn(32, 16))
        if index == 5:
            before = census(model.activation_manager, tmp_path)
    assert not grown(census(model.activation_manager, tmp_path), before)
    assert before["files"] == 0
