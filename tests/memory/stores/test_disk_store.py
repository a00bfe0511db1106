"""Files: reserved, written and read in the background, and removed."""

import gc
import os
import threading

import pytest
import torch
from disk_helpers import KB, files, tensor, until

from torchadx.memory.stores import DiskStore
from torchadx.memory.stores._files import Files


def test_the_directory_is_made_at_the_first_put_for_this_user_only(stores, tmp_path):
    store = stores()
    assert store.directory is None
    assert os.listdir(tmp_path) == []
    store.put(())
    assert store.directory is None
    store.put(tensor())
    assert os.path.dirname(store.directory) == str(tmp_path)
    assert os.path.basename(store.directory).startswith(f"torchadx-{os.getpid()}-")
    assert os.stat(store.directory).st_mode & 0o777 == 0o700


def test_space_is_taken_when_put_returns_and_given_back_when_dropped(stores, gate):
    store = stores()
    stored = [store.put(tensor(nbytes=size)) for size in (KB, 5 * KB)]
    sizes = [os.stat(os.path.join(store.directory, name)) for name in ("1", "2")]
    assert [status.st_size for status in sizes] == [KB, 5 * KB]
    if hasattr(os, "posix_fallocate"):
        assert all(status.st_blocks * 512 >= status.st_size for status in sizes)
    gate.set()
    store.flush()
    assert files(store) == [1, 2]
    del stored[0]
    # though nobody calls the store
    until(lambda: files(store) == [2])


def test_what_is_not_yet_written_is_returned_from_memory(stores, gate, reads):
    store = stores()
    part = tensor()
    stored = store.put(part)
    assert stored.get()[0].data_ptr() == part[0].data_ptr()
    assert store.resident_now == KB
    gate.set()
    store.flush()
    assert stored.get()[0].eq(1).all()
    assert len(reads) == 1
    assert store.resident_now == 0


def test_what_is_about_to_be_needed_stays_in_memory_when_it_is_written(stores, gate, reads):
    store = stores()
    stored = [store.put(tensor(number)) for number in range(3)]
    assert stored[2].get()[0].eq(2).all()
    gate.set()
    store.flush()
    assert store.resident_now == KB
    assert stored[1].get()[0].eq(1).all()
    assert stored[2].get()[0].eq(2).all()
    assert sorted(number for number, _ in reads if number > 1) == [3]


def test_what_is_dropped_before_its_turn_is_not_written(stores, gate):
    store = stores(threads=1)
    kept = store.put(tensor())
    dropped = store.put(tensor())
    until(lambda: gate.begun)
    del dropped
    assert (store.bytes_now, store.resident_now) == (KB, KB)
    gate.set()
    store.flush()
    assert [os.path.basename(path) for path in gate.begun] == ["1"]
    assert files(store) == [1]
    assert kept.get()[0].eq(1).all()


def test_put_waits_while_the_window_is_full(stores, gate):
    store = stores(window_bytes=3 * KB, threads=1)
    stored = [store.put(tensor()) for _ in range(3)]
    assert store.seconds_waited == 0
    late = threading.Thread(target=lambda: stored.append(store.put(tensor(7))))
    late.start()
    late.join(0.2)
    assert late.is_alive()
    assert (store.resident_now, store.bytes_now) == (3 * KB, 3 * KB)
    gate.set()
    late.join()
    assert store.seconds_waited > 0
    assert stored[3].get()[0].eq(7).all()


def test_one_tensor_larger_than_the_window_is_written_alone(stores, gate):
    store = stores(window_bytes=KB)
    large = store.put(tensor(nbytes=10 * KB))
    small = []
    late = threading.Thread(target=lambda: small.append(store.put(tensor())))
    late.start()
    late.join(0.1)
    assert late.is_alive()
    gate.set()
    late.join()
    assert large.get()[0].eq(1).all()


def test_a_drop_makes_room_for_who_waits(stores, gate):
    store = stores(window_bytes=3 * KB, threads=2)
    stored = [store.put(tensor()) for _ in range(3)]
    until(lambda: len(gate.begun) == 2)
    late = threading.Thread(target=lambda: store.put(tensor()))
    late.start()
    late.join(0.05)
    assert late.is_alive()
    # both threads are busy: only the waiting one itself can see this
    del stored[2]
    gate.set()
    late.join(20)
    assert not late.is_alive()


def test_backward_finds_all_but_the_last_read_ahead_inside_the_window(stores, reads):
    store = stores(window_bytes=4 * KB)
    stored = [store.put(tensor(number)) for number in range(40)]
    store.flush()
    for number in reversed(range(40)):
        assert stored.pop().get()[0].eq(number).all()
        ahead = store.resident_now
        assert ahead <= 4 * KB
        # let the background win, which is what is tested
        expected = min(40, 40 - number + ahead // KB)
        until(lambda count=expected: len(reads) >= count)
    assert sorted(number for number, _ in reads) == list(range(1, 41))
    assert [number for number, _ in reads][:3] == [40, 39, 38]
    by_caller = [number for number, thread in reads if thread is threading.main_thread()]
    assert by_caller == [40]
    assert (store.reloads, store.bytes_now, store.resident_now) == (0, 0, 0)


def test_what_no_thread_has_begun_to_read_is_read_by_who_needs_it_and_not_at_all_if_nobody_does(stores, gate, reads):
    gate.set()
    store = stores(threads=1)
    stored = [store.put(tensor(number)) for number in range(4)]
    store.flush()
    gate.clear()
    blocking = store.put(tensor(9))
    until(lambda: len(gate.begun) == 5)
    # the only thread is busy from here on
    for number in (3, 2):
        assert stored[number].get()[0].eq(number).all()
    assert store.resident_now == 3 * KB
    del stored[:2]
    assert store.resident_now == KB
    gate.set()
    store.flush()
    assert reads == [(4, threading.main_thread()), (3, threading.main_thread())]
    assert blocking.get()[0].eq(9).all()


def test_what_a_thread_reads_is_waited_for_and_not_read_twice(stores, reads, monkeypatch):
    gate, read = threading.Event(), Files.read

    def held(path, specs):
        parts = read(path, specs)
        assert threading.current_thread() is threading.main_thread() or gate.wait(20)
        return parts

    monkeypatch.setattr(Files, "read", staticmethod(held))
    store = stores()
    stored = [store.put(tensor(number)) for number in range(2)]
    store.flush()
    stored[1].get()
    until(lambda: len(reads) == 2)
    threading.Timer(0.1, gate.set).start()
    assert stored[0].get()[0].eq(0).all()
    assert [number for number, _ in reads] == [2, 1]


def test_nothing_is_read_ahead_without_a_window(stores, reads):
    store = stores(window_bytes=0)
    stored = [store.put(tensor(number)) for number in range(10)]
    store.flush()
    for number in reversed(range(10)):
        assert stored[number].get()[0].eq(number).all()
        assert store.resident_now == 0
    assert {thread for _, thread in reads} == {threading.main_thread()}


def test_reading_again_is_counted(stores):
    store = stores()
    stored = store.put(tensor())
    store.flush()
    for count in range(4):
        assert store.reloads == max(0, count - 1)
        stored.get()
    assert store.reloads == 3


def test_after_closing_nothing_can_be_read(stores, gate):
    store = stores(threads=1)
    written, waiting = store.put(tensor()), store.put(tensor())
    directory = store.directory
    until(lambda: gate.begun)
    gate.set()
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("torchadx-disk")]
    store.close()
    assert threads
    assert not any(thread.is_alive() for thread in threads)
    assert not os.path.exists(directory)
    assert (store.bytes_now, store.resident_now) == (0, 0)
    for stored in (written, waiting):
        with pytest.raises(RuntimeError, match=r"the DiskStore was closed; close it .* after the last backward"):
            stored.get()
    another = store.put(tensor(9))
    assert another.get()[0].eq(9).all()
    assert store.directory != directory
    del written, waiting
    assert store.bytes_now == KB


def test_closing_does_not_wait_for_queued_work(stores, gate):
    store = stores(threads=1)
    stored = [store.put(tensor()) for _ in range(50)]
    until(lambda: gate.begun)
    threading.Timer(0.05, gate.set).start()
    store.close()
    assert len(gate.begun) == 1
    assert len(stored) == 50


def test_who_waits_to_put_learns_that_the_store_is_closed(stores, gate):
    store = stores(window_bytes=KB, threads=1)
    stored = store.put(tensor())
    errors = []

    def late():
        try:
            store.put(tensor())
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=late)
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    threading.Timer(0.05, gate.set).start()
    store.close()
    thread.join(20)
    assert len(errors) == 1
    assert "the DiskStore was closed" in errors[0]
    assert stored.nbytes == KB


def test_a_store_that_nobody_uses_ends_its_threads_and_files(tmp_path):
    before = threading.active_count()
    store = DiskStore(directory=tmp_path, threads=3)
    stored = store.put(tensor())
    assert threading.active_count() == before + 3
    del store
    gc.collect()
    assert stored.get()[0].eq(1).all()
    del stored
    until(lambda: threading.active_count() == before and os.listdir(tmp_path) == [])


def test_nothing_is_left_of_a_thousand_cycles(stores):
    store = stores()
    stored = store.put(tensor())
    store.flush()
    descriptors = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    before = len(os.listdir(descriptors)), threading.active_count()
    for number in range(1000):
        pair = [store.put(tensor(number)), store.put((torch.ones(3, dtype=torch.int8),))]
        if number % 3:
            pair.pop()
        assert pair[0].get()[0].eq(number).all()
        del pair
    store.flush()
    # threads of other tests' stores may end meanwhile
    assert len(os.listdir(descriptors)) <= before[0]
    assert threading.active_count() <= before[1]
    assert files(store) == [1]
    assert stored.get()[0].eq(1).all()
    assert (store.bytes_now, store.resident_now) == (KB, 0)
    assert list(store._spool._items) == [stored._item]
    assert not store._spool._dropped
