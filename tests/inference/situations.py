"""The gradient modes, and the tensors to meet in them."""

import warnings

import pytest
import torch

MODES = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}
every_mode = pytest.mark.parametrize("mode", MODES)


def near(got, expected):
    """Compare (nested) results in float64."""
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def draw(*shape, dtype=torch.float64):
    return torch.randn(*(shape or (3, 4)), dtype=dtype)


def born(*shape, dtype=torch.float64):
    """Draw an inference tensor."""
    with torch.inference_mode():
        return draw(*shape, dtype=dtype)


def said(call):
    """What a call warns of, and nothing but ``UserWarning``."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert all(one.category is UserWarning for one in caught)
    return [str(one.message) for one in caught]


def told(call, name):
    """Whether exactly one of the warnings of a call names an argument."""
    return sum(name in one for one in said(call)) == 1
