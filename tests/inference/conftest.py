"""One thread an operation: tensors are small, and threads that wait for each other on a busy machine cost seconds."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
