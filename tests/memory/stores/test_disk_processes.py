"""What is left of a disk store when its process ends, however it does, or forks; and limits of the process."""

import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX processes")

HEAD = """
import os, resource, sys, threading
import torch
from torchadx.memory.stores import DiskFullError, DiskStore, _files

store = DiskStore(directory=sys.argv[1])
stored = [store.put((torch.full((1000,), float(number)),)) for number in range(50)]
directory = store.directory
assert os.path.isdir(directory)
"""


def run(body, directory):
    script = HEAD + textwrap.dedent(body)
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(directory)], capture_output=True, text=True, timeout=120
    )


def test_files_are_gone_after_an_unhandled_exception_and_queued_work_is_not_waited_for(tmp_path):
    ended = run(
        """
        held = threading.Event()
        _files.Files.write = staticmethod(lambda *_: held.wait(100))
        stored += [store.put((torch.ones(1000),)) for _ in range(10)]
        raise KeyError("on purpose")
        """,
        tmp_path,
    )
    assert ended.returncode == 1
    assert ended.stderr.rstrip().endswith("KeyError: 'on purpose'")
    assert ended.stderr.count("Traceback") == 1
    assert os.listdir(tmp_path) == []


def test_forks_leave_the_files_alone_and_limits_are_a_full_disk(tmp_path):
    ended = run(
        """
        # with soft limits a file that is too large is refused, like one for which there is no space
        soft = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, soft[1]))
        before = store.bytes_now
        try:
            store.put((torch.ones(100_000),))
        except DiskFullError as error:
            print("full:", "needs 400000 bytes" in str(error) and directory in str(error))
        resource.setrlimit(resource.RLIMIT_FSIZE, soft)
        store.flush()
        print("unchanged:", store.bytes_now == before, len(os.listdir(directory)) == 50)

        child = os.fork()
        if child == 0:
            try:
                stored[0].get()
            except RuntimeError as error:
                print("child:", "run backward in the process that ran forward" in str(error))
            del stored[:10]
            mine = store.put((torch.full((10,), 7.0),))
            print("child has its own:", store.directory != directory, mine.get()[0].eq(7).all().item(), store.bytes_now)
            sys.exit()
        print("ended:", os.waitpid(child, 0)[1])
        store.flush()
        print("still there:", len(os.listdir(directory)), [one.get()[0][0].item() for one in stored[:3]])
        print("alone:", os.listdir(sys.argv[1]) == [os.path.basename(directory)], flush=True)
        """,
        tmp_path,
    )
    assert ended.stderr == ""
    assert sorted(ended.stdout.splitlines()) == sorted(
        [
            "full: True",
            "unchanged: True True",
            "child: True",
            "child has its own: True True 40",
            "ended: 0",
            "still there: 50 [0.0, 1.0, 2.0]",
            "alone: True",
        ]
    )
    assert ended.returncode == 0
    assert os.listdir(tmp_path) == []
