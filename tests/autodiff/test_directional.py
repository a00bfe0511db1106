"""Directional derivatives of any order against nested Jacobians and known series."""

import contextlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

import torchadx
from torchadx.autodiff._directional import directional
from torchadx.autodiff._errors import DerivativeError


def double(*shape, **options):
    return torch.randn(shape, dtype=torch.float64, **options)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("activation", ["tanh", "gelu", "silu"])
def test_first_and_second_order_of_a_network(activation):
    network = torchadx.nn.Linear(4, 3, activation=activation).double()
    x, v = double(4), double(4)
    close(directional(network, x, v, order=0), network(x))
    close(directional(network, x, v), torch.func.jacrev(network)(x) @ v)
    close(directional(network, x, v, order=2), torch.func.hessian(network)(x) @ v @ v)


@settings(deadline=None, max_examples=15)
@given(order=st.integers(0, 5), shape=st.lists(st.integers(1, 3), max_size=3), seed=st.integers(0, 99))
def test_orders_of_a_known_series(order, shape, seed):
    torch.manual_seed(seed)
    x, v = double(*shape), double(*shape)
    close(directional(torch.exp, x, v, order=order), x.exp() * v**order)
    power = lambda x: x**3  # noqa: E731
    expected = math.perm(3, order) * x ** (3 - order) * v**order if order <= 3 else torch.zeros_like(x)
    close(directional(power, x, v, order=order), expected)


def test_trees_in_and_out():
    x = {"a": double(3), "b": [double(2)]}
    v = {"a": double(3), "b": [double(2)]}
    f = lambda x, k: {"y": (x["a"].sum() * x["b"][0], k * x["a"] ** 2)}  # noqa: E731
    first = directional(f, x, v, args=(3,))
    close(first["y"][0], v["a"].sum() * x["b"][0] + x["a"].sum() * v["b"][0])
    close(first["y"][1], 6 * x["a"] * v["a"])
    second = directional(f, x, v, order=2, args=(3,))
    close(second["y"][0], 2 * v["a"].sum() * v["b"][0])
    close(second["y"][1], 6 * v["a"] ** 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_is_kept(dtype):
    x = {"a": torch.ones(3, dtype=dtype), "b": torch.ones(2, dtype=torch.float64)}
    result = directional(lambda x: (x["a"] ** 2, x["b"] ** 2), x, x, order=2)
    assert [leaf.dtype for leaf in result] == [dtype, torch.float64]
    assert [leaf.tolist() for leaf in result] == [[2.0] * 3, [2.0] * 2]


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_differentiable_again(order):
    x, v = double(3, requires_grad=True), double(3, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, v: directional(lambda x: x.sin() * x.sum(), x, v, order=order), (x, v))
    assert not directional(torch.sin, x.detach(), v.detach(), order=order).requires_grad


def test_under_vmap_and_grad():
    X, v = double(5, 3), double(3)
    cube = lambda x: (x**3).sum()  # noqa: E731
    close(torch.func.vmap(lambda x: directional(cube, x, v, order=2))(X), (6 * X * v**2).sum(1))
    close(torch.func.grad(lambda x: directional(cube, x, v, order=2))(X[0]), 6 * v**2)


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("made_inside", [False, True])
def test_switched_off_grad_around_the_call(order, around, made_inside):
    x, v, w = double(4), double(4), double(4, requires_grad=True)
    with around() if made_inside else contextlib.nullcontext():
        x, v, w = x.clone(), v.clone(), w.clone()
    with around():
        result = directional(lambda x: (w * x).sin(), x, v, order=order)
    t = w * x
    close(result, ([t.sin(), t.cos() * w * v, -t.sin() * (w * v) ** 2][order]).detach().clone())
    assert not result.requires_grad


@pytest.mark.parametrize("around", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("order", [1, 2])
def test_switched_off_grad_in_the_function(around, off, order):
    def f(x):
        with off():
            y = x * 2
        return (y * x + x).sum()

    x, v = double(3), double(3)
    if off is torch.no_grad and around is not contextlib.nullcontext:
        with around():
            result = directional(f, x, v, order=order)
        close(result, ((4 * x + 1) * v).sum() if order == 1 else (4 * v**2).sum())
    else:
        with around(), pytest.raises(DerivativeError, match=r"no_grad|inference_mode"):
            directional(f, x, v, order=order)


def test_input_changed_in_place_is_an_error():
    x = double(3)
    before = x.clone()

    def element(x):
        x[0] = 1
        return x

    for f in (lambda x: x.mul_(2), element, lambda x: torch.sin(x, out=x)):
        with pytest.raises(DerivativeError, match=r"in place: let it work on x\.clone\(\)"):
            directional(f, x, x.clone())
    assert torch.equal(x, before)
    close(directional(lambda x: x.clone().mul_(2), x, x), 2 * x)


def test_missing_forward_formula_names_the_way_out():
    q = double(1, 2, 3, 4)
    f = lambda q: scaled_dot_product_attention(q, q, q)  # noqa: E731
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), pytest.raises(DerivativeError, match=r"SDPBackend\.MATH"):
        directional(f, q, q)
    with sdpa_kernel(SDPBackend.MATH):
        close(directional(f, q, q).flatten(), torch.func.jacrev(f)(q).reshape(24, 24) @ q.flatten())


@pytest.mark.parametrize("around", [contextlib.nullcontext, torch.no_grad])
def test_modules_with_shortcuts_of_their_own(around):
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).double().eval()
    lstm = nn.LSTM(4, 3, batch_first=True).double()
    x = double(2, 3, 4)
    with sdpa_kernel(SDPBackend.MATH), around():
        for f in (layer, lambda x: lstm(x)[0], lambda x: checkpoint(torch.sin, x, use_reentrant=False)):
            y = f(x)
            expected = torch.func.jacrev(f)(x) if f is layer else torch.func.jacfwd(f)(x)
            close(directional(f, x, x).flatten(), expected.reshape(y.numel(), -1) @ x.flatten())


def test_wrong_arguments():
    x = double(3)
    for order in (-1, 1.0, True, None):
        with pytest.raises(ValueError, match=f"order must be an integer from 0 on: got {order}"):
            directional(torch.sin, x, x, order=order)
    for order in (0, 1):
        with pytest.raises(TypeError, match=r"output of f .* got torch\.int64"):
            directional(lambda x: x.argsort(), x, x, order=order)
        with pytest.raises(TypeError, match="output of f must be made of tensors: got float"):
            directional(lambda x: (x, 1.0), x, x, order=order)
        with pytest.raises(ValueError, match=r"got \(1,\), expected \(3,\)"):
            directional(torch.sin, x, double(1), order=order)
