"""One thread an operation: tensors are small, and threads that wait for each other on a busy machine cost seconds."""

import pytest


@pytest.fixture(autouse=True)
def on_one_thread(one_thread):
    """Every test here has one thread."""
