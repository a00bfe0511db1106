"""One thread: tensors here are small, and tests may share the machine."""

import pytest


@pytest.fixture(autouse=True)
def on_one_thread(one_thread):
    """Every test here has one thread."""
