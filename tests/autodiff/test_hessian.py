"""Hessians against torch.func.hessian and, over the zoo, against plain autograd."""

import dataclasses
import pickle

import pytest
import torch
import torch.nn.functional as F
from memory_probe import peak_above
from points import network, point
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from zoo import CASES, UNTRACEABLE, agree

from torchadx.autodiff import DerivativeError, hessian, jacobian, plan_hessian

MODES = ["auto", "forward", "reverse"]


def scalar(f):
    """A smooth function of all that f returns, with derivatives of every order."""

    def value(x):
        return sum(
            (leaf * torch.linspace(0.5, 2, leaf.numel(), dtype=leaf.dtype).view_as(leaf)).sin().sum()
            for leaf in tree_leaves(f(x))
        )

    return value


def energy(x):
    return (x.sin() * x.roll(1, -1)).sum() + x.square().prod()


@pytest.mark.parametrize("case", [*CASES, *UNTRACEABLE], ids=str)
def test_hessians_of_the_zoo(case):
    with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
        expected = torch.autograd.functional.hessian(scalar(case.f), case.x)
        agree(hessian(scalar(case.f), case.x), expected)


@pytest.mark.parametrize(
    "f", [energy, lambda x: torch.stack([energy(x), x.exp().sum()]), torch.sin, lambda x: (x**3).sum()]
)
@pytest.mark.parametrize("shape", [(4,), (2, 3)])
@pytest.mark.parametrize("mode", MODES)
def test_hessian(f, shape, mode):
    x = point(*shape)
    got = hessian(f, x, mode=mode)
    assert got.shape == f(x).shape + x.shape + x.shape
    agree(got, torch.func.hessian(f)(x))


def test_of_a_number():
    x = torch.tensor(0.7, dtype=torch.float64)
    agree(hessian(lambda x: x.sin() * x, x), torch.func.hessian(lambda x: x.sin() * x)(x))


@pytest.mark.parametrize("argnums", [0, 1, (0, 1), (1,)], ids=str)
def test_argnums(argnums):
    def f(x, y):
        return (x.sin()[:, None] * y).square().sum() * x.sum()

    args = point(3), point(2, name="y")
    agree(hessian(f, *args, argnums=argnums), torch.func.hessian(f, argnums=argnums)(*args))


def test_trees_in_and_out():
    def f(state):
        product = state["a"].sin() @ state["b"][0]
        return {"value": product.square().sum(), "parts": (product,)}

    state = {"a": point(2, name="a"), "b": [point(2, 3, name="b")]}
    agree(hessian(f, state), torch.func.hessian(f)(state))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("chunk", ["auto", 1, 4])
def test_batched(mode, chunk):
    model, x = network(4, 6, 1), point(5, 4)
    expected = torch.func.vmap(torch.func.hessian(lambda row: model(row).sum()))(x)
    agree(hessian(lambda x: model(x).sum(1), x, batched=True, mode=mode, chunk=chunk), expected)
    vector = torch.func.vmap(torch.func.hessian(network(4, 3, 2)))(x)
    agree(hessian(network(4, 3, 2), x, batched=True, mode=mode, chunk=chunk), vector)


def test_batched_samples_that_are_mixed():
    with pytest.raises(DerivativeError, match=r"(?i)sample|batch"):
        hessian(lambda x: (x - x.mean(0)).square().sum(1), point(5, 3), batched=True)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_chunks(chunk):
    model, x = network(7, 5, 1), point(7)
    agree(hessian(lambda x: model(x).sum(), x, chunk=chunk), torch.func.hessian(lambda x: model(x).sum())(x))


def test_symmetric_and_the_jacobian_of_the_gradient():
    x = point(6)
    H = hessian(energy, x)
    agree(H, H.T)
    agree(H, jacobian(torch.func.grad(energy), x))


def test_plans():
    plan = plan_hessian(energy, point(5))
    for name in "ab":
        agree(plan(point(5, name=name)), torch.func.hessian(energy)(point(5, name=name)))
    with pytest.raises(ValueError, match=r"."):
        plan(point(6))
    with pytest.raises(ValueError, match=r"."):
        plan(point(5).float())
    loaded = pickle.loads(pickle.dumps(plan))
    with pytest.raises(DerivativeError, match="bind"):
        loaded(point(5))
    agree(loaded.bind(energy)(point(5)), torch.func.hessian(energy)(point(5)))
    assert plan.mode in str(plan.explain())


def test_plans_see_the_weights_of_the_moment():
    model, x = network(4, 6, 1), point(4)
    plan = plan_hessian(lambda x: model(x).sum(), x)
    with torch.no_grad():
        model[0].weight.mul_(2)
    agree(plan(x), torch.func.hessian(lambda x: model(x).sum())(x))


def test_memory_limits_hold():
    model, x = network(40, 30, 1).requires_grad_(False), point(40)

    def f(x):
        return model(x).sum()

    free = plan_hessian(f, x)
    limit = max(free.peak_bytes, peak_above(lambda: free(x))[1])
    for fraction in (1.0, 0.5):
        try:
            plan = plan_hessian(f, x, memory=int(limit * fraction))
        except DerivativeError:
            assert fraction < 1
            continue
        got, used = peak_above(lambda plan=plan: plan(x))
        agree(got, torch.func.hessian(f)(x))
        assert used <= limit * fraction
    with pytest.raises(DerivativeError, match=r"\d"):
        hessian(f, x, memory=16)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_grad_mode_around_it(context):
    x = point(4).requires_grad_()
    with context():
        H = hessian(energy, x)
    assert not H.requires_grad
    agree(H, torch.func.hessian(energy)(point(4)))


def test_third_derivatives():
    weight = point(4, name="weight").requires_grad_()
    x = point(4).requires_grad_()

    def value(x, weight):
        return hessian(lambda x: (x * weight).sin().prod() + (x**3 * weight).sum(), x).square().sum()

    assert torch.autograd.gradcheck(value, (x, weight))


def test_loud():
    with pytest.raises(DerivativeError, match="no_grad"):
        hessian(torch.no_grad()(energy), point(4))
    with pytest.raises(DerivativeError, match="random"):
        hessian(lambda x: F.dropout(x).square().sum(), point(4))
    x = point(4)
    with pytest.raises(DerivativeError, match=r"(?i)in.?place"):
        hessian(lambda x: x.mul_(2).square().sum(), x)
    assert torch.equal(x, point(4))
    with pytest.raises(TypeError, match="int64"):
        hessian(lambda x: x.sum(), torch.arange(3))


def test_one_draw_for_all_directions():
    H = hessian(lambda x: F.dropout(x).pow(3).sum() / 6, torch.ones(12).double(), randomness="same")
    assert set(H.diagonal().tolist()) <= {0.0, 8.0}
    agree(H, torch.diag(H.diagonal()))


def test_linear_functions_have_no_curvature():
    case = next(case for case in CASES if case.name == "linear_only")
    got = hessian(dataclasses.replace(case).f, case.x)
    assert got.shape == (3, 3, 3, 4, 3, 4)
    assert not got.any()
