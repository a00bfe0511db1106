"""The math that formulas are translated to: small relative errors, also near zero, and torch's special values."""

import pytest
import torch
import triton
import triton.language as tl

from torchadx.activations import VOCABULARY
from torchadx.kernels._math import torch_in_triton

FUNCTIONS = [name for name in VOCABULARY if name not in ("ones_like", "where", "zeros_like")]


@triton.jit
def apply(x_ptr, y_ptr, size, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    """Apply a function to a vector."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + index, FUNCTION(tl.load(x_ptr + index, mask=index < size)), mask=index < size)


def run(name, x, device):
    """Return what the translated function makes of an fp32 vector."""
    x = x.to(device)
    y = torch.empty_like(x)
    apply[(triton.cdiv(x.numel(), 1024),)](x, y, x.numel(), FUNCTION=getattr(torch_in_triton, name), BLOCK=1024)
    return y.cpu()


def magnitudes(smallest, largest):
    """Return numbers of both signs, evenly spread over the orders of magnitude."""
    positive = torch.logspace(smallest, largest, 3000, dtype=torch.float64).float()
    return torch.cat([-positive.flip(0), positive])


def test_every_function_of_the_vocabulary_is_there():
    assert set(VOCABULARY) <= set(vars(torch_in_triton))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_relative_error(device, name):
    x = magnitudes(-30, 1.9)
    if name in ("log", "sqrt"):
        x = x[x > 0]
    if name == "log1p":
        x = x[x > -1]
    exact = getattr(torch, name)(x.double())
    # exp(x) loses |x| rounding errors of its argument on a GPU; torch's own pass 1e-6 at no more than |x| = 16
    allowed = 1e-6 * (1 + x.double().abs() / 16)
    normal = exact.abs() > torch.finfo(torch.float32).tiny
    error = ((run(name, x, device).double() - exact) / exact).abs()
    worst = (error / allowed)[normal].argmax()
    assert (error <= allowed)[normal].all(), f"{name}({x[normal][worst]}): relative error {error[normal][worst]:.1e}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_special_values(device, name):
    x = torch.tensor([-torch.inf, -1e30, -88.0, -1.0, -0.0, 0.0, 1.0, 88.0, 1e30, torch.inf, torch.nan])
    torch.testing.assert_close(run(name, x, device), getattr(torch, name)(x), rtol=1e-5, atol=1e-35, equal_nan=True)
