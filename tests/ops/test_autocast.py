"""Autocast on the CPU: dtypes as in eager PyTorch, and values as near to float64."""

import pytest
import torch
import torch.autograd.forward_ad as fwAD
import torch.nn.functional as F

import torchadx
from torchadx import activations

ROUTES = {
    "functional": torchadx.linear,
    "op": torch.ops.torchadx.linear,
    "saving op": lambda *args: torch.ops.torchadx.linear_saving(*args)[0],
}
every_route = pytest.mark.parametrize("route", ROUTES)
every_activation = pytest.mark.parametrize("act", [row.name for row in activations.ROWS])
HALVES = [torch.bfloat16, torch.float16]


def operands(dtype=torch.float32):
    return tuple(torch.randn(*shape).to(dtype) for shape in ((6, 16), (8, 16), (8,)))


def plain_linear(x, w, b, act):
    return activations.resolve(act).forward(F.linear(x, w, b))


def results(linear, args, tangents, act, dtype):
    """Value, gradients, and tangents of both kinds, computed under autocast."""
    leaves = [t.clone().requires_grad_() for t in args]
    with torch.autocast("cpu", dtype):
        y = linear(*leaves, act)
        pushed = torch.func.jvp(lambda *a: linear(*a, act), args, tangents)[1]
        with fwAD.dual_level():
            dual = fwAD.unpack_dual(linear(fwAD.make_dual(args[0], tangents[0]), *args[1:], act)).tangent
    grads = torch.autograd.grad(y, leaves, torch.linspace(-1, 1, y.numel()).reshape(y.shape).to(y.dtype))
    return y.detach(), pushed, dual, *grads


def distance(got, exact):
    return ((got.double() - exact.double()).norm() / exact.double().norm()).item()


@every_route
@every_activation
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_as_near_as_eager_with_its_dtypes(act, route, dtype):
    args, tangents = operands(), operands()
    got = results(ROUTES[route], args, tangents, act, dtype)
    reference = results(plain_linear, args, tangents, act, dtype)
    # autocast leaves float64 alone
    exact = results(plain_linear, *(tuple(t.double() for t in column) for column in (args, tangents)), act, dtype)
    for value, eager, true in zip(got, reference, exact, strict=True):
        assert value.shape == eager.shape
        assert distance(value, true) <= 2 * distance(eager, true) + 1e-6
    # float32 weights have float32 gradients
    assert [t.dtype for t in got] == [dtype] * 3 + [torch.float32] * 3


@every_route
def test_float64_is_left_alone(route):
    args = operands(torch.float64)
    with torch.autocast("cpu"):
        y = ROUTES[route](*args, "gelu")
    torch.testing.assert_close(y, plain_linear(*args, "gelu"), rtol=1e-12, atol=1e-12)


MIXTURES = {
    "x bfloat16": (torch.bfloat16, torch.float32, torch.float32),
    "weight float16": (torch.float32, torch.float16, torch.float32),
    "bias bfloat16": (torch.float32, torch.float32, torch.bfloat16),
    "all different": (torch.float32, torch.float16, torch.bfloat16),
}


@pytest.mark.parametrize("dtypes", MIXTURES)
def test_mixed_dtypes_need_autocast(dtypes):
    args = [t.to(dtype).requires_grad_() for t, dtype in zip(operands(), MIXTURES[dtypes], strict=True)]
    with pytest.raises(ValueError, match=r"dtype.*autocast"):
        torchadx.linear(*args, "gelu")
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = torchadx.linear(*args, "gelu"), plain_linear(*args, "gelu")
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected)
    grads = torch.autograd.grad(y.sum(), args)
    assert [g.dtype for g in grads] == [t.dtype for t in args]


@pytest.mark.parametrize("position", [0, 1, 2])
def test_autocast_does_not_unify_float64(position):
    args = list(operands())
    args[position] = args[position].double()
    with torch.autocast("cpu"), pytest.raises(ValueError, match=r"float64"):
        torchadx.linear(*args, "gelu")


@every_route
def test_autocast_can_be_disabled_inside(route):
    args = operands()
    with torch.autocast("cpu"):
        with torch.autocast("cpu", enabled=False):
            inside = ROUTES[route](*args, "tanh")
        outside = ROUTES[route](*args, "tanh")
    assert (inside.dtype, outside.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(inside, plain_linear(*args, "tanh"))


@every_activation
def test_linear_dual_and_jvp_cast_tangents_too(act):
    args, tangents = operands(), operands()
    with torch.autocast("cpu"):
        y, z, ty, tz = torch.ops.torchadx.linear_dual(*args, *tangents, act)
        again = torch.ops.torchadx.linear_jvp(*args, *tangents, act)
    expected = torch.ops.torchadx.linear_dual(*(t.bfloat16() for t in (*args, *tangents)), act)
    torch.testing.assert_close((y, z, ty, tz), expected)
    torch.testing.assert_close(again, (y, ty))


def test_backward_under_autocast_equals_backward_outside():
    args = [t.requires_grad_() for t in operands()]
    with torch.autocast("cpu"):
        y = torchadx.linear(*args, "gelu")
        inside = torch.autograd.grad(y.sum(), args, retain_graph=True)
    torch.testing.assert_close(inside, torch.autograd.grad(y.sum(), args))


@pytest.mark.parametrize("act", ["identity", "gelu"])
def test_a_module_trains_under_autocast(act):
    layer, x = torchadx.nn.Linear(16, 8, activation=act), torch.randn(6, 16)
    with torch.autocast("cpu"):
        loss = layer(x).float().square().mean()
    loss.backward()
    assert layer.weight.grad.dtype == layer.bias.grad.dtype == torch.float32
