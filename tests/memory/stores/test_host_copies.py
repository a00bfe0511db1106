"""Copies of an accelerator's tensors, on a simulated one whose streams take every liberty that real ones have."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from simulated_streams import Device, SimulatedStreams

from torchadx import dispatch
from torchadx.memory.stores import HostStore, StaleCopyError, _copies, _pool

KB = 1024
SLAB = 64 * KB


def simulate(patch, device):
    """Take CPU tensors for those of an accelerator."""
    patch.setattr(SimulatedStreams, "device", device)
    patch.setattr(_copies, "Streams", SimulatedStreams)
    patch.setattr(dispatch, "on_accelerator", lambda tensor: True)
    patch.setattr(_pool, "_pinned", lambda nbytes: torch.empty(nbytes, dtype=torch.uint8))
    return device


@pytest.fixture
def device(monkeypatch):
    return simulate(monkeypatch, Device())


@pytest.fixture
def quick(monkeypatch):
    """A device that has always done all it was given."""
    return simulate(monkeypatch, Device(eager=True))


def produce(device, value, nbytes=KB):
    """A tensor that the current stream fills some time."""
    part = torch.full((nbytes // 4,), torch.nan)
    device.launch(lambda: part.data.fill_(value))
    return part


def change(device, part, value):
    """Write in place: the version moves at once, the elements when the current stream gets there."""
    part.add_(0)
    alias = part.data
    device.launch(lambda: alias.fill_(value))


def finished(device, stored):
    """Get what is stored, and return the values that the device sees in the end."""
    parts = [one.get()[0] for one in stored]
    device.finish()
    return [part[0].item() for part in parts]


class Program:
    """A program that puts, changes, gets and drops; what its kernels see is checked when they run."""

    def __init__(self, device, store, window):
        self.device, self.store, self.window = device, store, window
        self.held = []
        self.values = 0
        self.largest = 0
        self.seen = 0

    def put(self, number, lent):
        self.values += 1
        nbytes = 4 * (1 + number % 600)
        self.largest = max(self.largest, nbytes)
        part = produce(self.device, float(self.values), nbytes)
        owner = part if lent else None
        self.held.append(
            [float(self.values), self.store.put((part.detach(),) if lent else (part,), owner), owner, False]
        )

    def change(self, number):
        lent = [entry for entry in self.held if entry[2] is not None]
        if lent:
            entry = lent[-1 if number % 2 else number % len(lent)]
            entry[3] = True
            change(self.device, entry[2], -1.0)

    def get(self, number):
        value, stored, _, changed = self.held[number]
        try:
            parts = stored.get()
        except StaleCopyError:
            assert changed
            return

        def look():
            assert parts[0].eq(value).all()
            self.seen += 1

        self.device.launch(look)

    def step(self, what, number):
        if what in ("owned", "lent"):
            self.put(number, what == "lent")
        elif what == "aside":
            # as another thread may, on a stream of its own that waits for nothing
            before, self.device.current = self.device.current, "aside"
            self.put(number, False)
            self.device.current = before
        elif what == "change":
            self.change(number)
        elif what == "stream":
            self.device.switch(f"user {number % 3}")
        elif what == "look":
            self.device.run_a_little()
            assert self.store.bytes_now == sum(entry[1].nbytes for entry in self.held)
            assert self.store.resident_now <= 2 * self.window + self.largest
        elif what == "flush":
            self.store.flush()
        elif self.held:
            index = len(self.held) - 1 if what == "backward" else number % len(self.held)
            self.get(index)
            if what == "backward" or number % 2:
                del self.held[index]


ACTIONS = ("owned", "lent", "lent", "aside", "change", "get", "backward", "backward", "stream", "look", "flush")


@given(
    seed=st.integers(0, 1 << 16),
    steps=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 1 << 16)), min_size=5, max_size=80),
    window=st.sampled_from([0, 3 * KB, 1 << 20]),
    pool_bytes=st.sampled_from([0, 8 * KB, 1 << 20]),
)
# a buffer that is reused while it is being copied back, and a copy back that does not wait for the one out
@example(0, [("owned", 0), ("owned", 0), ("get", 0), ("get", 1), ("aside", 0)], 0, 8 * KB)
@example(62, [(what, 0) for what in ("owned", "lent", "owned", "backward", "owned", "owned")] + [("get", 1)], 3 * KB, 0)
@settings(max_examples=300, deadline=None)
def test_kernels_see_what_was_put_whatever_runs_when(seed, steps, window, pool_bytes):
    with pytest.MonkeyPatch.context() as patch:
        device = simulate(patch, Device(seed))
        store = HostStore(pool_bytes=pool_bytes, slab_bytes=4 * KB, window_bytes=window)
        program = Program(device, store, window)
        for what, number in steps:
            program.step(what, number)
        program.held.clear()
        store.flush()
        device.finish()
        assert (store.bytes_now, store.resident_now, store.pageable_bytes) == (0, 0, 0)
        assert store.pinned_bytes <= pool_bytes


def test_forward_and_backward_copy_each_tensor_there_and_back_once(quick):
    store = HostStore(window_bytes=4 * KB, slab_bytes=4 * KB)
    for step in range(3):
        stored = [store.put((produce(quick, float(number)),)) for number in range(20)]
        assert (store.bytes_now, store.resident_now) == (20 * KB, 0)
        assert store.pinned_bytes == 20 * KB
        for number in reversed(range(20)):
            assert stored.pop().get()[0].eq(number).all()
            assert store.resident_now <= 4 * KB
        assert (store.bytes_now, store.resident_now) == (0, 0)
        assert quick.copied_back == 20 * (step + 1)
    assert (store.reloads, store.seconds_waited) == (0, 0)


def test_reloads_are_counted(quick):
    store = HostStore(slab_bytes=SLAB)
    stored = store.put((produce(quick, 1.0),))
    for count in range(3):
        assert store.reloads == max(0, count - 1)
        stored.get()
    assert store.reloads == 2


def test_what_is_still_being_copied_is_used_where_it_is(device, monkeypatch):
    monkeypatch.setattr(device, "run_a_little", lambda: None)
    store = HostStore(slab_bytes=SLAB)
    owned, owner = produce(device, 1.0), produce(device, 2.0)
    address = owned.data_ptr()
    stored, lent = store.put((owned,)), store.put((owner.detach(),), owner)
    del owned
    assert store.resident_now == 2 * KB
    assert stored.get()[0].data_ptr() == address
    assert stored.get()[0].data_ptr() == address
    copy = lent.get()[0]
    assert copy.data_ptr() != owner.data_ptr()
    assert device.copied_back == 0
    # one who was given a copy does not see what the owner does to his own
    change(device, owner, 3.0)
    device.finish()
    assert copy.eq(2).all()
    assert store.reloads == 0


def test_a_copy_that_is_needed_soon_stays_on_the_device(device, monkeypatch):
    store = HostStore(slab_bytes=SLAB)
    with monkeypatch.context() as patch:
        patch.setattr(device, "run_a_little", lambda: None)
        stored = [store.put((produce(device, float(number)),)) for number in range(4)]
        assert finished(device, stored[3:]) == [3]
    assert store.resident_now == KB
    assert device.copied_back == 0
    assert finished(device, [stored[2]]) == [2]
    assert device.copied_back == 2
    assert store.resident_now == 2 * KB


def test_what_was_taken_is_no_longer_the_stores(quick):
    store = HostStore(slab_bytes=SLAB)
    stored = [store.put((produce(quick, float(number)),)) for number in range(2)]
    assert finished(quick, stored[1:]) == [1]
    assert store.resident_now == KB
    assert finished(quick, stored[:1]) == [0]
    assert store.resident_now == 0


def test_a_change_during_the_copy_makes_it_stale_for_good(device, monkeypatch):
    store = HostStore(slab_bytes=SLAB)
    owner = produce(device, 1.0)
    with monkeypatch.context() as patch:
        patch.setattr(device, "run_a_little", lambda: None)
        stored = store.put((owner.detach(),), owner)
        change(device, owner, 2.0)
        with pytest.raises(StaleCopyError, match="changed in place while it was being copied"):
            stored.get()
    device.finish()
    with pytest.raises(StaleCopyError):
        stored.get()


def test_a_change_after_the_copy_is_none_of_its_business(quick):
    store = HostStore(slab_bytes=SLAB)
    owner = produce(quick, 1.0)
    stored = store.put((owner.detach(),), owner)
    store.flush()
    change(quick, owner, 2.0)
    assert stored.get()[0].eq(1).all()


def test_a_borrowed_tensor_is_not_held_once_it_is_copied(quick):
    store = HostStore(slab_bytes=SLAB)
    owner = produce(quick, 1.0)
    stored = store.put((owner.detach(),), owner)
    store.flush()
    assert stored._item.borrowed is None
    assert stored._item.source is None


def test_put_waits_while_the_window_is_full(device, monkeypatch):
    monkeypatch.setattr(device, "run_a_little", lambda: None)
    store = HostStore(window_bytes=3 * KB, slab_bytes=SLAB)
    stored = [store.put((produce(device, float(number)),)) for number in range(3)]
    assert (store.resident_now, store.seconds_waited) == (3 * KB, 0)
    stored += [store.put((produce(device, float(number)),)) for number in range(3, 8)]
    assert store.resident_now <= 3 * KB
    assert store.seconds_waited > 0
    large = store.put((produce(device, 9.0, 10 * KB),))
    assert store.resident_now == 10 * KB
    assert finished(device, (*stored, large)) == [*range(8), 9]


def test_without_memory_to_read_ahead_it_is_done_on_demand(quick, monkeypatch):
    store = HostStore(slab_bytes=SLAB)
    stored = [store.put((produce(quick, float(number)),)) for number in range(5)]
    store.flush()
    copy_back, full = SimulatedStreams.copy_back, [False]

    def refuse(self, sources, after):
        if full[0]:
            raise torch.OutOfMemoryError("full")
        full[0] = True
        return copy_back(self, sources, after)

    monkeypatch.setattr(SimulatedStreams, "copy_back", refuse)
    for number in reversed(range(5)):
        full[0] = False
        assert stored[number].get()[0].eq(number).all()
    full[0] = True
    with pytest.raises(torch.OutOfMemoryError):
        stored[0].get()
    full[0] = False
    assert stored[0].get()[0].eq(0).all()
    assert store.resident_now <= 4 * KB


def test_above_the_cap_memory_is_pageable_and_counted(quick):
    store = HostStore(pool_bytes=4 * KB, slab_bytes=4 * KB)
    stored = [store.put((produce(quick, float(number), 3 * KB),)) for number in range(3)]
    assert (store.pinned_bytes, store.pageable_bytes) == (4 * KB, 6 * KB)
    assert [one.get()[0][0].item() for one in stored] == [0, 1, 2]
    del stored[1:]
    store.flush()
    assert (store.pinned_bytes, store.pageable_bytes) == (4 * KB, 0)


def test_several_parts_of_any_size_share_a_buffer(quick):
    store = HostStore(slab_bytes=SLAB)
    parts = (
        torch.randn(7),
        torch.empty(0),
        torch.tensor(3, dtype=torch.int64),
        torch.randint(0, 9, (300,)).to(torch.int8),
    )
    stored = store.put(tuple(part.clone() for part in parts))
    store.flush()
    got = stored.get()
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(got, parts, strict=True))
    assert len({part.untyped_storage().data_ptr() for part in got if part.numel()}) == 3
    assert all(part.storage_offset() == 0 for part in got)


def test_closing_frees_pinned_memory_and_opens_again(device):
    store = HostStore(slab_bytes=8 * KB)
    stored = store.put((produce(device, 1.0),))
    assert store.pinned_bytes == 8 * KB
    slab = stored._item.buffer.slab
    store.close()
    assert (store.bytes_now, store.resident_now, store.pinned_bytes) == (0, 0, 0)
    assert slab.unused
    assert stored._item.buffer is None
    with pytest.raises(RuntimeError, match=r"the HostStore was closed; close it .* after the last backward"):
        stored.get()
    another = store.put((produce(device, 2.0),))
    del stored
    assert finished(device, [another]) == [2]
    assert store.bytes_now == KB


def test_what_was_in_host_memory_already_outlives_closing():
    store = HostStore(slab_bytes=SLAB)
    stored = store.put((torch.ones(10),))
    store.close()
    assert stored.get()[0].eq(1).all()
    assert (store.bytes_now, store.resident_now) == (40, 40)


@pytest.mark.parametrize("arguments", [{"pool_bytes": -1}, {"window_bytes": -1}])
def test_senseless_host_stores_are_refused(arguments):
    with pytest.raises(ValueError, match="expected pool_bytes >= 0 and window_bytes >= 0; got"):
        HostStore(**arguments)
