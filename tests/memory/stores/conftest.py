"""Disk stores whose directory must be empty in the end, and hands on their writing and reading."""

import contextlib
import os
import threading

import pytest

from torchadx.memory.stores import DiskStore
from torchadx.memory.stores._files import Files


@pytest.fixture
def stores(tmp_path):
    """Make stores below a directory that is empty again once they are closed."""
    with contextlib.ExitStack() as stack:

        def make(**arguments):
            store = DiskStore(directory=tmp_path, **arguments)
            stack.callback(store.close)
            return store

        yield make
    assert os.listdir(tmp_path) == []


@pytest.fixture
def gate(monkeypatch):
    """Hold back all writing until it is opened; lists what was begun."""
    gate, write = threading.Event(), Files.write
    gate.begun = []

    def held(path, parts, unwanted):
        gate.begun.append(path)
        assert gate.wait(20)
        write(path, parts, unwanted)

    monkeypatch.setattr(Files, "write", staticmethod(held))
    yield gate
    gate.set()


@pytest.fixture
def reads(monkeypatch):
    """List the files that were read, in order, and by which thread."""
    seen, read = [], Files.read

    def noted(path, specs):
        seen.append((int(os.path.basename(path)), threading.current_thread()))
        return read(path, specs)

    monkeypatch.setattr(Files, "read", staticmethod(noted))
    return seen
