"""A wrapper that is copied, pickled and saved, and the names it gives to what it holds."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from torchadx.inference import InferenceAware

from .checks import equal, lent, near
from .zoo import CASES, mlp


def through_pickle(thing):
    return pickle.loads(pickle.dumps(thing))


def through_a_file(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": through_pickle, "torch.save": through_a_file}
# PyTorch itself cannot copy these: what their forward keeps is no leaf, or is a local function
UNCOPIED = {"old weight norm", "pruned", "patched", "old spectral norm", "weight norm", "spectral norm", "parametrized"}


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize("case", [case for case in CASES if case.name not in UNCOPIED], ids=str)
def test_copies_agree(case, how):
    wrapped = InferenceAware(case.module()).eval()
    args, kwargs = case.inputs()
    twin = COPIES[how](wrapped)
    equal(dict(twin.state_dict()), dict(wrapped.state_dict()))
    with torch.inference_mode():
        for _ in range(3):
            near(twin(*args, **kwargs), wrapped(*args, **kwargs))
    assert twin.training is wrapped.training


OPTIONS = {
    "policy": "raise", "inference_tensors": "raise", "outputs": "normal", "eval_in_inference": True,
    "dtype": torch.bfloat16, "cache_bytes": "64 MiB",
}  # fmt: skip


@pytest.mark.parametrize("how", COPIES)
def test_copies_are_independent_and_keep_options(how):
    x = torch.randn(16, 256)
    wrapped = InferenceAware(mlp(), **OPTIONS)
    with torch.inference_mode():
        before = [wrapped(x) for _ in range(3)][-1]
    twin = COPIES[how](wrapped)
    assert twin.prepared_bytes == 0, "prepared weights were copied"
    assert wrapped.prepared_bytes > 0
    with torch.no_grad():
        twin.module[0].weight.mul_(-2)
    with torch.inference_mode():
        assert not twin(x).is_inference(), "an option was lost"
        near(wrapped(x), before)
        for _ in range(3):
            assert not torch.allclose(twin(x), before, atol=1e-2)
        wrapped.release()
        assert (wrapped.prepared_bytes, twin.prepared_bytes > 0) == (0, True)
    with torch.inference_mode():
        inside = torch.ones(16, 256)
    with pytest.raises(RuntimeError, match="input 0"):
        twin(inside)


def test_a_copy_of_the_module_inside_is_bare():
    wrapped, x = InferenceAware(mlp()).eval(), torch.randn(16, 256)
    with torch.inference_mode():
        wrapped(x)
        for how in COPIES.values():
            twin = how(wrapped.module)
            assert lent(twin) == set()
            near(twin(x), wrapped(x))


class Copies(nn.Module):
    """Copies a part of itself in the middle of a call, as a thread that saves a served model would."""

    def __init__(self, how):
        super().__init__()
        self.body, self.how, self.kept = mlp(), how, None

    def forward(self, x):
        self.kept = self.how(self.body)
        return self.body(x)


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_made_during_a_call_is_bare(how):
    wrapped, x = InferenceAware(Copies(COPIES[how])).eval(), torch.randn(16, 256)
    with torch.inference_mode():
        for _ in range(3):
            expected, twin = wrapped(x), wrapped.kept
            assert lent(twin) == set(), "the copy has a stand-in for good"
            near(twin(x), expected)
        twin[0].weight.mul_(-2)
        assert not torch.allclose(twin(x), expected, atol=1e-3)
        near(wrapped(x), expected)


def test_state_dict_names_are_the_modules_own():
    module, x = mlp(), torch.randn(16, 256)
    wrapped = InferenceAware(copy.deepcopy(module))
    holder, plain = nn.Module(), nn.Module()
    holder.inner, plain.inner = nn.Sequential(wrapped, nn.Linear(256, 2)), nn.Sequential(module, nn.Linear(256, 2))
    equal(dict(wrapped.state_dict()), dict(module.state_dict()))
    for kind in ("state_dict", "named_parameters", "named_buffers"):
        assert list(dict(getattr(holder, kind)())) == list(dict(getattr(plain, kind)()))
    assert list(wrapped.state_dict(prefix="a.")) == list(module.state_dict(prefix="a."))
    assert len(list(holder.parameters())) == len(list(plain.parameters()))
    for source, target in ((plain, holder), (holder, plain)):
        for parameter in source.parameters():
            parameter.data.normal_()
        target.load_state_dict(source.state_dict())
        near(holder.inner(x), plain.inner(x))
    given = wrapped.load_state_dict({"0.weight": torch.zeros(512, 256), "other": torch.zeros(1)}, strict=False)
    assert given.unexpected_keys == ["other"]
    assert given.missing_keys == ["0.bias", "2.weight", "2.bias"]
    with pytest.raises(RuntimeError, match=r"size mismatch for 0\.weight"):
        wrapped.load_state_dict({**module.state_dict(), "0.weight": torch.zeros(1, 1)})


def test_functional_call_takes_the_modules_own_names():
    wrapped, x = InferenceAware(mlp()).eval(), torch.randn(16, 256)
    other = {name: torch.randn_like(p) / 8 for name, p in wrapped.named_parameters()}
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with mode():
            for _ in range(2):
                got = torch.func.functional_call(wrapped, other, (x,))
                near(got, torch.func.functional_call(wrapped.module, other, (x,)))
                near(wrapped(x), wrapped.module(x))


def test_what_the_wrapper_lacks_is_the_modules():
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    module.config = {"classes": 3}
    wrapped = InferenceAware(module)
    assert wrapped[0] is module[0]
    assert wrapped[1:][0] is module[1]
    assert wrapped.config is module.config
    with pytest.raises(AttributeError, match="nothing"):
        _ = wrapped.nothing
    with pytest.raises(TypeError):
        InferenceAware(nn.ReLU())[0]
