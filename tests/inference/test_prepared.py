"""Prepared weights follow every change of the module: whatever happens between calls, results are the bare module's."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from torchadx.inference import InferenceAware

from .checks import as_exact
from .zoo_modules import Doubled

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


VIEWS = {
    "transposed": torch.t,
    "narrowed": lambda weight: weight[:256],
    "strided": lambda weight: weight[::2],
    "same": lambda weight: weight.view(512, 512),
    "lower dtype": lambda weight: weight.bfloat16(),
}


@pytest.mark.parametrize("name", VIEWS)
def test_data_that_looks_at_the_same_memory_in_another_way(name):
    layer = nn.Linear(512, 512)
    wrapper, inputs = InferenceAware(nn.Sequential(layer, nn.ReLU())).eval(), torch.randn(2, 16, 512)
    for rows in inputs:
        x = rows.to(layer.weight.dtype)
        exact = copy.deepcopy(wrapper.module).double()(x.double())
        with torch.inference_mode():
            for _ in range(3):
                as_exact(wrapper(x), wrapper.module(x), exact)
        layer.weight.data = VIEWS[name](layer.weight.data)
        layer.bias.data = layer.bias.data[: len(layer.weight)].to(layer.weight.dtype)


def test_parameters_may_be_swapped():
    """What ``torch.utils.swap_tensors`` does, and with that future flag ``.to()`` and ``load_state_dict()``."""
    wrapper = wrapped()
    torch.utils.swap_tensors(wrapper.module[0].weight, nn.Parameter(torch.randn(512, 256) / 20))
    agrees(wrapper)


def register(module, parametrization):
    if not parametrize.is_parametrized(module, "weight"):
        parametrize.register_parametrization(module, "weight", parametrization)


SURGERY = {
    "parametrized": lambda module: register(module[0], Doubled()),
    "weight norm": lambda module: parametrizations.weight_norm(module[2]),
    "spectral norm": lambda module: parametrizations.spectral_norm(module[2]).eval(),
    "forward": lambda module: setattr(module[2], "forward", lambda x: x[..., :256] * 2),
    "class": lambda module: setattr(module[2], "__class__", type("Negative", (nn.Linear,), {"forward": negative})),
    "deleted": lambda module: module.__delitem__(slice(3, None)),
    "buffer": lambda module: as_buffer(module[0]),
}


def negative(self, x):
    return -nn.functional.linear(x, self.weight)


def as_buffer(layer):
    weight = layer.weight.detach() * 2
    del layer.weight
    layer.register_buffer("weight", weight)


@pytest.mark.parametrize("name", SURGERY)
def test_after_the_module_became_another(name):
    wrapper = wrapped()
    SURGERY[name](wrapper.module)
    agrees(wrapper)
    for p in wrapper.module.parameters():
        p.data.mul_(-1)
    agrees(wrapper)


def test_a_parametrization_removed_again():
    wrapper = wrapped()
    parametrize.register_parametrization(wrapper.module[0], "weight", Doubled())
    agrees(wrapper)
    parametrize.remove_parametrizations(wrapper.module[0], "weight")
    agrees(wrapper)
    wrapper.module[0].weight.data.mul_(-1)
    agrees(wrapper)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(sorted(CHANGES)), st.sampled_from([0, 1, 16, 40])), min_size=2, max_size=8))
def test_after_any_changes(changes):
    torch.manual_seed(0)
    wrapper = wrapped()
    for name, rows in changes:
        CHANGES[name](wrapper.module)
        agrees(wrapper, rows)


SMALL = {
    "row": lambda weight: weight[77].zero_(),
    "element": lambda weight: weight[101, 37].fill_(3.0),
    "clamp": lambda weight: weight.clamp_(max=0.9 * weight.max().item()),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_small_change_that_versions_do_not_count(name):
    """``.data`` hides changes from ``_version``, and a sample misses small ones: ``release()`` is there for them."""
    wrapper = wrapped()
    SMALL[name](wrapper.module[0].weight.data)
    wrapper.release()
    agrees(wrapper)
    with torch.no_grad():
        SMALL[name](wrapper.module[2].weight)
    agrees(wrapper)
