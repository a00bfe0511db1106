"""One thread: times are not compared here, and small tensors gain nothing from a second."""

import pytest


@pytest.fixture(autouse=True)
def on_one_thread(one_thread):
    """Every test here has one thread."""
