"""Small change of the tests of disk stores."""

import os
import time

import torch

KB = 1024


def tensor(value=1.0, nbytes=KB):
    return (torch.full((nbytes // 4,), float(value)),)


def files(store):
    return sorted(map(int, os.listdir(store.directory)))


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)
