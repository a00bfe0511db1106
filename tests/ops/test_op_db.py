"""PyTorch's own samples: those of ``nn.functional.linear``, and those of each activation through a linear layer."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_utils import noncontiguous_like

import torchadx
from torchadx import activations

LINEAR = next(op for op in op_db if op.name == "nn.functional.linear")
# the entry of op_db for each row that has one
ENTRIES = {
    "relu": "nn.functional.relu",
    "leaky_relu": "nn.functional.leaky_relu",
    "elu": "nn.functional.elu",
    "gelu": "nn.functional.gelu",
    "gelu_tanh": "nn.functional.gelu",
    "silu": "nn.functional.silu",
    "mish": "nn.functional.mish",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "softplus": "nn.functional.softplus",
    "hardswish": "nn.functional.hardswish",
}
DTYPES = (torch.float64, torch.float32, torch.bfloat16)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def plain_linear(x, w, b, act):
    return activations.resolve(act).forward(F.linear(x, w, b))


def distance(got, exact):
    norm = exact.double().norm()
    return ((got.double() - exact.double()).norm() / norm).item() if norm > 0 else got.double().norm().item()


def results(linear, tensors, act):
    """Value, gradients, and the tangent along the tensors themselves."""
    f = lambda *some: linear(*some, *[None] * (3 - len(some)), act)  # noqa: E731
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = f(*leaves)
    pushed = torch.func.jvp(f, tuple(tensors), tuple(tensors))[1]
    return y.detach(), pushed, *torch.autograd.grad(y, leaves, torch.ones_like(y))


def check(tensors, act):
    got, reference = results(torchadx.linear, tensors, act), results(plain_linear, tensors, act)
    exact = results(plain_linear, [t.double() for t in tensors], act)
    for value, plain, true in zip(got, reference, exact, strict=True):
        assert (value.dtype, value.shape) == (plain.dtype, plain.shape)
        assert distance(value, true) <= 2 * distance(plain, true) + 1e-6


@every_dtype
@pytest.mark.parametrize("act", ["identity", "gelu", "tanh"])
def test_samples_of_linear(act, dtype):
    samples = list(LINEAR.sample_inputs("cpu", dtype))
    assert len(samples) >= 16
    for sample in samples:
        tensors = [t.detach() for t in (sample.input, *sample.args)]
        check(tensors, act)
        check([noncontiguous_like(t) for t in tensors], act)


@every_dtype
@pytest.mark.parametrize("act", ENTRIES)
def test_samples_of_activations_through_an_identity_weight(act, dtype):
    entry = next(op for op in op_db if op.name == ENTRIES[act])
    inputs = [sample.input.detach() for sample in entry.sample_inputs("cpu", dtype)]
    inputs = [x for x in inputs if x.dim() > 0]
    assert inputs
    for x in inputs:
        check((x, torch.eye(x.shape[-1], dtype=dtype)), act)
