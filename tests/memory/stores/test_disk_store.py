"""Files: reserved, written and read in the background, removed; and what happens if any of that fails."""

import contextlib
import errno
import gc
import os
import shutil
import threading
import time

import pytest
import torch

from torchadx.memory.stores import DiskFullError, DiskStore, _files, _spool
from torchadx.memory.stores._files import Files

KB = 1024


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


def tensor(value=1.0, nbytes=KB):
    return (torch.full((nbytes // 4,), float(value)),)


def files(store):
    return sorted(map(int, os.listdir(store.directory)))


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


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


def test_capacity(stores):
    store = stores(capacity_bytes=3 * KB)
    stored = [store.put(tensor(number)) for number in range(3)]
    with pytest.raises(DiskFullError) as caught:
        store.put(tensor())
    assert caught.value.errno == errno.ENOSPC
    for word in (f"needs {KB} bytes", repr(store.directory), "0 free", f"capacity_bytes is {3 * KB}", "or move less"):
        assert word in str(caught.value)
    store.flush()
    assert files(store) == [1, 2, 3]
    assert (store.bytes_now, store.bytes_peak, store.resident_now) == (3 * KB, 3 * KB, 0)
    assert [part.get()[0][0].item() for part in stored] == [0, 1, 2]
    # the room of what is dropped can be had at once
    for number in range(20):
        stored[number % 3] = None
        stored[number % 3] = store.put(tensor(number))
    with pytest.raises(DiskFullError):
        store.put(tensor(nbytes=4 * KB))


def test_without_memory_for_a_copy_nothing_changes(stores, monkeypatch):
    store = stores(capacity_bytes=2 * KB, window_bytes=KB)
    kept = store.put(tensor(5))
    with monkeypatch.context() as patch:

        def fail(*_):
            raise MemoryError

        patch.setattr(_spool, "Load", fail)
        for _ in range(3):
            with pytest.raises(MemoryError):
                store.put(tensor())
    store.flush()
    assert files(store) == [1]
    assert (store.bytes_now, store.bytes_peak, store.resident_now) == (KB, KB, 0)
    assert store.put(tensor(6)).get()[0].eq(6).all()
    assert kept.get()[0].eq(5).all()


@pytest.mark.parametrize(
    ("code", "kind"), [(errno.ENOSPC, DiskFullError), (errno.EDQUOT, DiskFullError), (errno.EIO, OSError)]
)
def test_a_disk_that_refuses_space(stores, monkeypatch, code, kind):
    store = stores()
    kept = store.put(tensor(5))
    with monkeypatch.context() as patch:

        def refuse(fd, offset, length):
            os.ftruncate(fd, length // 2)
            raise OSError(code, os.strerror(code))

        patch.setattr(os, "posix_fallocate", refuse, raising=False)
        with pytest.raises(OSError, match=os.strerror(code)) as caught:
            store.put(tensor())
        assert type(caught.value) is kind
    store.flush()
    assert files(store) == [1]
    assert (store.bytes_now, store.resident_now) == (KB, 0)
    assert kept.get()[0].eq(5).all()
    assert store.put(tensor(6)).get()[0].eq(6).all()


@pytest.mark.parametrize("how", ["missing", "unsupported"])
def test_where_space_cannot_be_set_aside_the_free_space_is_looked_at(stores, monkeypatch, how):
    if how == "missing":
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    else:

        def refuse(*_):
            raise OSError(errno.EOPNOTSUPP, "not supported")

        monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    store = stores(window_bytes=KB)
    assert store.put(tensor(3)).get()[0].eq(3).all()
    free = _files._SPARE + 2 * KB
    usage = shutil.disk_usage(store.directory)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))
    assert store.put(tensor(3)).get()[0].eq(3).all()
    free -= 1
    with pytest.raises(DiskFullError, match=f"which has {free} free .* bytes are left to others"):
        store.put(tensor())
    store.flush()
    assert files(store) == []


@pytest.mark.parametrize("place", ["missing", "a file/below", "/proc"])
def test_an_unwritable_directory(tmp_path, place):
    (tmp_path / "a file").write_text("")
    place = os.path.join(tmp_path, place)
    store = DiskStore(directory=place)
    for _ in range(2):
        with pytest.raises(
            OSError, match=r"DiskStore cannot make a directory in .* Name an existing, writable one"
        ) as caught:
            store.put(tensor())
        assert place in str(caught.value)
    assert (store.bytes_now, store.bytes_peak, store.directory) == (0, 0, None)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("torchadx-disk")]


def test_what_cannot_be_written_stays_in_memory_and_is_said_once(stores, monkeypatch):
    store = stores()
    with monkeypatch.context() as patch:

        def fail(*_):
            raise OSError(errno.EIO, "the disk is broken")

        patch.setattr(Files, "write", staticmethod(fail))
        stored = store.put(tensor(4))
        with pytest.raises(OSError, match=r"could not write or remove a file in .*the disk is broken") as caught:
            store.flush()
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.errno == errno.EIO
        assert repr(store.directory) in str(caught.value)
        store.flush()
        another = store.put(tensor(5))
        until(lambda: store._spool._failure)
        with pytest.raises(OSError, match="the disk is broken"):
            store.put(tensor())
    third = store.put(tensor(6))
    store.flush()
    assert [one.get()[0][0].item() for one in (stored, another, third, stored)] == [4, 5, 6, 4]
    assert (store.bytes_now, store.resident_now) == (3 * KB, 2 * KB)
    del stored, another, third
    store.flush()
    assert (store.bytes_now, store.resident_now, files(store)) == (0, 0, [])


def test_waiting_for_room_ends_when_writing_fails(stores, gate, monkeypatch):
    store = stores(window_bytes=KB)
    stored = store.put(tensor(4))
    until(lambda: gate.begun)
    os.unlink(os.path.join(store.directory, "1"))
    threading.Timer(0.1, gate.set).start()
    with pytest.raises(OSError, match="No such file"):
        store.put(tensor())
    assert stored.get()[0].eq(4).all()


def test_a_spoilt_file_is_an_error_when_it_is_read(stores):
    store = stores()
    short, gone, sound = (store.put(tensor()) for _ in range(3))
    store.flush()
    os.truncate(os.path.join(store.directory, "1"), 100)
    os.unlink(os.path.join(store.directory, "2"))
    for _ in range(2):
        assert sound.get()[0].eq(1).all()
        with pytest.raises(FileNotFoundError):
            gone.get()
        with pytest.raises(OSError, match="ends early: it was changed since a DiskStore wrote it"):
            short.get()
    del gone
    store.flush()


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
