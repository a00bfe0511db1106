"""What PyTorch itself does with tangents where the wrapper is used: a failure here says that PyTorch has changed."""

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from torch import nn


def tangent(x):
    return fwAD.unpack_dual(x).tangent


def cubes(x):
    return (x**3).sum()


@pytest.fixture
def pair():
    return torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)


@pytest.fixture
def linear():
    return nn.Linear(4, 2, dtype=torch.float64)


# tangents inside inference mode


def test_make_dual_drops_the_tangent(pair):
    with fwAD.dual_level():
        with torch.inference_mode():
            dual = fwAD.make_dual(*pair)
            assert tangent(dual) is None
        assert tangent(dual) is None, "it was never there"


def test_unpack_dual_does_not_see_the_tangent_that_is_there(pair):
    with fwAD.dual_level():
        dual = fwAD.make_dual(*pair)
        with torch.inference_mode():
            assert tangent(dual) is None
            with torch.inference_mode(False):
                assert torch.equal(tangent(dual), pair[1])
            assert tangent(dual) is None
        assert torch.equal(tangent(dual), pair[1])


def test_operations_drop_the_tangent(pair, linear):
    with fwAD.dual_level():
        dual = fwAD.make_dual(*pair)
        with torch.inference_mode():
            computed, viewed = linear(dual), dual.T
            with torch.inference_mode(False), torch.no_grad():
                seen = linear(dual)
        assert tangent(computed) is None
        assert computed.is_inference()
        assert torch.equal(tangent(viewed), pair[1].T), "a view keeps it"
        assert not viewed.is_inference()
        torch.testing.assert_close(tangent(seen), pair[1] @ linear.weight.detach().T, rtol=1e-10, atol=1e-10)


def test_operations_drop_the_tangent_of_a_parameter(pair, linear):
    weight = linear.weight.detach()
    del linear.weight
    with fwAD.dual_level():
        linear.weight = fwAD.make_dual(weight, torch.ones_like(weight))
        with torch.inference_mode():
            computed = linear(pair[0])
        assert tangent(computed) is None
        assert tangent(linear(pair[0])) is not None


def test_a_dual_level_inside_inference_mode_changes_nothing(pair):
    with torch.inference_mode(), fwAD.dual_level():
        assert tangent(fwAD.make_dual(*pair)) is None
        with torch.enable_grad():
            assert tangent(fwAD.make_dual(*pair)) is None


def test_duals_work_under_no_grad(pair, linear):
    with torch.no_grad(), fwAD.dual_level():
        got = tangent(linear(fwAD.make_dual(*pair)))
    torch.testing.assert_close(got, pair[1] @ linear.weight.detach().T, rtol=1e-10, atol=1e-10)


def test_an_inference_tensor_made_dual_outside_loses_its_tangent_too(pair):
    with torch.inference_mode():
        primal, direction = (some.clone() for some in pair)
    with fwAD.dual_level():
        dual = fwAD.make_dual(primal, pair[1])
        assert dual.is_inference()
        assert torch.equal(tangent(dual), pair[1]), "it is there"
        assert tangent(dual.sin()) is None, "but no operation on inference tensors alone sees it"
        assert torch.equal(tangent(dual.clone()), pair[1]), "except a copy"
        assert tangent(dual[0]) is None
        assert torch.equal(tangent(dual + pair[0]), pair[1]), "one with a normal tensor does"
        both = fwAD.make_dual(primal, direction)
        assert tangent(both) is None
        assert tangent(both + pair[0]) is None
        assert torch.equal(tangent(fwAD.make_dual(pair[0], direction).exp()), pair[0].exp() * direction)


# derivatives asked for inside inference mode


@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
def test_jacobian_is_zero(pair, linear, strategy):
    with torch.inference_mode():
        got = torch.autograd.functional.jacobian(
            linear, pair[0][0], strategy=strategy, vectorize=strategy == "forward-mode"
        )
    assert torch.equal(got, torch.zeros(2, 4, dtype=torch.float64))
    assert linear.weight.abs().min() > 0


@pytest.mark.parametrize("name", ["jvp", "vjp", "hessian"])
def test_autograd_functional_is_zero(pair, name):
    given = {"jvp": (pair[0], pair[1]), "vjp": (pair[0],), "hessian": (pair[0][0],)}[name]
    with torch.inference_mode():
        got = getattr(torch.autograd.functional, name)(cubes, *given)
    assert not (got if name == "hessian" else got[1]).any()


def test_torch_func_around_is_right_inside(pair, linear):
    x, t = pair
    weight = linear.weight.detach()
    with torch.inference_mode():
        assert torch.equal(torch.func.grad(cubes)(x), 3 * x**2)
        torch.testing.assert_close(torch.func.jvp(linear, (x,), (t,))[1], t @ weight.T, rtol=1e-10, atol=1e-10)
        assert torch.equal(torch.func.jacrev(linear)(x[0]), weight)
        assert torch.equal(torch.func.jacfwd(linear)(x[0]), weight)
        assert torch.equal(torch.func.hessian(cubes)(x[0]), torch.diag(6 * x[0]))


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")
def test_linearize_is_zero(pair, linear):
    with torch.inference_mode():
        value, product = torch.func.linearize(linear, pair[0])
        assert not product(pair[1]).any()
        assert torch.equal(value, linear(pair[0]))


def test_torch_func_around_inference_mode_is_zero(pair):
    def inside(x):
        with torch.inference_mode():
            return x.sin()

    x, t = pair
    value, derivative = torch.func.jvp(inside, (x,), (t,))
    assert torch.equal(value, x.sin())
    assert torch.equal(derivative, torch.zeros_like(x))
    assert not torch.func.jacrev(inside)(x[0]).any()
    assert torch.equal(torch.vmap(inside)(x), x.sin())


def test_no_grad_in_a_function_reverse_and_forward_disagree(pair):
    def inside(x):
        with torch.no_grad():
            return x.sin()

    assert not torch.func.jacrev(inside)(pair[0][0]).any()
    torch.testing.assert_close(torch.func.jacfwd(inside)(pair[0][0]), torch.diag(pair[0][0].cos()))


def test_enable_grad_inside_records_nothing(pair, linear):
    with torch.inference_mode():
        assert not torch.is_grad_enabled()
        with torch.enable_grad():
            assert torch.is_grad_enabled()
            assert not linear(pair[0]).requires_grad
            with torch.inference_mode(False):
                assert torch.is_grad_enabled()
                assert linear(pair[0]).requires_grad
