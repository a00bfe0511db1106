"""Per-sample Jacobians of functions that mix samples are refused, and hand-written derivatives are kept."""

import pytest
import torch
import torch.nn.functional as F
from points import MODES, network, point, says
from torch import nn
from zoo import agree

from torchadx.autodiff import DerivativeError, jacobian, plan_jacobian

X = point(4)
ROWS = point(5, 3, name="rows")

MIXES = {
    "batch_norm": lambda x: F.batch_norm(x, None, None, training=True),
    "centred": lambda x: x - x.mean(0),
    "softmax": lambda x: x.softmax(0),
    "cumsum": lambda x: x.cumsum(0),
    "flip": lambda x: x.flip(0),
    "roll": lambda x: x.sin().roll(1, 0),
    "gram": lambda x: x @ x.T,
    "sorted": lambda x: x.sort(0).values,
    "first": lambda x: x * x[:1],
    "normed": lambda x: x / x.norm(),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MIXES)
def test_samples_that_are_mixed(name, mode):
    with says(DerivativeError, "sample|batch"):
        jacobian(MIXES[name], point(5, 3), batched=True, mode=mode)


def test_a_batch_norm_that_trains():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with says(DerivativeError, "sample|batch|train"):
        jacobian(model, point(5, 3), batched=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("f", [lambda x: x.square().sum(), lambda x: x.sum(0), lambda x: x.sin().T, lambda x: x[:2]])
def test_batched_outputs_without_a_batch(f):
    with pytest.raises((DerivativeError, ValueError), match=r"(?i)sample|batch|leading"):
        jacobian(f, point(5, 3), batched=True)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: x.sin() / x.shape[0],
        lambda x: x.sin() * ROWS,
        lambda x: x.sin() * torch.arange(len(x))[:, None],
        lambda x: x.reshape(-1, 3)[: x.numel() // 3].sin() * x.numel(),
    ],
    ids=["divided", "rows", "counted", "numel"],
)
def test_samples_that_depend_on_the_batch_by_shape_follow_the_definition_or_raise(f):
    x = point(5, 3)
    try:
        got = jacobian(f, x, batched=True)
    except (DerivativeError, ValueError) as error:
        got = str(error)
    if isinstance(got, str):
        assert "batch" in got or "sample" in got
    else:
        agree(got, torch.stack([torch.func.jacrev(lambda row: f(row[None])[0])(row) for row in x]))


class StraightThrough(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.round()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad * 3

    @staticmethod
    def jvp(ctx, tangent):
        return tangent * 3


@pytest.mark.parametrize("mode", MODES)
def test_custom_functions_keep_their_derivative(mode):
    def f(x):
        return StraightThrough.apply(x.sin()).cumsum(0)

    if mode == "mixed":
        with says(DerivativeError, "Function"):
            jacobian(f, X, mode=mode)
    else:
        agree(jacobian(f, X, mode=mode), torch.func.jacrev(f)(X))


def test_custom_functions_keep_their_derivative_batched_or_by_parameters():
    layer = nn.Linear(4, 3).double()
    model = nn.Sequential(layer, nn.Tanh())
    model.register_forward_hook(lambda module, args, out: StraightThrough.apply(out * 4))
    x = point(5, 4)
    agree(jacobian(model, x, batched=True), torch.func.vmap(torch.func.jacrev(model))(x))
    got = jacobian(model, x, params=True)
    want = torch.func.jacrev(lambda p: torch.func.functional_call(model, p, x))(dict(model.named_parameters()))
    agree(got, want)


def test_gradient_hooks_inside_are_kept_or_refused():
    def f(x):
        h = x.sin()
        if h.requires_grad:
            h.register_hook(lambda gradient: gradient * 2)
        return h.cumsum(0)

    expected = torch.func.jacrev(f)(X)
    try:
        got = jacobian(f, X, mode="reverse")
    except DerivativeError as error:
        got = str(error)
    if isinstance(got, str):
        assert "hook" in got
    else:
        agree(got, expected)


def test_functions_that_change_are_not_taken_for_what_they_were():
    calls = []

    def f(x):
        calls.append(x)
        return x.sin() * len(calls)

    plan = plan_jacobian(f, X)
    assert not plan.traced
    assert any("another point" in note for note in plan.notes)
    calls.clear()
    agree(plan(X), torch.func.jacrev(torch.sin)(X))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("frozen", [True, False])
def test_compiled_modules(backend, frozen):
    model = network(4, 6, 3).requires_grad_(not frozen)
    agree(jacobian(torch.compile(model, backend=backend), X), torch.func.jacrev(model)(X))
