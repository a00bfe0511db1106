"""Which stream is told what, for a device that only takes notes."""

import contextlib

import pytest
import torch

from torchadx.memory.stores._streams import Streams


class Notes:
    """What a module such as ``torch.cuda`` is asked for, in order."""

    def __init__(self):
        self.lines = []
        self.streams = 0
        self.events = 0
        self.now = "user"
        notes = self

        class Stream:
            def __init__(self, device):
                notes.streams += 1
                self.name = ("out", "back")[notes.streams - 1]

            def record_event(self):
                notes.events += 1
                notes.lines.append(f"{self.name} records {notes.events}")
                return notes.events

            def wait_event(self, event):
                notes.lines.append(f"{self.name} waits for {event}")

        self.Stream = Stream

    def current_stream(self, device):
        stream = self.Stream.__new__(self.Stream)
        stream.name = self.now
        return stream

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.now = self.now, stream.name
        yield
        self.now = before


@pytest.fixture
def notes(monkeypatch):
    notes = Notes()
    copy = torch.Tensor.copy_

    def noted_copy(target, source, non_blocking=False):
        notes.lines.append(f"{notes.now} copies{'' if non_blocking else ', and the host waits'}")
        return copy(target, source)

    monkeypatch.setattr(torch, "get_device_module", lambda device: notes)
    monkeypatch.setattr(torch.Tensor, "copy_", noted_copy)
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda tensor, stream: notes.lines.append(f"{stream.name} uses a tensor")
    )
    return notes


def test_copies_out_wait_for_the_stream_that_is_current_now(notes):
    streams = Streams(torch.device("cpu"))
    for current in ("user", "another"):
        notes.now = current
        notes.lines.clear()
        ready = streams.mark()
        targets = torch.empty(3), torch.empty(2)
        done = streams.copy_out(targets, (torch.ones(3), torch.zeros(2)), ready)
        assert notes.lines == [
            f"{current} records {ready}", f"out waits for {ready}", "out copies", "out copies", f"out records {done}",
        ]  # fmt: skip
        assert targets[0].tolist() + targets[1].tolist() == [1, 1, 1, 0, 0]


def test_copies_back_wait_for_the_copies_out_and_their_users_for_them(notes):
    streams = Streams(torch.device("cpu"))
    parts, done = streams.copy_back((torch.ones(3, dtype=torch.int8),), 77)
    streams.hand_over(parts, done)
    assert notes.lines == [
        "back waits for 77", "back copies", f"back records {done}", f"user waits for {done}", "user uses a tensor",
    ]  # fmt: skip
    assert (parts[0].dtype, parts[0].tolist()) == (torch.int8, [1, 1, 1])


def test_clones_are_made_by_the_current_stream(notes):
    streams = Streams(torch.device("cpu"))
    part = torch.ones(3)
    (clone,) = streams.clone((part,), 77)
    assert notes.lines == ["user waits for 77", "user uses a tensor"]
    part.zero_()
    assert clone.tolist() == [1, 1, 1]


def test_devices_without_streams_are_refused():
    with pytest.raises(RuntimeError, match="which PyTorch does not have for mps; use another store"):
        Streams(torch.device("mps"))
