"""Shared fixtures: a poisoned allocator, and no tuning unless a test asks for it."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
import torch


@pytest.fixture(autouse=True)
def settled_environment(monkeypatch, tmp_path):
    """Static choices and an empty cache folder: what was measured on this machine must not decide a test.

    The backend is named, because ``auto`` leaves layers as small as a test's to PyTorch's own composition.
    """
    import torchadx

    monkeypatch.setenv("TORCHADX_BACKEND", "triton" if torchadx.dispatch.interpreting() else "aten")
    monkeypatch.setenv("TORCHADX_TUNING", "off")
    monkeypatch.setenv("TORCHADX_CACHE_DIR", str(tmp_path / "cache"))
    torchadx.tuning.clear(disk=False)
    yield
    torchadx.tuning.clear(disk=False)


@pytest.fixture(autouse=True)
def poisoned_empty():
    """Fill new memory with NaN, so that an element nobody wrote is seen (torch fills only in deterministic mode)."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def one_thread():
    """Let operations have one thread each, where tensors are too small for a second to help."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def passed_when_interpreted():
    """Run test files in a process of their own, where Triton's interpreter is on; count the tests that passed."""

    def run(*files):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", *files],
            cwd=pathlib.Path(__file__).parents[1],
            env={**os.environ, "TRITON_INTERPRET": "1"},
            capture_output=True,
            text=True,
        )
        tail = (done.stdout + done.stderr)[-8000:]
        assert done.returncode == 0, tail
        passed = re.search(r"(\d+) passed", done.stdout)
        assert passed is not None, tail
        return int(passed[1])

    return run
