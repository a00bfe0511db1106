"""Hessian products against the Hessian, and every way in which they would be wrong in silence."""

import contextlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

import torchadx
from torchadx.autodiff._errors import DerivativeError
from torchadx.autodiff._products import hvp, vhp
from torchadx.autodiff._watch import watch

MODES = ("auto", "forward-reverse", "reverse-reverse")


def double(*shape, **options):
    return torch.randn(shape, dtype=torch.float64, **options)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def scalar_network(activation=nn.Tanh, layer=nn.Linear):
    network = nn.Sequential(layer(5, 7), activation(), layer(7, 6), activation(), layer(6, 1)).double()
    return lambda x: network(x).pow(2).sum()


def with_hessian(f, x, v):
    return torch.func.hessian(f)(x).reshape(x.numel(), x.numel()) @ v.flatten()


class NoForward(torch.autograd.Function):
    """A sine that has first and second derivatives, and no forward-mode formula."""

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()


class OldStyle(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU, nn.SiLU])
@pytest.mark.parametrize("layer", [nn.Linear, torchadx.nn.Linear])
def test_product_is_the_hessian_times_the_vector(mode, activation, layer):
    f, x, v = scalar_network(activation, layer), double(3, 5), double(3, 5)
    close(hvp(f, x, v, mode=mode).flatten(), with_hessian(f, x, v))
    close(vhp(f, x, v).flatten(), with_hessian(f, x, v))


@settings(deadline=None, max_examples=15)
@given(shape=st.lists(st.integers(1, 3), max_size=3), seed=st.integers(0, 99))
def test_any_shape(shape, seed):
    torch.manual_seed(seed)
    x, v = double(*shape), double(*shape)
    f = lambda x: (x.sin() * x.sum()).sum()  # noqa: E731
    for product in (hvp(f, x, v), vhp(f, x, v)):
        assert product.shape == x.shape
        close(product.flatten(), with_hessian(f, x, v))


def test_quadratic_form_with_extra_arguments():
    A, b, x, v = double(4, 4), double(4), double(4), double(4)
    f = lambda x, A, b: x @ A @ x + b @ x  # noqa: E731
    close(hvp(f, x, v, args=(A, b)), (A + A.T) @ v)
    close(vhp(f, x, v, args=(A, b)), (A + A.T) @ v)


def test_parameters_as_a_dictionary():
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    data = double(5, 3)
    x = dict(network.named_parameters())
    v = {name: torch.randn_like(p) for name, p in x.items()}
    f = lambda p: torch.func.functional_call(network, p, (data,)).pow(2).mean()  # noqa: E731
    blocks = torch.func.hessian(f)(x)
    for product in (hvp(f, x, v), vhp(f, x, v)):
        assert list(product) == list(x)
        for a in x:
            terms = [blocks[a][b].reshape(x[a].numel(), x[b].numel()) @ v[b].flatten() for b in x]
            close(product[a].flatten(), sum(terms))


@pytest.mark.parametrize("mode", MODES)
def test_differentiable_again(mode):
    f = scalar_network()
    x, v = double(2, 5, requires_grad=True), double(2, 5, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, v: hvp(f, x, v, mode=mode), (x, v))
    plain = lambda x: x.pow(3).sum()  # noqa: E731
    assert not hvp(plain, x.detach(), v.detach(), mode=mode).requires_grad


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("made_inside", [False, True])
def test_switched_off_grad_around_the_call(mode, around, made_inside):
    x, v, w = double(4), double(4), double(4, requires_grad=True)
    with around() if made_inside else contextlib.nullcontext():
        x, v, w = x.clone(), v.clone(), w.clone()
    f = lambda x: (w * x).tanh().mul(w).sum()  # noqa: E731
    with around():
        product = hvp(f, x, v, mode=mode)
    t = (w * x).tanh()
    close(product, (-2 * t * (1 - t**2) * w**3 * v).detach().clone())
    assert not product.requires_grad


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("around", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
def test_switched_off_grad_in_the_function_is_an_error(mode, off, around):
    def used_again(x):
        with off():
            y = x.sin()
        return (y.sum() * 3 + x.pow(2).sum()) * x[0]

    def returned(x):
        with off():
            return x.sin().sum()

    def written(x):
        y = torch.zeros(3, dtype=x.dtype)
        with off():
            z = y.clone()
            z[0] = x[0]
        return (z * x).sum()

    for f in (used_again, returned, written):
        with around(), pytest.raises(DerivativeError, match=r"no_grad|inference_mode"):
            hvp(f, double(3), double(3), mode=mode)


def test_switched_off_grad_that_cuts_nothing_is_no_error():
    w, logged = double(3, requires_grad=True), []

    def f(x):
        with torch.no_grad():
            logged.append(x.norm().item())
            scale = w.norm() * 2
            norm = x.norm()
            logged.append(norm)
        return x.pow(3).sum() * scale

    x, v = double(3), double(3)
    close(hvp(f, x, v), 6 * x * v * w.norm() * 2)
    assert len(logged) == 2


@pytest.mark.parametrize("mode", MODES)
def test_detach_is_an_open_stop_gradient_and_data_is_none(mode):
    x, v = double(3), double(3)
    close(hvp(lambda x: (x.detach().sin() * x**2).sum(), x, v, mode=mode), 2 * x.sin() * v)
    with pytest.raises(DerivativeError, match=r"\.data.* write x\.detach\(\)"):
        hvp(lambda x: (x.data.sin() * x**2).sum(), x, v, mode=mode)


@pytest.mark.parametrize("mode", MODES)
def test_input_changed_in_place_is_an_error(mode):
    x = double(3)
    before = x.clone()

    def element(x):
        x[0] = 1
        return x.pow(2).sum()

    for f in (lambda x: x.mul_(2).pow(2).sum(), element, lambda x: x[:2].mul_(2).pow(2).sum()):
        with pytest.raises(DerivativeError, match=r"x\.clone\(\)"):
            hvp(f, x, double(3), mode=mode)
    assert torch.equal(x, before)


def test_hooks_around_are_an_error():
    f, x = scalar_network(), double(2, 5)
    for product in (hvp, vhp):
        with saved_tensors_hooks(lambda t: t, lambda t: t), pytest.raises(DerivativeError, match="leave the hooks"):
            product(f, x, x)
    with pytest.raises(DerivativeError, match="checkpoint out of the function"):
        hvp(lambda x: checkpoint(torch.sin, x, use_reentrant=False).sum(), double(3), double(3))


def test_missing_forward_formula():
    x, v = double(4), double(4)
    f = lambda x: (NoForward.apply(x) * x).sum()  # noqa: E731
    expected = (2 * x.cos() - x * x.sin()) * v
    for mode in ("auto", "reverse-reverse"):
        close(hvp(f, x, v, mode=mode), expected)
    with pytest.raises(DerivativeError, match="mode='reverse-reverse'"):
        hvp(f, x, v, mode="forward-reverse")
    with pytest.raises(DerivativeError, match="setup_context"):
        hvp(lambda x: OldStyle.apply(x).sum(), x, v)


@pytest.mark.parametrize("mode", MODES)
def test_flash_attention_names_the_way_out(mode):
    x, v = double(1, 2, 3, 4), double(1, 2, 3, 4)
    f = lambda q: scaled_dot_product_attention(q, q, q).pow(2).sum()  # noqa: E731
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), pytest.raises(DerivativeError, match=r"SDPBackend\.MATH"):
        hvp(f, x, v, mode=mode)
    with sdpa_kernel(SDPBackend.MATH):
        close(hvp(f, x, v, mode=mode).flatten(), with_hessian(f, x, v))


def test_no_grad_behind_a_custom_function_is_seen():
    def f(x):
        y = NoForward.apply(x)
        with torch.no_grad():
            z = y * 2
        return (z * x).sum()

    with pytest.raises(DerivativeError, match="no_grad"):
        vhp(f, double(3), double(3))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0]


MODULES = {
    "mlp": lambda: nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.LayerNorm(5), nn.Linear(5, 2)),
    "batch norm": lambda: nn.BatchNorm1d(3).eval(),
    "dropout": lambda: nn.Dropout(0.5).eval(),
    "lstm": Recurrent,
    "transformer": lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True),
    "transformer in eval mode": lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval(),
    "torchadx": lambda: torchadx.nn.Linear(4, 3, activation="gelu"),
    "custom function": lambda: NoForward.apply,
}


@pytest.mark.parametrize("name", list(MODULES))
@pytest.mark.parametrize("frozen", [False, True])
def test_ordinary_modules_do_not_trip_the_watch(name, frozen):
    module = MODULES[name]()
    if isinstance(module, nn.Module):
        module.double().requires_grad_(not frozen)
    x, v = double(2, 3, 4), double(2, 3, 4)
    f = lambda x: module(x).pow(2).sum()  # noqa: E731
    with sdpa_kernel(SDPBackend.MATH):
        close(vhp(f, x, v).flatten(), with_hessian(f, x, v) if name != "custom function" else vhp(f, x, v).flatten())
        with torch.no_grad():
            close(vhp(f, x, v), hvp(f, x, v))


def test_strict_watch():
    x = double(3, requires_grad=True)
    with watch() as seen:
        y = checkpoint(lambda x: x.sin() * 2, x, use_reentrant=False).sum()
    seen.check(y)
    assert torch.autograd.grad(y, x)[0].shape == (3,)
    for off in (torch.no_grad, torch.inference_mode):
        with pytest.raises(DerivativeError, match="sin"), watch(), off():
            x.sin()
    with torch.no_grad(), watch():
        assert not x.sin().requires_grad


def test_wrong_arguments():
    f, x = (lambda x: x.pow(2).sum()), double(3)
    for bad, error, words in [
        ((f, torch.arange(3), x), TypeError, r"real floating-point dtype: got torch\.int64"),
        ((f, x.to(torch.complex128), x), TypeError, "complex128"),
        ((f, x, x.float()), TypeError, r"got torch\.float32, expected torch\.float64"),
        ((f, 1.0, x), TypeError, "got float"),
        ((f, {}, {}), ValueError, "at least one tensor"),
        ((f, x, double(4)), ValueError, r"got \(4,\), expected \(3,\)"),
        ((f, x, [x]), ValueError, "structure of x"),
        ((lambda x: x, x, x), ValueError, r"got \(3,\)"),
        ((lambda x: x.argmax(), x, x), TypeError, r"output of f .* got torch\.int64"),
        ((lambda x: 1.0, x, x), TypeError, "got float"),
    ]:
        with pytest.raises(error, match=words):
            hvp(*bad)
    with pytest.raises(ValueError, match=r"mode must be one of .* got 'forward'"):
        hvp(f, x, x, mode="forward")


def test_other_errors_are_left_as_they_are():
    def f(x):
        raise NotImplementedError("of the user")

    with pytest.raises(NotImplementedError, match="of the user"):
        hvp(f, double(3), double(3))
