"""The closure matrix over the Triton kernels, in Triton's interpreter, which is chosen once a process."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CLOSURE = Path(__file__).with_name("test_closure.py")
# an activation of each kind, and the transforms that meet every kernel
SELECTION = (
    "test_reduced_matrix and -op and (identity- or tanh- or gelu-) and not (quick or gelu_tanh) "
    "and not (jacrev or hessian or nested or hvp or (jvp and of))"
)
KERNELS = {"linear_kernel", "input_grad_kernel", "weight_grad_kernel", "dual_kernel", "dual_cotangents_kernel"}
PROGRAM = """
import sys
import pytest
from torchadx.kernels._launch import Launch

launched, run = set(), Launch.run

def noted(launch):
    launched.add(launch.kernel.fn.__name__)
    run(launch)

Launch.run = noted
status = pytest.main(sys.argv[1:])
print("launched:", *launched)
sys.exit(status)
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this process interprets the kernels itself")
def test_the_closure_matrix_over_interpreted_kernels():
    command = [sys.executable, "-c", PROGRAM, "-q", "-p", "no:cacheprovider", str(CLOSURE), "-k", SELECTION]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, cwd=CLOSURE.parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 60
    assert set(re.search(r"^launched: (.*)$", done.stdout, re.MULTILINE)[1].split()) >= KERNELS
