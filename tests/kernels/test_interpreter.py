"""Run the numerical tests interpreted: Triton decides when it is imported, so they get a process of their own."""

import pathlib

FILES = ("test_numerics.py", "test_math.py", "test_dual_cotangents.py", "test_quantize.py")
#: Fewer passing tests than this would mean that many were skipped.
LEAST = 390


def test_numerics_in_the_interpreter(passed_when_interpreted):
    here = pathlib.Path(__file__).parent
    assert passed_when_interpreted(*(here / file for file in FILES)) >= LEAST
