"""Every way to run a linear layer on a prepared weight, against float64, by the house rule."""

import pytest
import torch
import torch.nn.functional as F

from torchadx.activations import known, resolve
from torchadx.inference._ways import BY_NAME, WAYS

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INPUTS = {
    "rows": lambda: torch.randn(5, 24),
    "one vector": lambda: torch.randn(24),
    "one row": lambda: torch.randn(1, 24),
    "batches": lambda: torch.randn(2, 3, 24),
    "strided": lambda: torch.randn(24, 7).t(),
    "every other": lambda: torch.randn(5, 48)[:, ::2],
    "repeated": lambda: torch.randn(1, 24).expand(6, 24),
}


def check(way, x, bias, row, dtype):
    """The error is at most twice that of plain PyTorch in the same dtype, plus 1e-6."""
    weight = torch.randn(17, 24)
    x, weight, bias = (None if t is None else t.to(dtype) for t in (x, weight, bias))
    exact = row.forward(F.linear(x.double(), weight.double(), None if bias is None else bias.double()))
    y = way.run(x, weight if way.prepare is None else way.prepare(weight, dtype), bias, row)
    plain = row.forward(F.linear(x, weight, bias))
    assert y.shape == plain.shape
    assert y.dtype is dtype
    allowed = 2 * (plain.double() - exact).abs().max() + 1e-6 * exact.abs().max().clamp_min(1)
    assert (y.double() - exact).abs().max() <= allowed


def serves(way, dtype):
    return way.name != "packed" or way.serves(torch.randn(17, 24), dtype)


@pytest.mark.parametrize("row", list(known()), ids=lambda row: row.name)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_every_activation(way, row):
    for dtype in filter(lambda dtype: serves(way, dtype), DTYPES):
        check(way, torch.randn(5, 24), torch.randn(17), row, dtype)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_every_input(way, name, bias):
    for dtype in filter(lambda dtype: serves(way, dtype), DTYPES):
        check(way, INPUTS[name](), torch.randn(17) if bias else None, resolve("gelu"), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "weight", [lambda: torch.randn(17, 24), lambda: torch.randn(24, 17).t()], ids=["rows", "columns"]
)
def test_one_of_them_serves(weight, dtype):
    found = [way.name for way in WAYS if way.serves(weight(), dtype)]
    assert found
    assert ("cast" in found) == (dtype is not torch.float32)
    assert ("plain" in found) == (dtype is torch.float32)


def test_what_is_prepared_is_a_copy():
    for way in WAYS:
        if way.prepare is not None:
            weight = torch.randn(17, 24, requires_grad=True)
            copy = way.prepare(weight, torch.float32)
            assert not copy.requires_grad
            before = way.run(torch.ones(24), copy, None, resolve(None))
            with torch.no_grad():
                weight.zero_()
            after = way.run(torch.ones(24), copy, None, resolve(None))
            assert torch.equal(before, after) or way.name == "cast"
    assert set(BY_NAME) == {"packed", "cast", "plain", "transposed"}
