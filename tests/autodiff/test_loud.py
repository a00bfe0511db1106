"""What cannot be differentiated right is said, and never silently wrong.

Where PyTorch's own transforms give a wrong answer without a word, a test says so beside ours.
"""

import pytest
import torch
import torch.nn.functional as F
from points import MODES, network, point, says
from torch import nn
from torch.utils._pytree import tree_leaves
from zoo import agree

from torchadx.autodiff import DerivativeError, hessian, jacobian, plan_jacobian

X = point(4)
CONSTANT = point(4, name="constant")


# grad mode inside


@torch.no_grad()
def decorated(x):
    return x.sin()


def beneath_no_grad(x):
    with torch.no_grad():
        scale = x.exp()
    return x * scale


def beneath_inference_mode(x):
    with torch.inference_mode():
        scale = x.exp()
    return x * scale.clone()


def beneath_set_grad_enabled(x):
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    scale = x.exp()
    torch.set_grad_enabled(before)
    return x * scale


def deep_beneath_no_grad(x):
    h = x.sin()
    with torch.no_grad():
        h = h.cos()
        h = h + 1
    return (h * 2).cumsum(0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("f", [decorated, beneath_no_grad, beneath_set_grad_enabled, deep_beneath_no_grad])
def test_no_grad_inside(f, mode):
    with says(DerivativeError, "no_grad"):
        jacobian(f, X, mode=mode)


@pytest.mark.parametrize("mode", MODES)
def test_inference_mode_inside(mode):
    with says(DerivativeError, "inference_mode"):
        jacobian(beneath_inference_mode, X, mode=mode)


def test_pytorch_is_silently_wrong_about_no_grad_inside():
    assert not torch.func.jacrev(decorated)(X).any()
    assert not torch.allclose(torch.func.jacrev(beneath_no_grad)(X), torch.diag((X + 1) * X.exp()))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_grad_mode_inside_is_seen_whatever_is_around(context):
    with context(), says(DerivativeError, "no_grad"):
        jacobian(beneath_no_grad, X)


def test_no_grad_inside_untraceable_functions():
    def f(x):
        if x.sum() > 1e9:
            return x
        return beneath_no_grad(x)

    for mode in ("auto", "forward", "reverse"):
        with says(DerivativeError, "no_grad"):
            jacobian(f, X, mode=mode)


def test_no_grad_inside_modules_batched_or_by_parameters():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x):
            with torch.no_grad():
                features = self.first(x)
            return self.last(features)

    model, x = Frozen().double(), point(5, 4)
    for options in ({}, {"batched": True}, {"params": True}, {"params": ["first.weight"]}):
        with says(DerivativeError, "no_grad"):
            jacobian(model, x, **options)
    last = jacobian(model, x, params=["last.weight"])["last.weight"]
    agree(last[:, 1, 1], model.first(x))


def test_no_grad_inside_that_does_not_matter():
    def over_constants(x):
        with torch.no_grad():
            scale = CONSTANT.exp()
        return x * scale

    def not_reaching_the_output(x):
        with torch.no_grad():
            seen = x.exp().sum()
        assert seen.shape == ()
        return x.sin()

    def shape_only(x):
        with torch.no_grad():
            ones = torch.ones_like(x)
        return x.sin() * ones

    for f in (over_constants, not_reaching_the_output, shape_only):
        agree(jacobian(f, X), torch.func.jacrev(f)(X))


# in-place


def writes_all(x):
    return x.mul_(2).sin()


def writes_a_part(x):
    x[0] = 3.0
    return x.sin()


def writes_through_a_view(x):
    x.view(2, 2)[1].exp_()
    return x.cumsum(0)


def writes_the_output_of_an_identity(x):
    y = x.view_as(x)
    y += 1
    return y


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("f", [writes_all, writes_a_part, writes_through_a_view, writes_the_output_of_an_identity])
def test_in_place_on_inputs(f, mode):
    x = X.clone()
    with says(DerivativeError, "in.?place"):
        jacobian(f, x, mode=mode)
    assert torch.equal(x, X)


def test_in_place_on_leaves_of_trees_and_on_other_arguments():
    tree = {"a": X.clone(), "b": [X.clone()]}
    with says(DerivativeError, "in.?place"):
        jacobian(lambda tree: tree["a"] * tree["b"][0].add_(1), tree)
    other = X.clone()
    with says(DerivativeError, "in.?place"):
        jacobian(lambda x, other: x * other.mul_(2), X, other)
    for tensor in (tree["a"], tree["b"][0], other):
        assert torch.equal(tensor, X)


def test_in_place_on_inputs_of_untraceable_functions():
    def f(x):
        if x.sum() > 1e9:
            return x
        return x.mul_(2).sin()

    x = X.clone()
    with says(DerivativeError, "in.?place"):
        jacobian(f, x)
    assert torch.equal(x, X)


def test_in_place_on_inputs_when_batched():
    x = point(3, 4)
    with says(DerivativeError, "in.?place"):
        jacobian(writes_all, x, batched=True)
    assert torch.equal(x, point(3, 4))


# randomness

RANDOM = {
    "dropout": lambda x: F.dropout(x),
    "rand_like": lambda x: x * torch.rand_like(x),
    "randn": lambda x: x + torch.randn(4, dtype=x.dtype),
    "bernoulli": lambda x: x * torch.bernoulli(torch.full_like(x, 0.5)),
    "normal_": lambda x: x * torch.empty_like(x).normal_(),
    "randperm": lambda x: x[torch.randperm(4)],
    "multinomial": lambda x: x[torch.multinomial(torch.ones(4), 2)],
    "attention": lambda x: F.scaled_dot_product_attention(*[x.view(1, 2, 2)] * 3, dropout_p=0.5),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", RANDOM)
def test_randomness(name, mode):
    with says(DerivativeError, "random"):
        jacobian(RANDOM[name], X, mode=mode)


def test_randomness_names_its_way_out():
    with says(DerivativeError, "randomness", "same"):
        jacobian(nn.Dropout(), X)
    agree(jacobian(nn.Dropout().eval(), X), torch.eye(4).double())


def test_randomness_of_untraceable_functions():
    with says(DerivativeError, "random"):
        jacobian(lambda x: F.dropout(x) if x.sum() < 1e9 else x, X)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("chunk", ["auto", 3])
def test_one_draw_for_all_directions(mode, chunk):
    x, weight = point(20), point(20, 15, name="weight")
    J = jacobian(lambda x: F.dropout(x, 0.5) @ weight, x, randomness="same", mode=mode, chunk=chunk)
    # J.T = diag(mask) @ weight with one mask of zeros and twos
    mask = J.T / weight
    assert set(mask[:, 0].round().tolist()) == {0.0, 2.0}
    agree(mask, mask[:, :1].round().expand_as(mask))


def test_one_draw_follows_the_seed():
    J = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        J.append(jacobian(F.dropout, point(30), randomness="same"))
    assert torch.equal(J[0], J[1])
    assert not torch.equal(J[0], J[2])


def test_unknown_randomness():
    with pytest.raises((ValueError, TypeError), match="randomness"):
        jacobian(torch.sin, X, randomness="different")


# saved-tensor hooks


def on_the_value(x):
    return x.sin() * x if x.sum() < 1e9 else x


def test_saved_tensor_hooks_around_a_reverse_sweep():
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        with says(DerivativeError, "hooks"):
            jacobian(on_the_value, X, mode="reverse")
        forward = jacobian(on_the_value, X, mode="forward")
    agree(forward, torch.func.jacrev(on_the_value)(X))


@pytest.mark.parametrize("mode", MODES)
def test_saved_tensor_hooks_around_what_can_be_traced(mode):
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        try:
            got = jacobian(network(4, 3, 5), X, mode=mode)
        except DerivativeError as error:
            got = str(error)
    if isinstance(got, str):
        assert "hooks" in got
    else:
        agree(got, torch.func.jacrev(network(4, 3, 5))(X))


# types


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex128], ids=str)
@pytest.mark.parametrize("transform", [jacobian, plan_jacobian, hessian], ids=["jacobian", "plan_jacobian", "hessian"])
def test_inputs_that_are_not_real(dtype, transform):
    with says(TypeError, str(dtype).removeprefix("torch.")):
        transform(lambda x: (x * 1.0).sum(), X.to(dtype))


@pytest.mark.parametrize(
    ("f", "word"),
    [
        (lambda x: x.argmax(), "int64"),
        (lambda x: x > 0, "bool"),
        (lambda x: x * 1j, "complex128"),
        (lambda x: torch.fft.rfft(x), "complex128"),
        (lambda x: {"good": x, "bad": x.argsort()}, "int64"),
        (lambda x: 3.0, "float"),
        (lambda x: None, "None"),
        (lambda x: (x, "text"), "str"),
    ],
)
def test_outputs_that_are_not_real(f, word):
    with says(TypeError, word):
        jacobian(f, X)


def test_inputs_that_are_no_tensors():
    for x in (3.0, [1.0, 2.0], None, "x", {"a": X, "b": 2}):
        with pytest.raises(TypeError, match=r"(?i)tensor"):
            jacobian(lambda x: X * 2, x)
    with pytest.raises((TypeError, ValueError), match=r"."):
        jacobian(torch.sin)


def test_no_step_before_an_error_leaves_anything_behind():
    model = network(4, 3, 5)
    model.append(nn.Dropout())
    state = torch.get_rng_state()
    with says(DerivativeError, "random"):
        jacobian(model, X)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert all(leaf.grad is None for leaf in tree_leaves(list(model.parameters())))
