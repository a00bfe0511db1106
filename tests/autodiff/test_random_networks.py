"""Networks of any depth and width: their Jacobians, and what is live while they are computed."""

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory_probe import peak_above
from torch import nn
from zoo import agree

import torchadx
from torchadx.autodiff import DerivativeError, jacobian, plan_jacobian

ACTIVATIONS = {
    "none": nn.Identity, "tanh": nn.Tanh, "relu": nn.ReLU, "inplace": lambda: nn.ReLU(inplace=True), "gelu": nn.GELU,
    "silu": nn.SiLU, "softplus": nn.Softplus, "softmax": lambda: nn.Softmax(-1),
}  # fmt: skip
# most widths are small; now and then one is wide, so that narrow and wide places alternate
WIDTHS = st.one_of(st.integers(1, 12), st.integers(1, 48), st.sampled_from([1, 2, 128, 512]))
FEW = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])


class Network(nn.Module):
    """Linear layers with activations; a layer as wide as an earlier one may add that one's output to its own."""

    def __init__(self, widths, activations, reaches, fused):
        super().__init__()
        self.layers = nn.ModuleList()
        for (before, after), name in zip(itertools.pairwise(widths), activations, strict=True):
            kind = torchadx.nn.Linear if fused else nn.Linear
            self.layers.append(nn.Sequential(kind(before, after), ACTIVATIONS[name]()))
        self.reaches = reaches

    def forward(self, x):
        seen = [x]
        for layer, reach in zip(self.layers, self.reaches, strict=True):
            h = layer(seen[-1])
            back = [other for other in seen[-reach:] if other.shape == h.shape] if reach else []
            for other in back:
                h = h + other
            seen.append(h)
        return seen[-1]


@st.composite
def networks(draw):
    depth = draw(st.integers(1, 12))
    widths = draw(st.lists(WIDTHS, min_size=depth + 1, max_size=depth + 1))
    # residuals need layers of equal width: some layers keep the width they get
    for i in range(1, depth + 1):
        if draw(st.booleans()):
            widths[i] = widths[i - 1]
    activations = draw(st.lists(st.sampled_from(sorted(ACTIVATIONS)), min_size=depth, max_size=depth))
    reaches = draw(st.lists(st.integers(0, 3), min_size=depth, max_size=depth))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    model = Network(widths, activations, reaches, draw(st.booleans())).double().requires_grad_(False)
    return model, torch.randn(draw(st.integers(1, 3)), widths[0], dtype=torch.float64)


@FEW
@given(networks(), st.sampled_from(["auto", "forward", "reverse", "mixed"]), st.sampled_from(["auto", 1, 5]))
def test_jacobians(drawn, mode, chunk):
    model, x = drawn
    agree(jacobian(model, x[0], mode=mode, chunk=chunk if x.shape[1] < 100 else "auto"), torch.func.jacrev(model)(x[0]))


@FEW
@given(networks(), st.sampled_from(["auto", "forward", "reverse", "mixed"]))
def test_per_sample_jacobians(drawn, mode):
    model, x = drawn
    agree(jacobian(model, x, batched=True, mode=mode), torch.func.vmap(torch.func.jacrev(model))(x))


@FEW
@given(networks())
def test_factored_jacobians(drawn):
    model, x = drawn
    agree(jacobian(model, x[0], factored=True).dense(), torch.func.jacrev(model)(x[0]))


@FEW
@given(networks(), st.sampled_from(["auto", "forward", "reverse", "mixed"]), st.floats(0.05, 1.0), st.booleans())
def test_memory_limits_hold(drawn, mode, fraction, batched):
    model, x = drawn
    x = x if batched else x[0]
    free = plan_jacobian(model, x, mode=mode, batched=batched)
    expected, unlimited = peak_above(lambda: free(x))
    limit = max(1, int(fraction * max(unlimited, free.peak_bytes)))
    try:
        plan = plan_jacobian(model, x, mode=mode, batched=batched, memory=limit)
    except DerivativeError:
        # what needs no limit fits in one as large as what it needs
        assert limit < max(unlimited, free.peak_bytes)
        return
    got, used = peak_above(lambda: plan(x))
    agree(got, expected)
    assert used <= limit


@FEW
@given(networks(), st.booleans())
def test_predictions_of_memory_bound_what_is_used(drawn, batched):
    model, x = drawn
    x = x if batched else x[0]
    plan = plan_jacobian(model, x, batched=batched)
    assert peak_above(lambda: plan(x))[1] <= plan.peak_bytes


@pytest.mark.parametrize("depth", [1, 12])
def test_hypothesis_reaches_residuals_of_every_depth(depth):
    model = Network([4] * (depth + 1), ["tanh"] * depth, [min(3, i) for i in range(depth)], False).double()
    x = torch.randn(4, dtype=torch.float64)
    agree(jacobian(model, x), torch.func.jacrev(model)(x))
