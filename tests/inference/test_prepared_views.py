"""Prepared weights where a change is of an unusual kind: other views of one memory, other classes, uncounted writes."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import torchadx
from torchadx.inference import InferenceAware

from .checks import as_exact
from .test_prepared import agrees, wrapped
from .zoo_modules import Doubled

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of PyTorch has no oneDNN")


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


BIASES = {
    "one number": lambda: torch.randn(1),
    "a row": lambda: torch.randn(1, 512),
    "another dtype": lambda: torch.randn(512, dtype=torch.float64),
    "a subclass": lambda: torch.randn(512).as_subclass(type("Doubled", (torch.Tensor,), {})),
}


@pytest.mark.parametrize("container", [lambda layer: layer, lambda layer: nn.Sequential(layer, nn.ReLU())])
@pytest.mark.parametrize("name", BIASES)
def test_a_bias_of_another_kind(name, container):
    """Before the first call and after some: what PyTorch broadcasts is broadcast, what it refuses is refused."""
    for calls in (0, 3):
        layer, x = nn.Linear(256, 512), torch.randn(16, 256)
        module = container(layer)
        wrapper = InferenceAware(module).eval()
        with torch.inference_mode():
            for _ in range(calls):
                wrapper(x)
        layer.bias = nn.Parameter(BIASES[name](), requires_grad=False)
        with torch.inference_mode():
            for _ in range(3):
                try:
                    expected = module(x)
                except RuntimeError:
                    with pytest.raises(RuntimeError):
                        wrapper(x)
                else:
                    torch.testing.assert_close(wrapper(x), expected, rtol=1e-5, atol=1e-5)


def test_another_activation_in_a_fused_layer():
    layer, x = torchadx.nn.Linear(256, 512, activation="gelu"), torch.randn(16, 256)
    wrapper = InferenceAware(nn.Sequential(layer, nn.Identity())).eval()
    with torch.inference_mode():
        for activation in ("gelu", "tanh", "relu"):
            layer.activation = activation
            for _ in range(3):
                torch.testing.assert_close(wrapper(x), wrapper.module(x), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_inputs_that_are_no_ordinary_tensors():
    module = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256))
    wrapper = InferenceAware(module).eval()
    nested = torch.nested.nested_tensor([torch.randn(3, 256), torch.randn(5, 256)])
    with torch.inference_mode():
        for _ in range(3):
            for got, expected in zip(wrapper(nested).unbind(), module(nested).unbind(), strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_small_inputs_do_not_keep_large_ones_from_prepared_weights():
    wrapper = InferenceAware(nn.Sequential(nn.Linear(256, 512), nn.ReLU())).eval()
    with torch.inference_mode():
        for rows in (1, 1, 1, 1, 16, 16):
            wrapper(input=torch.randn(rows, 256))
    assert wrapper.prepared_bytes > 0


@pytest.mark.parametrize("name", ["self_attn.out_proj", "linear1", "linear2"])
def test_a_bias_of_another_kind_in_an_encoder_layer(name):
    layer, x = nn.TransformerEncoderLayer(256, 4, 256, batch_first=True, norm_first=True), torch.randn(4, 8, 256)
    wrapper = InferenceAware(layer).eval()
    with torch.inference_mode():
        for _ in range(3):
            wrapper(x)
        layer.get_submodule(name).bias = nn.Parameter(torch.randn(1), requires_grad=False)
        for _ in range(3):
            torch.testing.assert_close(wrapper(x), layer(x), rtol=1e-5, atol=1e-5)
    assert "not of one kind" in wrapper.explain()
