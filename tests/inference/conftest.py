"""One thread an operation: tensors are small, and threads that wait for each other on a busy machine cost seconds."""

import pytest

from torchadx.inference import _weights


@pytest.fixture(autouse=True)
def on_one_thread(one_thread):
    """Every test here has one thread."""


@pytest.fixture(autouse=True)
def small_products_are_worth_preparing(monkeypatch):
    """So that products as small as a test's run on prepared weights."""
    monkeypatch.setattr(_weights, "_WORTH_PREPARING", 1 << 20)
