"""Fixtures of the kernel tests: where kernels run, and fresh memory that is full of NaN."""

import functools
import importlib.util

import pytest
import torch

# the rest of the library works without Triton, and so do its tests
collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["test_*.py"]


def pytest_configure(config):
    """Declare the marker of tests that need a GPU."""
    config.addinivalue_line("markers", "gpu: runs kernels natively on a CUDA or ROCm device")


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Return the device to run kernels on: the CPU where Triton interprets them, or a GPU."""
    from torchadx.kernels import interpreting

    if request.param == "interpreter":
        if not interpreting():
            pytest.skip("kernels are not interpreted in this process; test_interpreter.py starts one where they are")
        return torch.device("cpu")
    if interpreting():
        pytest.skip("kernels are interpreted in this process; unset TRITON_INTERPRET to run them on a GPU")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    return torch.device("cuda")


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Fill what torch.empty and its relatives return with NaN, so that an element nobody wrote fails its test."""

    def poisoned(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            tensor = function(*args, **kwargs)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

        return wrapper

    for owner, names in (
        (torch, ("empty", "empty_like", "empty_strided")),
        (torch.Tensor, ("new_empty", "new_empty_strided")),
    ):
        for name in names:
            monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))
