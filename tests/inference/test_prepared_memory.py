"""What prepared weights cost, and where they go: bounds, release, lower precision, and no trace in the state."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from torchadx.inference import InferenceAware

from .checks import near, packed
from .zoo import encoder, mlp

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN in this PyTorch")
pytestmark = needs_onednn


def wide(layers=3):
    """Layers of 256 KiB each in float32."""
    return nn.Sequential(*[nn.Linear(256, 256) for _ in range(layers)]).eval()


def call(wrapper, rows=16):
    x = torch.randn(rows, wrapper.module[0].in_features)
    with torch.inference_mode():
        for _ in range(3):  # met, prepared, used
            near(wrapper(x), wrapper.module(x))


def test_prepared_in_inference_mode_alone():
    wrapper, x = InferenceAware(wide()), torch.randn(16, 256)
    assert wrapper.prepared_bytes == 0
    with torch.no_grad():
        wrapper(x)
    wrapper(x).sum().backward()
    assert wrapper.prepared_bytes == 0
    call(wrapper)
    held = wrapper.prepared_bytes
    assert 3 * 2**18 <= held <= 4 * 2**18
    call(wrapper)
    assert wrapper.prepared_bytes == held


def test_train_drops_and_the_next_call_prepares_again():
    wrapper, before = InferenceAware(wide()), packed()
    call(wrapper)
    held = wrapper.prepared_bytes
    assert packed() > before
    wrapper.train()
    assert (wrapper.prepared_bytes, packed()) == (0, before)
    wrapper.eval()
    call(wrapper)
    assert wrapper.prepared_bytes == held


def test_release_frees():
    wrapper, before = InferenceAware(wide()), packed()
    for _ in range(2):
        call(wrapper)
        assert packed() > before
        wrapper.release()
        assert (wrapper.prepared_bytes, packed()) == (0, before)
    wrapper.release()
    call(wrapper)
    assert wrapper.prepared_bytes > 0


def test_a_refresh_replaces_what_it_refreshes():
    wrapper = InferenceAware(wide())
    call(wrapper)
    held, count = wrapper.prepared_bytes, packed()
    for _ in range(5):
        with torch.no_grad():
            wrapper.module[0].weight.mul_(-1)
        call(wrapper)
    assert (wrapper.prepared_bytes, packed()) == (held, count)


@pytest.mark.parametrize("rows", [(16, 17, 18), (16, 32, 64, 256)])
def test_other_row_counts_do_not_pile_up(rows):
    wrapper = InferenceAware(wide())
    for count in rows * 3:
        call(wrapper, count)
    assert wrapper.prepared_bytes <= 2 * 4 * 2**18


def test_everything_dies_with_the_wrapper():
    before, module = packed(), wide()
    wrapper = InferenceAware(module)
    call(wrapper)
    alive = [weakref.ref(thing) for thing in (wrapper, module, module[0], module[0].weight)]
    del wrapper
    gc.collect()
    assert alive[0]() is None
    assert packed() == before
    del module
    gc.collect()
    assert [ref() for ref in alive] == [None] * 4


def test_a_replaced_weight_is_not_kept_alive():
    wrapper = InferenceAware(wide())
    call(wrapper)
    held, old = wrapper.prepared_bytes, weakref.ref(wrapper.module[1].weight)
    wrapper.module[1] = nn.Linear(256, 256)
    call(wrapper)
    gc.collect()
    assert old() is None
    assert wrapper.prepared_bytes == held
    wrapper.module[1] = nn.Identity()
    call(wrapper)
    assert wrapper.prepared_bytes < held


@pytest.mark.parametrize("bound", [0, 1000, 2**18, 600_000, "300 KiB", "600 KiB", "4 MiB"])
def test_the_bound_holds_after_every_call(bound):
    wrapper, allowed = InferenceAware(wide(), cache_bytes=bound), bound
    if isinstance(bound, str):
        number, unit = bound.split()
        allowed = int(number) * {"KiB": 2**10, "MiB": 2**20}[unit]
    for rows in (16, 20, 64) * 2:
        call(wrapper, rows)
        assert wrapper.prepared_bytes <= allowed
    if allowed >= 2**19:
        assert wrapper.prepared_bytes >= 2**18
    wrapper.release()
    assert wrapper.prepared_bytes == 0


class Either(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = wide()

    def forward(self, x, which):
        return self.layers[which](x)


def test_more_weights_than_fit():
    wrapper, x = InferenceAware(Either(), cache_bytes=600_000), torch.randn(16, 256)
    alive = []
    with torch.inference_mode():
        for which in (0, 1, 0, 2):
            for _ in range(3):
                near(wrapper(x, which), wrapper.module(x, which))
            alive.append(wrapper.prepared_bytes)
    assert alive[0] < alive[1] == alive[2] == alive[3] <= 600_000
    lines = wrapper.explain().splitlines()
    ours = ["prepared" in line and "not prepared" not in line for line in lines if "layers." in line]
    assert len(ours) == 3, wrapper.explain()


@pytest.mark.parametrize("bound", [-1, 1.5, "much", "5 apples", [1]])
def test_a_bad_bound_is_refused(bound):
    with pytest.raises((TypeError, ValueError), match="cache_bytes"):
        InferenceAware(wide(), cache_bytes=bound)


def test_the_state_has_no_trace():
    module = wide()
    wrapper, keys = InferenceAware(module), list(module.state_dict())
    attributes = [set(vars(child)) for child in module.modules()]
    call(wrapper)
    assert list(wrapper.state_dict()) == list(module.state_dict()) == keys
    assert [name for name, _ in wrapper.named_parameters()] == keys
    assert list(wrapper.buffers()) == []
    assert [set(vars(child)) for child in module.modules()] == attributes


MODELS = {"mlp": mlp, "encoder layer": encoder("gelu", True, True), "linear": lambda: nn.Linear(256, 512)}


@pytest.mark.parametrize("given", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_weights(name, given):
    module, x = MODELS[name]().eval().to(given), torch.randn(4, 5, 256, dtype=given)
    wrapper, exact = InferenceAware(module, dtype=torch.bfloat16), copy.deepcopy(module).double()
    with torch.inference_mode():
        expected = exact(x.double())
        for _ in range(3):
            y = wrapper(x)
            assert y.dtype == module(x).dtype == given
            assert (y.double() - expected).norm() <= 0.01 * expected.norm()
        assert not torch.equal(y, module(x)), "nothing ran in bfloat16"
    assert 0 < wrapper.prepared_bytes < sum(p.nbytes for p in module.parameters())
    assert {p.dtype for p in module.parameters()} == {given}
    near(wrapper(x), module(x))  # training stays in full precision


@pytest.mark.parametrize("change", [lambda w: w.data.mul_(-1.5), lambda w: setattr(w, "data", torch.randn_like(w))])
def test_bfloat16_weights_are_refreshed(change):
    wrapper, x = InferenceAware(mlp(), dtype=torch.bfloat16).eval(), torch.randn(16, 256)
    with torch.inference_mode():
        before = [wrapper(x) for _ in range(3)][-1]
        change(wrapper.module[0].weight)
        for _ in range(3):
            got, expected = wrapper(x), wrapper.module(x)
            assert (got - expected).norm() <= 0.01 * expected.norm()
    assert not torch.allclose(got, before, atol=1e-2)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_autocast_gives_what_the_bare_module_gives(name, dtype):
    module, x = MODELS[name]().eval(), torch.randn(4, 5, 256)
    wrapper, exact = InferenceAware(module, dtype=dtype), copy.deepcopy(module).double()
    with torch.inference_mode():
        expected = exact(x.double())
        for on in (True, False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=on):
                got, plain = wrapper(x), module(x)
            assert got.dtype == plain.dtype
            assert (got.double() - expected).norm() <= 0.01 * expected.norm()
            if not on and dtype is None:
                near(got, plain)


def test_float16_weights():
    module, x = mlp().eval(), torch.randn(16, 256)
    wrapper = InferenceAware(module, dtype=torch.float16)
    with torch.inference_mode():
        got, expected = wrapper(x), module(x)
    assert got.dtype == torch.float32
    assert (got - expected).norm() <= 0.002 * expected.norm()
