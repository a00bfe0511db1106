"""What can be asked of a Jacobian: of which arguments and parameters, whole or per sample, and in which shapes."""

import functools

import pytest
import torch
import torch.nn.functional as F
from points import MODES, by_parameters, network, point
from torch import nn
from torch.nn.utils import parametrizations
from zoo import agree

from torchadx.autodiff import jacfn, jacobian

ROW, MATRIX = point(3, name="row"), point(3, 4, name="matrix")


def three(x, y, z):
    return torch.sin(x)[:, None] * y * z.sum(), (x * z[:2].prod()).cumsum(0)


ARGUMENTS = (point(3, name="x"), point(4, name="y"), point(2, name="z"))


@pytest.mark.parametrize("argnums", [0, 1, 2, -1, (0,), (1,), (0, 1), (2, 0), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_argnums(argnums, mode):
    got = jacobian(three, *ARGUMENTS, argnums=argnums, mode=mode)
    agree(got, torch.func.jacrev(three, argnums=argnums)(*ARGUMENTS))


@pytest.mark.parametrize("argnums", [3, -4, (0, 5), "x", 1.0, (0, 0)], ids=str)
def test_argnums_that_no_argument_has_are_refused(argnums):
    with pytest.raises((ValueError, TypeError), match="argnums"):
        jacobian(three, *ARGUMENTS, argnums=argnums)


@pytest.mark.parametrize("mode", MODES)
def test_trees_in_and_out(mode):
    def f(state, scale):
        hidden = state["w"] @ state["parts"][0]
        return {"a": hidden * scale, "b": [hidden.sum(), (state["parts"][1] ** 2,)]}

    state = {"w": point(2, 3), "parts": [point(3, name="a"), point(2, 2, name="b")]}
    scale = point(2, name="scale")
    for argnums in (0, 1, (0, 1)):
        got = jacobian(f, state, scale, argnums=argnums, mode=mode)
        agree(got, torch.func.jacrev(f, argnums=argnums)(state, scale))


def test_arguments_that_are_not_differentiated_may_be_anything():
    def f(x, index, power, flag=None, table=None):
        y = x[index] ** power
        return y if flag is None else y * 2

    index = torch.tensor([2, 0])
    for rest in ((index, 3), (index, 2, "yes"), (torch.tensor([True, False, True]), 2, None)):
        agree(jacobian(f, point(3), *rest), torch.func.jacrev(f)(point(3), *rest))


def test_functions_come_in_all_forms():
    class Owner:
        scale = 3.0

        def method(self, x):
            return x.sin() * self.scale

        def __call__(self, x):
            return x.cos() * self.scale

    x = point(3)
    for f in (Owner().method, Owner(), functools.partial(torch.pow, exponent=3), torch.tanh, F.softplus, nn.Tanh()):
        agree(jacobian(f, x), torch.func.jacrev(f)(x))


@pytest.mark.parametrize(
    ("f", "shape"),
    [
        (lambda x: x * x, ()),
        (lambda x: x.sum(), (3,)),
        (lambda x: x.expand(2, 3) * ROW, ()),
        (lambda x: x[None, :, None].sin(), (4,)),
        (lambda x: x.reshape(6).exp(), (1, 2, 3)),
        (lambda x: x.sum((0, 2)), (2, 1, 3)),
        (lambda x: x[:1], (1,)),
        (lambda x: x[:0].sin(), (3,)),
        (lambda x: x.sum(0), (0, 3)),
    ],
)
def test_shapes_are_those_of_jacrev(f, shape):
    x = point(*shape)
    expected = torch.func.jacrev(f)(x)
    got = jacobian(f, x)
    assert got.shape == f(x).shape + x.shape == expected.shape
    agree(got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_kept(dtype):
    model, x = network(3, 8, 2).to(dtype), point(3).to(dtype)
    got = jacobian(model, x)
    assert got.dtype == dtype
    agree(got, torch.func.jacrev(model)(x), 1e-10 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.T,
        lambda x: x[:, ::2],
        lambda x: x[:1].expand(3, -1),
        lambda x: x.flip(0)[1:],
        lambda x: x.as_strided((3, 3), (1, 1)),
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_inputs_of_any_strides(layout, mode):
    x = layout(point(4, 6))

    def f(x):
        return (x.sin() @ x.mT).cumsum(0)

    agree(jacobian(f, x, mode=mode), torch.func.jacrev(f)(x))


@pytest.mark.parametrize(
    "f",
    [
        torch.relu, torch.abs, F.hardtanh, F.leaky_relu, F.elu, F.relu6, F.hardswish, F.softshrink, torch.sign,
        lambda x: x.clamp(0, 1), lambda x: x.amax(0), lambda x: x.max(0).values, lambda x: x.max(), lambda x: x.norm(),
        lambda x: torch.maximum(x, torch.zeros_like(x)), lambda x: x.sort(0).values, lambda x: x.median(0).values,
        lambda x: torch.where(x > 0, x, 2 * x), lambda x: x.prod(), lambda x: x.topk(2, 0).values, torch.round,
        lambda x: torch.linalg.vector_norm(x, 1), lambda x: x.cumprod(0), lambda x: F.max_pool1d(x[None, None], 2),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::torchadx.autodiff.IndependentOutputWarning")
def test_kinks_and_ties_are_those_of_jacrev(f):
    for x in (torch.zeros(4).double(), torch.ones(4).double(), torch.tensor([0.0, 1.0, 0.0, 1.0]).double()):
        agree(jacobian(f, x), torch.func.jacrev(f)(x))


@pytest.mark.parametrize("mode", MODES)
def test_all_parameters(mode):
    model, x = network(3, 5, 2), point(4, 3)
    got = jacobian(model, x, params=True, mode=mode)
    assert list(got) == [name for name, _ in model.named_parameters()]
    agree(got, by_parameters(model, x))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_some_parameters():
    model, x = network(3, 5, 2), point(4, 3)
    for names in (["2.weight"], ("0.bias", "0.weight")):
        agree(jacobian(model, x, params=names), by_parameters(model, x, names=names))


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # of the reference, in weight_norm
def test_parameters_shared_frozen_or_parametrized():
    x = point(4, 3)
    shared = nn.Linear(3, 3).double()
    tied = nn.Sequential(shared, nn.Tanh(), shared)
    agree(jacobian(tied, x, params=True), by_parameters(tied, x))
    frozen = network(3, 5, 2).requires_grad_(False)
    agree(jacobian(frozen, x, params=True), by_parameters(frozen, x))
    normed = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 4)), nn.GELU()).double()
    agree(jacobian(normed, x, params=True), by_parameters(normed, x))


def test_parameters_of_a_module_of_several_arguments_and_outputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(2, 2)

        def forward(self, x, y):
            hidden = self.a(x).tanh() + y
            return {"hidden": hidden, "out": self.b(hidden)}

    model = Two().double()
    agree(
        jacobian(model, point(3), point(2), params=["a.weight"]),
        by_parameters(model, point(3), point(2), names=["a.weight"]),
    )
    agree(jacobian(model, point(3), point(2), argnums=1), torch.func.jacrev(model, argnums=1)(point(3), point(2)))


def test_parameters_that_cannot_be():
    model, x = network(3, 5, 2), point(4, 3)
    with pytest.raises((ValueError, KeyError), match=r"7\.weight"):
        jacobian(model, x, params=["7.weight"])
    with pytest.raises((ValueError, TypeError), match="argnums"):
        jacobian(model, x, params=True, argnums=0)
    with pytest.raises((ValueError, TypeError), match="Module"):
        jacobian(torch.tanh, x, params=True)


@pytest.mark.parametrize("mode", MODES)
def test_batched_with_several_arguments(mode):
    def f(x, y):
        return (x @ MATRIX).tanh() * y.sum(1, keepdim=True), (x.square().sum(1) * y[:, 0])

    x, y = point(5, 3), point(5, 2, name="y")
    one = torch.func.vmap(torch.func.jacrev(lambda x, y: tuple(o[0] for o in f(x[None], y[None])), argnums=(0, 1)))
    agree(jacobian(f, x, y, argnums=(0, 1), batched=True, mode=mode), one(x, y))
    agree(jacobian(f, x[:1], y[:1], argnums=(0, 1), batched=True, mode=mode), one(x[:1], y[:1]))


def test_batched_with_labels_that_are_split_too():
    def f(x, label):
        return F.cross_entropy(x.sin(), label, reduction="none")

    x, label = point(5, 3), torch.tensor([0, 2, 1, 1, 0])
    expected = torch.func.vmap(torch.func.grad(lambda x, label: f(x[None], label[None])[0]))(x, label)
    agree(jacobian(f, x, label, batched=True), expected)


def test_batched_by_parameters():
    model, x = network(3, 5, 2), point(4, 3)
    expected = [by_parameters(model, row) for row in x]
    got = jacobian(model, x, params=True, batched=True)
    agree(got, {name: torch.stack([row[name] for row in expected]) for name in expected[0]})
    got = jacobian(model, x, params=["0.weight"], batched=True)
    agree(got, {"0.weight": torch.stack([row["0.weight"] for row in expected])})


def test_batched_captures_are_shared():
    weight = point(3, 3, name="weight")

    def f(x):
        return torch.tanh(x @ weight + weight.sum(0)) * weight[0]

    x = point(4, 3)
    agree(jacobian(f, x, batched=True), torch.func.vmap(torch.func.jacrev(f))(x))


def test_batches_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"(?s)5.*4|4.*5"):
        jacobian(lambda x, y: x * y.sum(), point(5, 3), point(4, 3), batched=True)
    with pytest.raises(ValueError, match="batch"):
        jacobian(torch.sin, torch.tensor(1.0), batched=True)


def test_jacfn_is_a_function_of_the_arguments():
    by_second = jacfn(three, argnums=(1, 0))
    agree(by_second(*ARGUMENTS), torch.func.jacrev(three, argnums=(1, 0))(*ARGUMENTS))
    square = jacfn(lambda x: x.square().cumsum(-1))
    for shape in ((3,), (2, 2), (3,), ()):
        x = point(*shape) if shape else torch.tensor(2.0).double()
        if shape:
            agree(square(x), torch.func.jacrev(lambda x: x.square().cumsum(-1))(x))
    model = network(3, 4, 2)
    agree(
        jacfn(model, batched=True, mode="reverse")(point(5, 3)), torch.func.vmap(torch.func.jacrev(model))(point(5, 3))
    )
    agree(jacfn(model, params=True)(point(3)), by_parameters(model, point(3)))
