"""Run the numerical tests interpreted: Triton decides when it is imported, so they get a process of their own."""

import os
import pathlib
import re
import subprocess
import sys

FILES = ("test_numerics.py", "test_math.py", "test_dual_cotangents.py", "test_quantize.py")
#: Fewer passing tests than this would mean that many were skipped.
LEAST = 390


def test_numerics_in_the_interpreter():
    here = pathlib.Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", *(here / f for f in FILES)],
        cwd=here.parents[1],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    tail = (done.stdout + done.stderr)[-8000:]
    assert done.returncode == 0, tail
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None, tail
    assert int(passed[1]) >= LEAST, tail
