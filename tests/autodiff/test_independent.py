"""Outputs that do not depend on x, stop-gradients, and functions whose branches depend on values."""

import inspect
import warnings

import pytest
import torch
from points import MODES, point, says
from zoo import agree

from torchadx.autodiff import DerivativeError, IndependentOutputWarning, jacobian, plan_jacobian

X = point(4)
CONSTANT = point(4, name="constant")


@pytest.mark.parametrize("mode", MODES)
def test_outputs_that_do_not_depend_on_x(mode):
    def f(x):
        return {"here": x.sin(), "constant": CONSTANT, "shape": torch.zeros_like(x)}

    with pytest.warns(IndependentOutputWarning):
        got = jacobian(f, X, mode=mode)
    agree(got, torch.func.jacrev(f)(X))
    assert not got["constant"].any()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IndependentOutputWarning)
        assert plan_jacobian(f, X, mode=mode).notes


def test_outputs_that_do_not_depend_on_x_batched():
    with pytest.warns(IndependentOutputWarning):
        got = jacobian(lambda x: (x.sin(), torch.ones(len(x), 2, dtype=x.dtype)), point(3, 4), batched=True)
    assert got[1].shape == (3, 2, 4)
    assert not got[1].any()


def test_everything_depends_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert jacobian(lambda x: x.round() + x, X).shape == (4, 4)


def test_detach_is_a_stop_gradient_and_said():
    def f(x):
        return x * x.exp().detach()

    plan = plan_jacobian(f, X)
    agree(plan(X), torch.func.jacrev(f)(X))
    assert any("detach" in note for note in plan.notes)


def by_the_sign(x):
    h = x.sin()
    if h.sum() > 0:
        return h * x
    return h - x


def by_an_item(x):
    return x * x.max().item() ** 2


def by_a_mask(x):
    return x[x > x.mean()].square()


def by_a_list(x):
    return x * sum(x.tolist())


@pytest.mark.parametrize(
    ("f", "line"),
    [(by_the_sign, 2), (by_an_item, 1), (by_a_mask, 1), (by_a_list, 1)],
    ids=lambda f: getattr(f, "__name__", f),
)
def test_what_cannot_be_traced_is_named(f, line):
    number = inspect.getsourcelines(f)[1] + line
    plan = plan_jacobian(f, X)
    agree(plan(X), torch.func.jacrev(f)(X) if f is not by_a_list else torch.diag(X.sum().expand(4)))
    assert f"test_independent.py:{number}" in str(plan.explain()).replace('", line ', ":")
    assert plan.mode in ("forward", "reverse")
    assert plan.notes
    with says(DerivativeError, "mixed"):
        jacobian(f, X, mode="mixed")
    with says(DerivativeError, "factored"):
        jacobian(f, X, factored=True)


def test_branches_are_taken_anew_by_plans():
    plan = plan_jacobian(by_the_sign, X)
    for x in (X.abs(), -X.abs()):
        agree(plan(x), torch.func.jacrev(by_the_sign)(x))


def test_what_leaves_pytorch_is_an_error():
    with pytest.raises(RuntimeError, match=r"."):
        jacobian(lambda x: torch.from_numpy(x.numpy() * 2) * x, X)


def test_errors_of_the_function_itself_come_through():
    def f(x):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        jacobian(f, X)
    with pytest.raises(RuntimeError, match=r"shape|size"):
        jacobian(lambda x: x @ torch.ones(7, 2).double(), X)


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning")
def test_copies_by_torch_tensor_stop_derivatives():
    def f(x):
        return x * torch.tensor(x)

    plan = plan_jacobian(f, X)
    agree(plan(X), torch.func.jacrev(f)(X))
    assert any("detach" in note for note in plan.notes)
