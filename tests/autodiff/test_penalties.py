"""Jacobians are differentiable again: penalties on them have gradients, in inputs, weights and parameters."""

import pytest
import torch
from points import MODES, by_parameters, network, point
from zoo import agree

from torchadx.autodiff import jacfn, jacobian, plan_jacobian


def penalty(J):
    return J.square().sum() + J.sin().sum()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("batched", [False, True], ids=["whole", "batched"])
def test_penalties_have_gradients_in_x_and_weight(mode, batched):
    x, weight = point(3, 4).requires_grad_(), point(4, 2, name="weight").requires_grad_()

    def value(x, weight):
        return penalty(jacobian(lambda x: torch.tanh(x @ weight).sin(), x, mode=mode, batched=batched))

    assert torch.autograd.gradcheck(value, (x, weight))
    assert torch.autograd.gradgradcheck(value, (x, weight))


@pytest.mark.parametrize("mode", MODES)
def test_penalties_train_a_network(mode):
    model, x = network(3, 6, 2), point(3)
    penalty(jacobian(model, x, mode=mode)).backward()
    got = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    penalty(torch.func.jacrev(model)(x)).backward()
    expected = [parameter.grad for parameter in model.parameters()]
    assert [gradient is None or not gradient.any() for gradient in got] == [False, False, False, True]
    agree(got[:3], expected[:3])


def test_penalties_through_params():
    model, x = network(3, 4, 2), point(3)
    parameters = list(model.parameters())

    def gradients(J):
        total = sum(penalty(leaf) for leaf in J.values())
        return torch.autograd.grad(total, parameters, materialize_grads=True)

    agree(gradients(jacobian(model, x, params=True)), gradients(by_parameters(model, x)))


@pytest.mark.parametrize("mode", MODES)
def test_a_graph_is_there_when_someone_asks_for_gradients(mode):
    x, weight = point(3), point(3, 3, name="weight")
    for x_asks in (False, True):
        for weight_asks in (False, True):
            x.requires_grad_(x_asks)
            weight.requires_grad_(weight_asks)
            J = jacobian(lambda x: (x @ weight).tanh(), x, mode=mode)
            assert J.requires_grad == (x_asks or weight_asks)
            with torch.no_grad():
                assert not jacobian(lambda x: (x @ weight).tanh(), x, mode=mode).requires_grad
    assert x.grad is weight.grad is None


def test_a_plan_asks_anew_whether_a_graph_is_wanted():
    x = point(3)
    plan = plan_jacobian(lambda x: x.sin() * x.sum(), x)
    assert not plan(x).requires_grad
    leaf = x.clone().requires_grad_()
    J = plan(leaf)
    expected = torch.func.jacrev(lambda x: x.sin() * x.sum())(leaf)
    agree(torch.autograd.grad(penalty(J), leaf), torch.autograd.grad(penalty(expected), leaf))
    with torch.no_grad():
        assert not plan(leaf).requires_grad
        made = plan_jacobian(lambda x: x.sin() * x.sum(), x)
    assert made(leaf).requires_grad


def test_jacobians_of_jacobians():
    def f(x):
        return (x.sin() * x.sum()).cumsum(0)

    x = point(3)
    agree(jacobian(jacfn(f), x), torch.func.jacrev(torch.func.jacrev(f))(x))
    agree(torch.func.jacrev(jacfn(f, mode="reverse"))(x), torch.func.jacrev(torch.func.jacrev(f))(x))
