"""A disk that is full, broken or gone: said clearly, and nothing is lost."""

import errno
import os
import shutil
import threading

import pytest
from disk_helpers import KB, files, tensor, until

from torchadx.memory.stores import DiskFullError, DiskStore, _files, _spool
from torchadx.memory.stores._files import Files


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
    store = stores(capacity_bytes=2 * KB)
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
            OSError, match=r"DiskStore cannot make a directory in .* Name an existing, writable directory"
        ) as caught:
            store.put(tensor())
        assert place in str(caught.value)
    assert (store.bytes_now, store.bytes_peak, store.directory) == (0, 0, None)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("torchadx-disk")]


def test_a_directory_that_vanished(stores):
    store = stores()
    kept = store.put(tensor())
    store.flush()
    shutil.rmtree(store.directory)
    with pytest.raises(OSError, match=r"DiskStore cannot make a file in .*: No such file or directory"):
        store.put(tensor())
    assert store.bytes_now == KB
    with pytest.raises(FileNotFoundError):
        kept.get()
    store.close()
    assert store.put(tensor(3)).get()[0].eq(3).all()


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
