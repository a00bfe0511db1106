"""Prepared weights follow every change of the module: whatever happens between calls, results are the bare module's."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torchadx.inference import InferenceAware

from .checks import as_exact

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of PyTorch has no oneDNN")


def model():
    """Linear layers at even places, activations whose attributes can change at odd ones."""
    return nn.Sequential(
        nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 256), nn.LeakyReLU(), nn.Linear(256, 512)
    ).eval()


def wrapped(**options):
    """A wrapper that has been called (a weight is prepared when it is met again), so that something can go stale."""
    wrapper = InferenceAware(model(), **options).eval()
    agrees(wrapper)
    assert wrapper.prepared_bytes > 0
    return wrapper


def agrees(wrapper, rows=16):
    """Call the wrapper as often as it takes to meet weights, prepare them, and use what was prepared."""
    x = torch.randn(rows, 256)
    with torch.inference_mode():
        exact = copy.deepcopy(wrapper.module).double()(x.double())
        for _ in range(3):
            as_exact(wrapper(x), wrapper.module(x), exact)


def optimizing(build):
    def change(module):
        optimizer = build(module.requires_grad_().parameters())
        optimizer.zero_grad()
        module(torch.randn(4, 256, dtype=module[0].weight.dtype)).square().mean().backward()
        optimizer.step()

    return change


def under(context, work):
    def change(module):
        with context():
            work(module)

    return change


def assigned(module):
    module.load_state_dict(
        {name: torch.randn_like(value) / 20 for name, value in module.state_dict().items()}, assign=True
    )


def loaded(module):
    module.load_state_dict({name: torch.randn_like(value) / 20 for name, value in module.state_dict().items()})


def swapped(module):
    module[0].weight.data = torch.randn(module[0].weight.shape) / 20


def replaced(module):
    """Many new weights of one size: memory, and with it the address, is given out again."""
    for _ in range(5):
        module[0].weight = nn.Parameter(torch.randn(module[0].weight.shape) / 20)


def in_numpy(module):
    module[0].weight.detach().numpy()[...] *= -1


def to_double_and_back(module):
    module.double()
    module[0].weight.data.add_(0.01)
    module.float()


def with_other_bias(module):
    module[0].bias = nn.Parameter(torch.randn(module[0].out_features)) if module[0].bias is None else None


def through_a_view(module):
    module[2].weight.detach()[5:].mul_(-1)


def exchanged(module):
    if module[0].weight.shape == module[4].weight.shape:
        module[0].weight.data, module[4].weight.data = module[4].weight.data, module[0].weight.data


def setter(index, name, *values):
    """Alternate between values of an attribute, so that each change changes something."""

    def change(module):
        now = getattr(module[index], name, None)
        setattr(module[index], name, values[1] if now == values[0] else values[0])

    return change


def surgery(module):
    module[1] = nn.Tanh() if isinstance(module[1], nn.GELU) else nn.GELU()


def other_layer(module):
    module[4] = nn.Linear(256, 512)


def narrowed(module):
    """Other sizes under the same names."""
    width = 32 if module[0].out_features == 512 else 512
    module[0], module[2] = nn.Linear(256, width), nn.Linear(width, 256)


CHANGES = {
    "sgd": optimizing(lambda params: torch.optim.SGD(params, 0.5)),
    "sgd foreach": optimizing(lambda params: torch.optim.SGD(params, 0.5, momentum=0.9, foreach=True)),
    "adam": optimizing(lambda params: torch.optim.Adam(params, 1e-2, foreach=False)),
    "adam foreach": optimizing(lambda params: torch.optim.Adam(params, 1e-2, foreach=True)),
    "adam fused": optimizing(lambda params: torch.optim.Adam(params, 1e-2, fused=True)),
    "load_state_dict": loaded,
    "load_state_dict assign": assigned,
    "data swap": swapped,
    "exchange": exchanged,
    "data.mul_": lambda module: module[0].weight.data.mul_(-1),
    "data.copy_": lambda module: module[2].weight.data.copy_(torch.randn(module[2].weight.shape) / 20),
    "bias.data": lambda module: module[2].bias.data.add_(1),
    "no_grad copy_": under(torch.no_grad, lambda module: module[0].weight.copy_(module[0].weight.flip(0))),
    "inference in place": under(torch.inference_mode, lambda module: module[0].weight.mul_(-1)),
    "one element": under(torch.no_grad, lambda module: module[0].weight[3, 5].add_(1)),
    "view": through_a_view,
    "init": lambda module: nn.init.orthogonal_(module[2].weight),
    "numpy": in_numpy,
    "double and float": to_double_and_back,
    "share_memory_": lambda module: module.share_memory() and module[0].weight.data.mul_(-1),
    "new parameter": replaced,
    "bias comes and goes": with_other_bias,
    "negative_slope": setter(3, "negative_slope", 0.5, 0.01),
    "approximate": setter(1, "approximate", "tanh", "none"),
    "inplace": setter(3, "inplace", True, False),
    "activation replaced": surgery,
    "layer replaced": other_layer,
    "narrowed": narrowed,
    "append": lambda module: module.append(nn.Tanh()),
    "insert": lambda module: module.insert(5, nn.Softplus()),
    "frozen": lambda module: module.requires_grad_(False),
    "train and eval": lambda module: module.train().eval(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_after_a_change(name):
    wrapper = wrapped()
    for _ in range(2):
        before = copy.deepcopy(wrapper.module)
        CHANGES[name](wrapper.module)
        agrees(wrapper)
        agrees(wrapper, rows=64)
    if name not in ("share_memory_", "frozen", "train and eval", "inplace"):
        x = torch.randn(16, 256)
        assert not torch.equal(before(x), wrapper.module(x)), "the change changed nothing"


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(sorted(CHANGES)), st.sampled_from([0, 1, 16, 40])), min_size=2, max_size=8))
def test_after_any_changes(changes):
    torch.manual_seed(0)
    wrapper = wrapped()
    for name, rows in changes:
        CHANGES[name](wrapper.module)
        agrees(wrapper, rows)
