"""One thread an operation: tensors are small, and threads that wait for each other on a busy machine cost seconds."""

import pytest
import torch

from torchadx.inference import _weights


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def small_products_are_worth_preparing(monkeypatch):
    """So that products as small as a test's run on prepared weights."""
    monkeypatch.setattr(_weights, "_WORTH_PREPARING", 1 << 20)
