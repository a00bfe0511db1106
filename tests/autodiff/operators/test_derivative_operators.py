"""Operators of derivatives against the matrices that torch.func makes."""

import doctest
import importlib

import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian, jacrev
from torch.nn.functional import cross_entropy, dropout, scaled_dot_product_attention

import torchadx
from torchadx.autodiff._errors import DerivativeError
from torchadx.autodiff.operators import ggn_operator, hessian_operator, jacobian_operator


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def close(got, expected):
    return torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def attention(x):
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return scaled_dot_product_attention(x, x.sin(), x.cos())


NETS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)), (4, 3)),
    "conv": (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.GELU(), nn.Flatten(), nn.Linear(8, 3)), (2, 1, 4, 4)),
    "norm": (lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Softplus()), (2, 3)),
    "fused": (lambda: torchadx.nn.Linear(3, 4, activation="gelu"), (2, 3)),
}


@pytest.fixture(params=NETS)
def net(request):
    make, shape = NETS[request.param]
    return make().double(), normal(*shape)


def test_jacobian_of_nets(net):
    model, x = net
    operator = jacobian_operator(model, x)
    expected = jacrev(model)(x).detach().reshape(operator.shape)
    close(operator @ torch.eye(x.numel(), dtype=torch.float64), expected)
    close(operator.T @ torch.eye(operator.shape[0], dtype=torch.float64), expected.T)
    close(operator.dense(), expected)
    u, v = normal(operator.shape[0]), normal(operator.shape[1])
    close(u @ (operator @ v), (operator.T @ u) @ v)
    assert not (operator @ v).requires_grad
    assert not (operator.T @ u).requires_grad
    assert operator.notes == ()


def test_hessian_of_nets(net):
    model, x = net

    def loss(x):
        return model(x).square().sum()

    operator = hessian_operator(loss, x)
    close(operator.dense(), hessian(loss)(x).detach().reshape(operator.shape))
    assert operator.T is operator


def test_ggn_of_parameters(net):
    model, x = net
    parameters = dict(model.named_parameters())

    def predict(p, x):
        return functional_call(model, p, (x,)).flatten(1)

    y = predict(parameters, x).detach()
    labels = torch.zeros(len(x), dtype=torch.long)
    operator = ggn_operator(predict, lambda y: cross_entropy(y, labels), parameters, args=(x,), chunk=7)
    J = torch.cat([leaf.reshape(y.numel(), -1) for leaf in jacrev(predict)(parameters, x).values()], 1).detach()
    H = hessian(lambda y: cross_entropy(y, labels))(y).reshape(y.numel(), y.numel())
    close(operator.dense(), J.T @ H @ J)
    assert operator.T is operator


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("chunk", ["auto", 1, 3, 100])
def test_attention_and_chunks(chunk):
    x = normal(1, 2, 3, 4)
    operator = jacobian_operator(lambda x: scaled_dot_product_attention(x, x.sin(), x.cos()), x, chunk=chunk)
    expected = jacrev(attention)(x).reshape(24, 24)
    close(operator @ torch.eye(24, dtype=torch.float64), expected)
    close(operator.T @ torch.eye(24, dtype=torch.float64), expected.T)
    H = hessian_operator(
        lambda x: scaled_dot_product_attention(x, x.sin(), x.cos()).square().sum(), x, chunk=chunk
    ).dense()
    close(H, hessian(lambda x: attention(x).square().sum())(x).reshape(24, 24))


def test_trees_in_and_out_and_independent_outputs():
    x = {"a": normal(2), "b": (normal(3), normal(1, 2))}
    operator = jacobian_operator(
        lambda x, c: (x["a"].sin() * c, {"y": x["b"][0].prod(), "z": c * 1}), x, args=(normal(2),)
    )
    assert operator.shape == (5, 7)
    dense = operator.dense()
    close(operator.matmat(torch.eye(7, dtype=torch.float64)), dense)
    assert dense[:2, :2].diagonal().abs().min() > 0
    assert dense[3:].abs().max() == 0
    assert dense[:, 5:].abs().max() == 0
    constant = jacobian_operator(lambda x: torch.ones(2, dtype=torch.float64), normal(3))
    assert constant.dense().abs().max() == 0
    assert (constant @ normal(3)).abs().max() == 0


def test_control_flow_on_values_goes_through_backward_passes():
    x = normal(3)

    def f(x):
        return x.sin() if x.sum() > 0 else x.cos() * x.sum()

    operator = jacobian_operator(f, x)
    close(operator @ torch.eye(3, dtype=torch.float64), jacrev(f)(x))
    assert "backward passes" in operator.notes[0]
    scalar = hessian_operator(lambda x: f(x).prod(), x)
    close(scalar.dense(), hessian(lambda x: f(x).prod())(x))
    assert "backward passes" in scalar.notes[0]


class Cube(torch.autograd.Function):
    """Neither a forward formula nor a rule for vmap."""

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, cotangent):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * cotangent


def test_function_without_forward_formula():
    x = normal(3)
    operator = jacobian_operator(lambda x: Cube.apply(x.sin()), x)
    close(operator @ torch.eye(3, dtype=torch.float64), jacrev(lambda x: x.sin() ** 3)(x))
    close(operator.T @ torch.eye(3, dtype=torch.float64), jacrev(lambda x: x.sin() ** 3)(x).T)
    assert operator.notes


def test_products_are_those_of_one_draw():
    x = normal(40)
    operator = jacobian_operator(lambda x: dropout(x.sin(), 0.5), x)
    eye = torch.eye(40, dtype=torch.float64)
    before = torch.get_rng_state()
    forward = operator @ eye
    close(operator.T @ eye, forward.T)
    close(operator @ eye[:, 3], forward[:, 3])
    assert torch.equal(torch.get_rng_state(), before)
    assert 0 < (forward.diagonal() == 0).sum() < 40
    H = hessian_operator(lambda x: dropout(x, 0.5).pow(3).sum(), x)
    close(H.dense(), H.dense().T)
    close(H @ eye[:, 0], H.dense()[:, 0])
    generator = torch.Generator().manual_seed(0)
    own = jacobian_operator(lambda x: x * torch.rand(40, generator=generator, dtype=torch.float64), x)
    with pytest.raises(DerivativeError, match="returned something else"):
        own @ x


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_around_the_call(mode):
    with mode():
        x, c = normal(3), normal(3)
        operator = jacobian_operator(lambda x, c: x.sin() * c, x, args=(c,))
        forward, reverse = operator.matvec(torch.ones_like(x)), operator.rmatvec(torch.ones_like(x))
        close(forward, x.cos() * c)
        close(reverse, x.cos() * c)


def test_x_is_copied_and_the_rest_must_stay():
    x, w = normal(3), normal(3)
    operator = jacobian_operator(lambda x: x.sin() * w, x)
    expected = x.cos() * w
    x.zero_()
    close(operator @ torch.ones(3, dtype=torch.float64), expected)
    w.mul_(2)
    for product in (operator.matvec, operator.rmatvec):
        with pytest.raises(DerivativeError, match="changed in place"):
            product(torch.ones(3, dtype=torch.float64))


def cut(x):
    with torch.no_grad():
        y = x.sin()
    return y * x


def test_errors():
    x = normal(3)
    with pytest.raises(ValueError, match="one number"):
        hessian_operator(torch.sin, x)
    with pytest.raises(ValueError, match="one number"):
        ggn_operator(torch.sin, torch.sin, x)
    for wrong in (torch.arange(3), x.to(torch.complex128), [x, x.float()], 3.0):
        with pytest.raises(TypeError):
            jacobian_operator(lambda x: x, wrong)
    with pytest.raises(TypeError, match=r"returns torch\.float32"):
        jacobian_operator(lambda x: x.float(), x)
    with pytest.raises(DerivativeError, match="no_grad"):
        jacobian_operator(cut, x)
    with pytest.raises(ValueError, match="chunk: got 0"):
        jacobian_operator(torch.sin, x, chunk=0)
    with pytest.raises(TypeError, match=r"chunk: got 1\.5"):
        jacobian_operator(torch.sin, x, chunk=1.5)


@pytest.mark.parametrize("name", ["_base", "_factored", "_jacobian", "_hessian", "_ggn"])
def test_examples(name):
    module = importlib.import_module(f"torchadx.autodiff.operators.{name}")
    failed, tried = doctest.testmod(module, extraglobs={"torch": torch}, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0
    assert tried > 0
