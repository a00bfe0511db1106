"""Laplacians and divergences against traces of dense derivatives and against closed forms."""

import contextlib
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

import torchadx
from torchadx.autodiff._errors import DerivativeError
from torchadx.autodiff._traces import Estimate, divergence, laplacian


def double(*shape, **options):
    return torch.randn(shape, dtype=torch.float64, **options)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def network(outputs, activation=nn.Tanh, layer=nn.Linear):
    return nn.Sequential(layer(3, 6), activation(), layer(6, 5), activation(), layer(5, outputs)).double()


def dense_laplacian(f, x):
    return torch.func.hessian(f)(x).reshape(x.numel(), x.numel()).trace()


def dense_divergence(f, x):
    return torch.func.jacrev(f)(x).reshape(x.numel(), x.numel()).trace()


@pytest.mark.parametrize("chunk", ["auto", 1, 2, 100])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU])
@pytest.mark.parametrize("layer", [nn.Linear, torchadx.nn.Linear])
def test_of_networks(chunk, activation, layer):
    scalar, field, x = network(1, activation, layer), network(3, activation, layer), double(2, 3)
    f = lambda x: scalar(x).pow(2).sum()  # noqa: E731
    close(laplacian(f, x, chunk=chunk), dense_laplacian(f, x))
    close(divergence(field, x, chunk=chunk), dense_divergence(field, x))


@settings(deadline=None, max_examples=12)
@given(shape=st.lists(st.integers(1, 3), max_size=3), chunk=st.integers(1, 5), seed=st.integers(0, 99))
def test_any_shape(shape, chunk, seed):
    torch.manual_seed(seed)
    x = double(*shape)
    field = lambda x: x.sin() * x.sum()  # noqa: E731
    f = lambda x: field(x).sum()  # noqa: E731
    close(laplacian(f, x, chunk=chunk), dense_laplacian(f, x))
    close(divergence(field, x, chunk=chunk), dense_divergence(field, x))


def test_closed_forms():
    A, x = double(4, 4), double(4)
    close(laplacian(lambda x, A: x @ A @ x, x, args=(A,)), 2 * A.trace())
    close(divergence(lambda x, A: A @ x, x, args=(A,)), A.trace())
    zero = torch.zeros((), dtype=torch.float64)
    close(laplacian(lambda x: x[0].exp() * x[1].sin(), x[:2]), zero)
    close(laplacian(lambda x: 1 / x.norm(), double(3) + 2), zero)
    close(divergence(lambda x: torch.stack([-x[1], x[0]]), x[:2]), zero)


def test_trees():
    x = {"a": double(2), "b": double(2, 2).float()}
    field = lambda x: {"a": x["a"] ** 2 * x["b"].sum(), "b": x["b"] ** 3}  # noqa: E731
    f = lambda x: (x["a"] ** 2).sum() * 3 + (x["b"].double() ** 2).sum()  # noqa: E731
    close(laplacian(f, x), torch.tensor(20.0, dtype=torch.float64))
    expected = (2 * x["a"] * x["b"].sum()).sum() + (3 * x["b"] ** 2).sum()
    torch.testing.assert_close(divergence(field, x), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("chunk", ["auto", 2])
def test_batched(chunk):
    scalar, field, x, t = network(1), network(3), double(5, 3), double(5)
    f = lambda x, t: scalar(x).squeeze(-1) * t  # noqa: E731
    expected = t * torch.stack([dense_laplacian(scalar, a) for a in x])
    close(laplacian(f, x, args=(t,), batched=True, chunk=chunk), expected)
    g = lambda x, t, k: field(x) * t[:, None] * k  # noqa: E731
    expected = 2 * t * torch.stack([dense_divergence(field, a) for a in x])
    close(divergence(g, x, args=(t, 2), batched=True, chunk=chunk), expected)
    by_hand = torch.func.vmap(lambda a: laplacian(lambda a: scalar(a).squeeze(-1), a))(x)
    close(laplacian(lambda x: scalar(x).squeeze(-1), x, batched=True), by_hand)


def test_batched_eval_modules():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 3))
    model.double().eval()
    x = double(4, 3)
    expected = torch.stack([dense_divergence(lambda a: model(a[None])[0], a) for a in x])
    close(divergence(model, x, batched=True), expected)


def test_estimates():
    x, scale = double(4), torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    # random signs are exact for what is diagonal
    for estimate, expected in [
        (laplacian(lambda x: (scale * x**2).sum(), x, method="hutchinson", samples=3), 2 * scale.sum()),
        (divergence(lambda x: scale * x, x, method="hutchinson"), scale.sum()),
    ]:
        assert isinstance(estimate, Estimate)
        close(estimate.value, expected)
        close(estimate.standard_error, torch.zeros_like(expected))


@pytest.mark.parametrize("batched", [False, True])
def test_estimates_are_unbiased_with_their_error(batched):
    A = double(4, 4)
    x = double(3, 4) if batched else double(4)
    f = lambda x: ((x @ A) * x).sum(-1)  # noqa: E731
    field = lambda x: x @ A.T  # noqa: E731
    S = A + A.T
    off = lambda M: (M - M.diag().diag()).pow(2).sum()  # noqa: E731
    for trace, function, expected, variance in [
        (laplacian, f, S.trace(), 2 * off(S)),
        (divergence, field, A.trace(), off(S) / 2),
    ]:
        options = {"method": "hutchinson", "samples": 4000, "batched": batched}
        value, error = trace(function, x, generator=torch.Generator().manual_seed(1), **options)
        again = trace(function, x, generator=torch.Generator().manual_seed(1), **options)
        assert value.shape == error.shape == x.shape[:-1]
        assert torch.equal(value, again.value)
        assert ((value - expected).abs() < 4 * error).all()
        torch.testing.assert_close(error, (variance / 4000).sqrt().expand_as(error), rtol=0.1, atol=0)
        if batched:
            assert len(set(value.tolist())) == 3, "every sample has its own probes"


@pytest.mark.parametrize("method", ["exact", "hutchinson"])
def test_differentiable_again(method):
    x, w = double(3, requires_grad=True), double(3, requires_grad=True)
    draw = (lambda: {"generator": torch.Generator().manual_seed(0), "samples": 3}) if method == "hutchinson" else dict

    def lap(x, w):
        return laplacian(lambda x: (w * x).sin().sum() * x.sum(), x, method=method, **draw())

    def div(x, w):
        return divergence(lambda x: (w * x).sin() * x.sum(), x, method=method, **draw())

    for function in (lap, div):
        assert torch.autograd.gradcheck(function, (x, w))
        plain = function(x.detach(), w.detach())
        assert not (plain.value if method == "hutchinson" else plain).requires_grad


def test_batched_is_differentiable_again():
    x, w = double(2, 3, requires_grad=True), double(3, requires_grad=True)
    f = lambda x: (w * x).sin().sum(-1) * x.sum(-1)  # noqa: E731
    assert torch.autograd.gradcheck(lambda x: laplacian(f, x, batched=True), (x,))
    loss = laplacian(f, x, batched=True).pow(2).mean()
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(loss, (x, w)))


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("made_inside", [False, True])
def test_switched_off_grad_around_the_call(batched, around, made_inside):
    x, w = double(2, 3) if batched else double(3), double(3, requires_grad=True)
    with around() if made_inside else contextlib.nullcontext():
        x, w = x.clone(), w.clone()
    with around():
        lap = laplacian(lambda x: (w * x).sin().sum(-1), x, batched=batched)
        div = divergence(lambda x: (w * x).sin(), x, batched=batched)
    t = w * x
    close(lap, (-t.sin() * w**2).sum(-1).detach().clone())
    close(div, (t.cos() * w).sum(-1).detach().clone())
    assert not lap.requires_grad
    assert not div.requires_grad


def train_mode_norm():
    return nn.BatchNorm1d(3).double().train()


@pytest.mark.parametrize(
    "field",
    [lambda x: x - x.mean(0), lambda x: x.softmax(0), lambda x: x.flip(0), train_mode_norm(), lambda x: x * x[:1]],
)
def test_mixing_samples_is_an_error(field):
    x = double(4, 3)
    statistics = field.running_mean.clone() if isinstance(field, nn.Module) else None
    for trace, f in [(divergence, field), (laplacian, lambda x: field(x).pow(2).sum(-1))]:
        with pytest.raises(DerivativeError, match=r"mix.* samples.*\.eval\(\)"):
            trace(f, x, batched=True)
    assert statistics is None or torch.equal(statistics, field.running_mean)


def test_random_numbers_in_the_function_are_an_error():
    x, drop = double(2, 3), nn.Dropout(0.5)
    for batched in (False, True):
        with pytest.raises(DerivativeError, match=r"random numbers.*\.eval\(\)"):
            divergence(drop, x, batched=batched)
        with pytest.raises(DerivativeError, match=r"random numbers.*\.eval\(\)"):
            laplacian(lambda x: drop(x).pow(2).sum(-1) if x.dim() == 2 else drop(x).sum(), x, batched=True)
    close(divergence(drop.eval(), x), torch.tensor(6.0, dtype=torch.float64))


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_switched_off_grad_in_the_function_is_an_error(batched, off):
    def field(x):
        with off():
            y = x * 2
        return y * x

    x = double(2, 3) if batched else double(3)
    for trace, f in [(divergence, field), (laplacian, lambda x: field(x).sum(-1))]:
        with pytest.raises(DerivativeError, match=r"no_grad|inference_mode"):
            trace(f, x, batched=batched)


def test_reading_numbers_under_vmap_is_an_error():
    for f in (lambda x: x * x.sum().item(), lambda x: x * 2 if x.sum() > 0 else x):
        with pytest.raises(DerivativeError, match=r"torch\.where"):
            divergence(f, double(3))
        with pytest.raises(DerivativeError, match=r"torch\.where"):
            divergence(f, double(2, 3), batched=True)


def test_train_mode_norm_and_writes_outside_are_errors():
    x, buffer = double(4, 3), torch.zeros(4, 3, dtype=torch.float64)
    with pytest.raises(DerivativeError, match=r"\.eval\(\)"):
        divergence(train_mode_norm(), x)
    with pytest.raises(DerivativeError, match="write"):
        divergence(lambda x: buffer.copy_(x), x)
    with pytest.raises(DerivativeError, match="in place"):
        divergence(lambda x: x.mul_(2), x)
    assert buffer.count_nonzero() == 0


def test_hooks_around_do_not_matter_to_forward_mode():
    x = double(3)
    with saved_tensors_hooks(lambda t: t, lambda t: t):
        close(laplacian(lambda x: (x**3).sum(), x), 6 * x.sum())


def test_progress_bar(capsys, monkeypatch):
    x = double(5)
    close(laplacian(lambda x: (x**3).sum(), x, chunk=2, progress=True), 6 * x.sum())
    assert "directions: 100%" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "torchadx\[progress\]"'):
        divergence(torch.sin, x, progress=True)


def test_wrong_arguments():
    x, f = double(4, 3), lambda x: x.pow(2).sum()
    for trace, function, options, error, words in [
        (laplacian, f, {"method": "trace"}, ValueError, "got 'trace'"),
        (laplacian, f, {"samples": 4}, ValueError, "for method='hutchinson'"),
        (laplacian, f, {"generator": torch.Generator()}, ValueError, "for method='hutchinson'"),
        (laplacian, f, {"method": "hutchinson", "samples": 1}, ValueError, "from 2 on.*got 1"),
        (laplacian, f, {"method": "hutchinson", "samples": 2.0}, ValueError, r"got 2\.0"),
        (laplacian, f, {"chunk": 0}, ValueError, "got 0"),
        (laplacian, f, {"chunk": "all"}, ValueError, "got 'all'"),
        (laplacian, torch.sin, {}, ValueError, r"got \(4, 3\)"),
        (laplacian, f, {"batched": True}, ValueError, r"got \(\) for one sample"),
        (laplacian, lambda x: x.sum(-1, keepdim=True), {"batched": True}, ValueError, r"shape \(\): got \(1,\)"),
        (laplacian, lambda x: x.argmax(), {}, TypeError, r"got torch\.int64"),
        (divergence, lambda x: x[:2], {}, ValueError, r"got \(2, 3\), expected \(4, 3\)"),
        (divergence, lambda x: [x], {}, ValueError, "structure of x"),
        (divergence, lambda x: x[:, :2], {"batched": True}, ValueError, r"got \(2,\), expected \(3,\)"),
        (divergence, lambda x, t: x, {"batched": True, "args": (double(3),)}, ValueError, "same leading dimension"),
        (divergence, lambda x, t: x, {"batched": True, "args": (double(),)}, ValueError, "same leading dimension"),
    ]:
        with pytest.raises(error, match=words):
            trace(function, x, **options)
    with pytest.raises(ValueError, match="x is empty"):
        divergence(torch.sin, double(0))
    with pytest.raises(ValueError, match="x is empty"):
        divergence(torch.sin, double(0, 3), batched=True)
    with pytest.raises(TypeError, match=r"got torch\.int64"):
        laplacian(f, torch.arange(3))
