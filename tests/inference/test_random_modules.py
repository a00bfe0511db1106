"""Modules drawn at random, with hooks, replaced forwards and shared parts: agreement in every mode."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import torchadx
from torchadx.inference import InferenceAware, unpack_dual

from .checks import as_exact, dual, equal, lent, near, step, tangents

LEAVES = {
    "linear": lambda: nn.Linear(256, 256),
    "without bias": lambda: nn.Linear(256, 256, bias=False),
    "fused": lambda: torchadx.nn.Linear(256, 256, activation="silu"),
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "gelu": nn.GELU,
    "gelu tanh": lambda: nn.GELU("tanh"),
    "leaky": lambda: nn.LeakyReLU(0.2),
    "tanh": nn.Tanh,
    "identity": nn.Identity,
    "norm": lambda: nn.LayerNorm(256),
    "empty": nn.Sequential,
}


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x.clone())


def build(tree):
    """A name is a leaf, a list a sequence, and a pair of a mark and a tree is wrapped in what the mark says."""
    if isinstance(tree, str):
        return LEAVES[tree]()
    if isinstance(tree, list):
        return nn.Sequential(*map(build, tree))
    mark, inner = tree
    if mark == "twice":
        part = build(inner)
        return nn.Sequential(part, nn.Tanh(), part)
    module = build(inner)
    if mark == "residual":
        return Residual(module)
    if mark == "wrapped":
        return InferenceAware(module)
    if mark == "hook":
        module.register_forward_hook(lambda module, args, out: out * 1.5)
    elif mark == "pre-hook":
        module.register_forward_pre_hook(lambda module, args: (args[0] + 0.5,))
    else:
        module.forward = lambda x: x * 0.5
    return module


MARKS = st.sampled_from(["twice", "residual", "wrapped", "hook", "pre-hook", "replaced"])
TREES = st.recursive(
    st.sampled_from(sorted(LEAVES)),
    lambda inner: st.lists(inner, min_size=1, max_size=5) | st.tuples(MARKS, inner),
    max_leaves=10,
)


def made(tree, dtype):
    torch.manual_seed(1)
    # the copy of the input is for modules that begin by changing it in place
    return nn.Sequential(Residual(build(tree))).to(dtype).eval()


@settings(deadline=None, max_examples=60)
@given(TREES, st.sampled_from([(16,), (1,), (0,), (2, 20), ()]))
def test_any_module(tree, shape):
    bare, module, exact = (made(tree, dtype) for dtype in (torch.float32, torch.float32, torch.float64))
    wrapped, x, own = InferenceAware(module), torch.randn(*shape, 256), lent(module)
    with torch.inference_mode():
        for _ in range(3):
            as_exact(wrapped(x), bare(x), exact(x.double()))
    assert lent(module) == own
    twin = InferenceAware(copy.deepcopy(exact))
    along = [torch.randn_like(x.double())]
    with torch.inference_mode(), dual((x.double(),), along) as duals:
        got = unpack_dual(twin(*duals))
    near(((got.primal,), (got.tangent,)), tangents(exact, (x.double(),), {}, along))
    try:
        expected = step(bare, (x,), {})
    except RuntimeError:  # a result that backward needs was changed in place
        with pytest.raises(RuntimeError):
            step(wrapped, (x,), {})
    else:
        equal(step(wrapped, (x,), {}), expected)
