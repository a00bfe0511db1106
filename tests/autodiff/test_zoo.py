"""Jacobians of the whole zoo, by every mode, against PyTorch's own to ten digits."""

import dataclasses
import warnings

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from zoo import CASES, UNTRACEABLE, agree, seeded

from torchadx.autodiff import jacobian, plan_jacobian

EVERY = [*CASES, *UNTRACEABLE]
SINGLE = [case for case in CASES if isinstance(case.f(case.x), torch.Tensor)]
BATCHED = [case for case in EVERY if case.batched_ok]


def each(cases):
    return pytest.mark.parametrize("case", cases, ids=str)


def parameters(case):
    return list(case.f.parameters()) if isinstance(case.f, nn.Module) else []


def elsewhere(case):
    """The case at another point, where other branches of relu, max and sort are taken."""
    return dataclasses.replace(case, x=case.x.flip(-1) * -0.8 + 0.1 if case.x.dim() else case.x - 1)


def test_the_zoo_is_large_and_its_animals_small():
    names = [case.name for case in EVERY]
    assert len(set(names)) == len(names) >= 100
    for case in EVERY:
        outputs = tree_leaves(case.f(case.x))
        assert {leaf.dtype for leaf in (case.x, *outputs)} == {torch.float64}
        assert case.x.numel() <= 300
        assert sum(leaf.numel() for leaf in outputs) <= 300


@each([case for case in BATCHED if case.traceable])
def test_samples_of_batched_cases_are_apart(case):
    whole, expected = tree_leaves(case.expected()), tree_leaves(case.expected_batched())
    size = len(case.x)
    for full, blocks in zip(whole, expected, strict=True):
        # (B, out, B, in): zero off the diagonal of the two B, the samples' own Jacobians on it
        full = full.reshape(size, -1, size, case.x[0].numel())
        apart = torch.zeros_like(full)
        for i, block in enumerate(blocks):
            apart[i, :, i] = block.reshape(-1, case.x[0].numel())
        torch.testing.assert_close(full, apart, rtol=1e-10, atol=1e-10)


@each(EVERY)
def test_jacobian(case):
    before, randomness = case.x.clone(), torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = jacobian(case.f, case.x)
    agree(got, case.expected())
    assert torch.equal(case.x, before)
    assert torch.equal(torch.get_rng_state(), randomness)
    assert all(parameter.grad is None for parameter in parameters(case))


@each(EVERY)
@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_pure_modes(case, mode):
    agree(jacobian(case.f, case.x, mode=mode), case.expected())


@each(CASES)
def test_mixed_mode(case):
    agree(jacobian(case.f, case.x, mode="mixed"), case.expected())


@each(EVERY)
def test_in_chunks(case):
    agree(jacobian(case.f, case.x, chunk=3), case.expected())


@each(BATCHED)
def test_batched(case):
    agree(jacobian(case.f, case.x, batched=True), case.expected_batched())


@each(EVERY)
def test_a_plan_computes_for_other_values(case):
    plan = plan_jacobian(case.f, case.x)
    for there in (elsewhere(case), case):
        agree(plan(there.x), there.expected())


@each([case for case in BATCHED if case.traceable])
def test_a_batched_plan_computes_for_other_values(case):
    there = elsewhere(case)
    agree(plan_jacobian(case.f, case.x, batched=True)(there.x), there.expected_batched())


@each(SINGLE)
def test_factored(case):
    expected = case.expected().reshape(-1, case.x.numel())
    operator = jacobian(case.f, case.x, factored=True)
    assert tuple(operator.shape) == tuple(expected.shape)
    agree(operator.dense(), expected)
    v, u = (seeded("directions", lambda n=n: torch.randn(n, dtype=torch.float64)) for n in reversed(expected.shape))
    agree(operator.matvec(v), expected @ v)
    agree(operator.rmatvec(u), expected.T @ u)


@each(EVERY)
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_grad_mode_around_it(case, context):
    with context():
        got = jacobian(case.f, case.x)
    assert not any(leaf.requires_grad for leaf in tree_leaves(got))
    agree(got, case.expected())


@each(CASES)
def test_penalties_on_the_jacobian_have_gradients(case):
    x = case.x.clone().requires_grad_()
    leaves = [x, *(parameter for parameter in parameters(case) if parameter.requires_grad)]

    def gradients(tree):
        penalty = sum((leaf.square() + leaf.sin()).sum() for leaf in tree_leaves(tree))
        if not penalty.requires_grad:
            return tuple(torch.zeros_like(leaf) for leaf in leaves)
        return torch.autograd.grad(penalty, leaves, materialize_grads=True)

    with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
        expected = gradients(dataclasses.replace(case, x=x).expected())
    agree(gradients(jacobian(case.f, x)), expected)
