"""The table's rows on inference tensors as inputs of training, and on what inference mode returns."""

import pytest
import torch
from torch import nn

from torchadx import InferenceAware
from torchadx.inference import TRAIN, current_mode

from .situations import born, draw, near, said


class Sums(nn.Module):
    """Uses everything that it gets."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4, dtype=torch.float64)

    def forward(self, *xs, **named):
        leaves = torch.utils._pytree.tree_leaves((xs, named))
        return self.linear(sum(leaves)).tanh() * leaves[0]


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 4)).double()


def gradients(module, *args, **kwargs):
    out = module(*args, **kwargs)
    return torch.autograd.grad(out.square().sum(), list(module.parameters()))


INPUTS = {
    "input 0": lambda x, y: ((x,), {}),
    "input 1": lambda x, y: ((y, x), {}),
    "keyword input 'mask'": lambda x, y: ((y,), {"mask": x}),
    "input 0['image']": lambda x, y: (({"image": x, "other": y},), {}),
    "input 1[1][0]": lambda x, y: ((y, (y, [x])), {}),
    "keyword input 'mask'[0]": lambda x, y: ((y,), {"mask": (x,)}),
}


# inputs


@pytest.mark.parametrize("name", INPUTS)
def test_an_input_is_copied_with_one_warning(name):
    x, y, module = born(3, 4), draw(3, 4), Sums()
    wrapper = InferenceAware(module)
    args, kwargs = INPUTS[name](x, y)
    first = said(lambda: wrapper(*args, **kwargs))
    assert len(first) == 1
    assert name in first[0]
    assert said(lambda: wrapper(*args, **kwargs)) == []
    plain_args, plain_kwargs = INPUTS[name](x.clone(), y)
    near(gradients(wrapper, *args, **kwargs), gradients(module, *plain_args, **plain_kwargs))
    assert x.is_inference(), "the caller's is not changed"


@pytest.mark.parametrize("name", INPUTS)
def test_an_input_is_refused(name):
    wrapper = InferenceAware(Sums(), inference_tensors="raise")
    args, kwargs = INPUTS[name](born(3, 4), draw(3, 4))
    with pytest.raises(RuntimeError) as refusal:
        wrapper(*args, **kwargs)
    assert name in str(refusal.value)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert wrapper(*args, **kwargs).shape == (3, 4)
    args, kwargs = INPUTS[name](draw(3, 4), draw(3, 4))
    assert wrapper(*args, **kwargs).requires_grad


def test_each_argument_is_named_once_by_each_wrapper():
    x, y, module = born(3, 4), born(3, 4), Sums()
    wrapper = InferenceAware(module)
    found = said(lambda: [wrapper(x, y), wrapper(x, y), wrapper(x, mask=y)])
    names = ("input 0", "input 1", "keyword input 'mask'")
    assert [sum(name in one for one in found) for name in names] == [1, 1, 1]
    assert len(said(lambda: InferenceAware(module)(x))) == 1


def test_normal_inputs_are_passed_as_they_are():
    seen = []

    class Keeps(nn.Module):
        def forward(self, *args):
            seen.extend(args)
            return args[0]

    x, y, batch = draw(3), draw(3).requires_grad_(), {"a": [1, None]}
    assert said(lambda: InferenceAware(Keeps())(x, y, batch)) == []
    assert all(got is given for got, given in zip(seen, (x, y, batch), strict=True))


def test_silence_where_nothing_is_recorded():
    wrapper, x = InferenceAware(Sums()), born(3, 4)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert said(lambda: wrapper(x)) == []


# what inference mode returns


def test_outputs_of_inference_mode():
    class Several(nn.Module):
        def forward(self, x):
            y = x * 2
            return {"y": y, "pair": (y, [x, None, 3])}

    x, w = draw(3, 4), draw(3, 4).requires_grad_()
    plain, normal = InferenceAware(Several()), InferenceAware(Several(), outputs="normal")
    with torch.inference_mode():
        assert plain(x)["y"].is_inference()
        out = normal(x)
        assert not out["y"].is_inference()
        assert out["y"] is out["pair"][0]
        assert out["pair"][1][0] is x
        assert out["pair"][1][1:] == [None, 3]
    near(torch.autograd.grad((out["y"] * w).sum(), w)[0], 2 * x)
    out["y"].add_(1)
    assert out["y"]._version >= 1
    for mode in (torch.enable_grad, torch.no_grad):
        with mode():
            near(normal(x)["y"], 2 * x)


@pytest.mark.parametrize("outputs", ["inference", "normal"])
def test_outputs_used_in_training_later(outputs):
    encoder = InferenceAware(net().eval(), outputs=outputs)
    head, x = InferenceAware(nn.Linear(4, 2, dtype=torch.float64), inference_tensors="raise"), draw(3, 4)
    with torch.inference_mode():
        hidden = encoder(x)
    if outputs == "inference":
        with pytest.raises(RuntimeError, match="input 0"):
            head(hidden)
    else:
        head(hidden).sum().backward()
        near(head.weight.grad, encoder.module(x).detach().sum(0).expand(2, 4))
    assert current_mode().kind is TRAIN


@pytest.mark.parametrize("option", ["policy", "inference_tensors", "outputs"])
def test_bad_options(option):
    with pytest.raises(ValueError, match=f"{option}.*'neither'"):
        InferenceAware(net(), **{option: "neither"})


def test_more_bad_options():
    for options, error in (
        ({"dtype": torch.float64}, ValueError),
        ({"dtype": "bfloat16"}, TypeError),
        ({"cache_bytes": "many"}, ValueError),
        ({"cache_bytes": -1}, ValueError),
    ):
        with pytest.raises(error):
            InferenceAware(net(), **options)
    with pytest.raises(TypeError):
        InferenceAware(torch.sin)
