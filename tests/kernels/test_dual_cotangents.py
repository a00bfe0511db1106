"""Values of the elementwise kernel behind backward through a tangent, and the machine code it becomes."""

import itertools

import pytest
import torch

from torchadx.activations import known, resolve
from torchadx.kernels import interpreting, linear_dual_cotangents, untranslatable
from torchadx.kernels.dual_cotangents import plan_dual_cotangents
from torchadx.ops._linear_formulas import dual_cotangents

from .compiling import ARCHITECTURES, compile_for
from .reference import DTYPES, LAYOUTS, assert_near, move, random

NAMES = ("gy", "gz", "gty", "gtz", "kept", "tz")
ROWS = [row for row in known() if row.keeps != "nothing"]
ABSENT = ((), ("gy",), ("gz", "gtz"), ("gy", "gz"), ("gy", "gz", "gtz"))


def operands(row, dtype, batch, layout, absent, shape=(5, 260)):
    """Make random operands; kept is an output of the activation where that is what it keeps."""
    made = {}
    for seed, name in enumerate(NAMES):
        lead = (batch,) if batch and name in ("gty", "gtz", "tz") else ()
        made[name] = None if name in absent else random(*lead, *shape, dtype=dtype, layout=layout, seed=seed)
    if row.keeps == "output":
        made["kept"] = row.value(made["kept"].float()).to(dtype)
    return made


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values(device, row, dtype):
    choices = itertools.product((0, 2), LAYOUTS, ABSENT)
    # every seventh combination, each activation and dtype from another one on
    first = (ROWS.index(row) + 2 * DTYPES.index(dtype)) % 7
    for batch, layout, absent in itertools.islice(choices, first, None, 7):
        tensors = operands(row, dtype, batch, layout, absent)
        got = linear_dual_cotangents(*(move(t, device) for t in tensors.values()), row)
        plain = dual_cotangents(*tensors.values(), row)
        exact = dual_cotangents(*(t if t is None else t.double() for t in tensors.values()), row)
        assert all(t.dtype == dtype and t.is_contiguous() for t in got)
        assert_near(*(dict(zip(("g", "a"), pair, strict=True)) for pair in (got, plain, exact)))


def test_every_second_derivative_has_a_translation():
    assert [untranslatable(row, ("second_derivative",)) for row in known()] == [None] * len(list(known()))


def test_wrong_shapes_are_named(device):
    tensors = operands(resolve("gelu"), torch.float32, 0, "contiguous", ())
    tensors["tz"] = tensors["tz"][:2]
    with pytest.raises(ValueError, match="tz must have shape"):
        linear_dual_cotangents(*(move(t, device) for t in tensors.values()), resolve("gelu"))


@pytest.mark.skipif(interpreting(), reason="kernels are interpreted in this process; unset TRITON_INTERPRET")
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_machine_code(monkeypatch, architecture):
    """Elementwise: nothing spilled, nothing in shared memory."""
    monkeypatch.setattr(torch.version, "hip", "7" if architecture.capability[0] == "hip" else None)
    row = resolve("mish")

    def meta(*shape):
        return torch.empty(shape, dtype=torch.bfloat16, device="meta")

    matrix, batch = meta(8192, 4096), meta(8, 8192, 4096)
    launch = plan_dual_cotangents(matrix, matrix, batch, batch, matrix, batch, matrix, batch, row)
    machine = compile_for(launch, architecture)
    assert machine.spills == machine.shared == 0
