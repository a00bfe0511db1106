"""Every row of the activation table against autograd of its ATen value; looking rows up; adding rows."""

import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import hessian, jvp

import torchadx
from torchadx import activations
from torchadx.activations import register_activation, resolve

ROWS = tuple(activations.known())
KINKS = (-3.0, 0.0, 3.0, 20.0)
ORDINARY = torch.cat([torch.linspace(-8.01, 8.03, 101), torch.tensor([-30.0, 25.0])]).double()
HUGE = torch.tensor([-1e30, -1e4, -800.0, -100.0, 100.0, 800.0, 1e4, 1e30])

every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def kept_of(row, z):
    """What the derivatives of a row read; of the right shape, and otherwise arbitrary, where they read nothing."""
    return {"nothing": torch.zeros_like(z), "output": row.forward(z), "pre_activation": z}[row.keeps].detach()


def by_autograd(row, z):
    """Value, first and second derivative of the ATen value."""
    z = z.clone().requires_grad_()
    y = row.forward(z)
    (first,) = torch.autograd.grad(y.sum(), z, create_graph=True)
    second = torch.autograd.grad(first.sum(), z)[0] if first.requires_grad else torch.zeros_like(z)
    return y.detach(), first.detach(), second


@every_row
@pytest.mark.parametrize("z", [ORDINARY, torch.tensor(KINKS).double()], ids=["ordinary", "kinks"])
def test_formulas_are_those_of_autograd(row, z):
    kept = kept_of(row, z)
    got = row.value(z), row.derivative(kept), row.second_derivative(kept)
    torch.testing.assert_close(got, by_autograd(row, z), rtol=1e-10, atol=1e-10)


@every_row
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huge_values_behave_as_in_torch(row, dtype):
    z = HUGE.to(dtype)
    kept = kept_of(row, z)
    y, first, _ = by_autograd(row, z)
    torch.testing.assert_close((row.value(z), row.derivative(kept)), (y, first), equal_nan=True)


@every_row
def test_infinity_and_nan_behave_as_in_torch(row):
    # float64: the vector code of torch's float32 gelu makes NaN of +inf
    z = torch.tensor([-torch.inf, torch.inf, torch.nan], dtype=torch.float64)
    torch.testing.assert_close(row.value(z), row.forward(z), equal_nan=True)


@every_row
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_second_order_is_finite(row, dtype):
    """A where() whose discarded branch overflows would turn a gradient into 0 * inf, as in F.mish at 100."""
    z = HUGE.to(dtype)
    kept = kept_of(row, z).requires_grad_()
    finite = by_autograd(row, z)[2].isfinite() | (z.abs() < 1e3)
    assert row.second_derivative(kept.detach())[finite].isfinite().all()
    slope = row.backward(torch.ones_like(kept), kept)
    if slope.requires_grad:
        (second,) = torch.autograd.grad(slope.sum(), kept)
        assert second[finite].isfinite().all()


@every_row
def test_backward_routes_agree(row):
    kept, g = kept_of(row, ORDINARY), torch.randn_like(ORDINARY)
    expected = g * row.derivative(kept)
    torch.testing.assert_close(row.backward(g, kept), expected)
    torch.testing.assert_close(row.fast_backward(g, kept), expected)


@every_row
def test_backward_and_derivatives_are_differentiable(row):
    z = torch.tensor([-4.1, -2.3, -0.7, 0.4, 1.9, 3.6], dtype=torch.float64)
    # any numbers off the kinks: relu's own output sits on its kink
    kept, g = z.requires_grad_(), torch.randn_like(z).requires_grad_()
    routes = (row.backward, lambda g, kept: g * row.derivative(kept), lambda g, kept: g * row.second_derivative(kept))
    for route in routes:
        assert gradcheck(route, (g, kept), check_forward_ad=True)
        assert gradgradcheck(route, (g, kept), check_fwd_over_rev=True, check_rev_over_rev=True)


@every_row
def test_kept_is_what_keeps_says(row):
    y, z = torch.ones(2), torch.zeros(2)
    assert row.kept(y, z) is {"nothing": None, "output": y, "pre_activation": z}[row.keeps]
    assert repr(row) == f"Activation({row.name!r}, keeps={row.keeps!r})"


@every_row
@settings(database=None, deadline=None, max_examples=40)
@given(point=st.floats(-30, 30))
def test_derivatives_match_central_differences(row, point):
    if min(abs(point - kink) for kink in KINKS) < 1e-3:
        return
    h = 1e-5
    z = torch.tensor([point - h, point, point + h], dtype=torch.float64)
    kept = kept_of(row, z)
    for upper, lower in ((row.value(z), row.derivative(kept)), (row.derivative(kept), row.second_derivative(kept))):
        torch.testing.assert_close((upper[2] - upper[0]) / (2 * h), lower[1], rtol=1e-7, atol=1e-8)


STANDS_FOR = {
    "identity": (None, "none", "linear", nn.Identity()),
    "relu": (nn.ReLU(), nn.ReLU(inplace=True), F.relu, torch.relu),
    "leaky_relu": (nn.LeakyReLU(), nn.LeakyReLU(0.01, inplace=True), F.leaky_relu),
    "elu": (nn.ELU(), nn.ELU(1.0), F.elu),
    "gelu": (nn.GELU(), nn.GELU("none"), F.gelu),
    "gelu_tanh": (nn.GELU("tanh"), "gelu_new", "gelu_pytorch_tanh"),
    "quick_gelu": (),
    "silu": (nn.SiLU(), nn.SiLU(inplace=True), F.silu, "swish"),
    "mish": (nn.Mish(), F.mish),
    "tanh": (nn.Tanh(), torch.tanh, F.tanh),
    "sigmoid": (nn.Sigmoid(), torch.sigmoid, F.sigmoid),
    "softplus": (nn.Softplus(), nn.Softplus(1, 20), F.softplus),
    "hardswish": (nn.Hardswish(), nn.Hardswish(inplace=True), F.hardswish),
    "relu_squared": ("relu2", "squared_relu"),
}


def test_the_table_of_synonyms_is_complete():
    assert list(STANDS_FOR) == [row.name for row in ROWS]


@every_row
def test_resolve_finds_every_synonym(row):
    assert resolve(row.name) is row
    assert resolve(row) is row
    for synonym in STANDS_FOR[row.name]:
        assert resolve(synonym) is row, synonym


@every_row
def test_synonyms_compute_the_row(row):
    for synonym in (s for s in STANDS_FOR[row.name] if callable(s)):
        torch.testing.assert_close(synonym(ORDINARY.clone()), row.value(ORDINARY))


class Doubled(nn.ReLU):
    def forward(self, input):
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    "unknown",
    [
        "Gelu", "", "relu6", 3, ["gelu"], nn.GELU, Doubled(), nn.LeakyReLU(0.2), nn.ELU(2.0), nn.Softplus(beta=2),
        nn.Softplus(threshold=10), nn.ReLU6(), nn.Softmax(-1), F.relu6, functools.partial(F.gelu, approximate="tanh"),
        activations.Activation("stranger", torch.sin, torch.cos, lambda z: -torch.sin(z)),
    ],
    ids=repr,
)  # fmt: skip
def test_unknown_activations_list_the_known(unknown):
    with pytest.raises(ValueError, match="unknown activation") as error:
        resolve(unknown)
    assert all(row.name in str(error.value) for row in ROWS)
    assert "register_activation" in str(error.value)


@pytest.fixture
def registry(monkeypatch):
    """A registry of its own for one test."""
    monkeypatch.setattr(activations.registry, "_by_name", dict(activations.registry._by_name))
    monkeypatch.setattr(activations.registry, "_by_function", dict(activations.registry._by_function))


SINE = {"value": torch.sin, "derivative": torch.cos, "second_derivative": lambda z: -torch.sin(z)}
NEW = {
    "pre-activation": SINE,
    "output": {"value": torch.exp, "derivative": torch.abs, "second_derivative": torch.abs, "keeps": "output"},
    "constant slope": {
        "value": lambda z: 3 * z,
        "derivative": lambda kept: 3 * torch.ones_like(kept),
        "second_derivative": torch.zeros_like,
    },
}


@pytest.mark.parametrize("kind", NEW)
def test_a_registered_activation_goes_through_every_mode(registry, kind):
    name, fields = "newcomer", NEW[kind]
    row = register_activation(name, **fields, aliases=("late",), functions=(fields["value"],))
    assert list(activations.known())[-1] is row
    assert resolve(fields["value"]) is resolve("late") is row
    x, w, b = (torch.randn(*shape, dtype=torch.float64) for shape in ((3, 4), (2, 4), (2,)))

    def results(f):
        leaves = [t.clone().requires_grad_() for t in (x, w, b)]
        first = torch.autograd.grad(f(*leaves).sum(), leaves)
        return first, jvp(f, (x, w, b), (x, w, b)), hessian(lambda *a: f(*a).square().sum(), (0, 1, 2))(x, w, b)

    got = results(lambda *args: torchadx.linear(*args, name))
    torch.testing.assert_close(got, results(lambda *args: fields["value"](F.linear(*args))))
    assert f"activation={name}" in repr(torchadx.nn.Linear(4, 2, activation=name))


WRONG = {
    "derivative": SINE | {"derivative": torch.sin},
    "second_derivative": SINE | {"second_derivative": torch.sin},
    "forward": SINE | {"forward": torch.cos},
    "backward": SINE | {"backward": lambda g, z: g},
    "fast_backward": SINE | {"fast_backward": lambda g, z: g},
}


@pytest.mark.parametrize("field", WRONG)
def test_a_wrong_formula_is_refused_by_name(registry, field):
    with pytest.raises(ValueError, match=f"'sine': `{field}` disagrees"):
        register_activation("sine", **WRONG[field])
    with pytest.raises(ValueError, match="unknown activation"):
        resolve("sine")


def test_keeping_too_little_is_refused(registry):
    with pytest.raises(ValueError, match=r"`derivative` disagrees.*keeps='output'.*a function of the output"):
        register_activation("sine", **SINE, keeps="output")


def test_a_formula_of_another_shape_is_refused(registry):
    with pytest.raises(ValueError, match=r"`derivative` disagrees.*shape"):
        register_activation("sine", **SINE | {"derivative": lambda z: torch.cos(z).sum()})


@pytest.mark.parametrize("keeps", ["input", "nothing"])
def test_another_keeps_is_refused(registry, keeps):
    with pytest.raises(ValueError, match=rf"keeps must be 'output' or 'pre_activation'.* got '{keeps}'"):
        register_activation("sine", **SINE, keeps=keeps)


@pytest.mark.parametrize("names", [{"name": "gelu"}, {"name": "swish"}, {"name": "sine", "aliases": ("relu",)}])
def test_a_taken_name_is_refused(registry, names):
    taken = names.get("aliases", (names["name"],))[0]
    with pytest.raises(ValueError, match=f"{taken!r} is already registered"):
        register_activation(**names, **SINE)
    assert tuple(activations.known()) == ROWS
