"""The table's row on inference tensors among the parameters and buffers of a module that is to be trained."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from torchadx import InferenceAware

from .situations import MODES, born, draw, every_mode, near, said, told


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 4)).double()


def born_net():
    """The same network, all of it made of inference tensors."""
    with torch.inference_mode():
        return net()


def tied():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    model[2].weight = model[0].weight
    model[4].register_buffer("twice", model[2].bias.detach())
    model[2].register_buffer("twice", model[4].twice)
    return model


def gradients(module, *args, **kwargs):
    out = module(*args, **kwargs)
    return torch.autograd.grad(out.square().sum(), list(module.parameters()))


def test_parameters_and_buffers_are_replaced_once():
    module, x = born_net(), draw(3, 4)
    wrapper, expected = InferenceAware(module), net()
    names = {f"parameter {name!r}" for name, _ in module.named_parameters()}
    names |= {f"buffer {name!r}" for name, _ in module.named_buffers()}
    found = said(lambda: near(gradients(wrapper, x), gradients(expected, x)))
    assert len(found) == len(names)
    assert all(sum(name in one for one in found) == 1 for name in names)
    held = [*module.parameters(), *module.buffers()]
    assert not any(t.is_inference() for t in held)
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in module.parameters())
    assert said(lambda: wrapper(x)) == []
    expected(x)
    assert all(a is b for a, b in zip(held, [*module.parameters(), *module.buffers()], strict=True))
    near(dict(wrapper.state_dict()), dict(expected.state_dict()))


def test_training_goes_on_from_there():
    x, modules = draw(3, 4), (born_net(), net())
    wrapper = InferenceAware(modules[0])
    assert told(lambda: wrapper(x), "parameter '0.weight'")
    modules[1](x)
    for module in (wrapper, modules[1]):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            module(x).square().sum().backward()
            optimizer.step()
    near(dict(modules[0].state_dict()), dict(modules[1].state_dict()))
    near(wrapper.eval()(x), modules[1].eval()(x))


def test_refusals_name_parameters_and_buffers():
    x = draw(3, 4)
    with pytest.raises(RuntimeError, match=r"parameter '0\.weight'"):
        InferenceAware(born_net(), inference_tensors="raise")(x)
    module = net()
    with torch.inference_mode():
        module[1].running_mean = module[1].running_mean.clone()
    wrapper = InferenceAware(module, inference_tensors="raise")
    with pytest.raises(RuntimeError, match=r"buffer '1\.running_mean'"):
        wrapper(x)
    assert module[1].running_mean.is_inference()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert wrapper.eval()(x).shape == (3, 4)
    with torch.inference_mode():
        alone = nn.Linear(4, 4, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="parameter 'weight'"):
        InferenceAware(alone, inference_tensors="raise")(x)


def test_nothing_is_replaced_where_nothing_is_recorded():
    module = born_net().eval()
    wrapper, held = InferenceAware(module), [*module.parameters(), *module.buffers()]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert said(lambda: wrapper(draw(3, 4))) == []
    assert all(a is b for a, b in zip(held, [*module.parameters(), *module.buffers()], strict=True))


def test_tied_parameters_and_buffers_stay_tied():
    with torch.inference_mode():
        module = tied()
    wrapper, x = InferenceAware(module), draw(3, 4)
    near(gradients(InferenceAware(tied()), x), gradients(tied(), x))
    found = said(lambda: near(gradients(wrapper, x), gradients(tied(), x)))
    assert module[0].weight is module[2].weight
    assert module[2].twice is module[4].twice
    assert not any(t.is_inference() for t in (*module.parameters(), *module.buffers()))
    assert sum("'0.weight'" in one for one in found) == 1


def test_parameters_that_share_memory_still_do():
    with torch.inference_mode():
        module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).double()
        module[1].weight = nn.Parameter(module[0].weight.detach().t())
        module.register_buffer("part", module[0].weight.detach()[:2])
    assert told(lambda: InferenceAware(module)(draw(3, 4)), "parameter '0.weight'")
    with torch.no_grad():
        module[0].weight.copy_(draw(4, 4))
    near(module[1].weight, module[0].weight.t())
    near(module.part, module[0].weight[:2])


def test_frozen_parameters_stay_frozen():
    with torch.inference_mode():
        module = nn.Linear(4, 4, dtype=torch.float64).requires_grad_(False)
    x = draw(3, 4).requires_grad_()
    wrapper = InferenceAware(module)
    assert told(lambda: wrapper(x), "parameter 'weight'")
    out = wrapper(x)
    assert not module.weight.requires_grad
    near(torch.autograd.grad(out.sum(), x)[0], module.weight.sum(0).expand(3, 4))


def test_recurrent_modules_see_their_new_weights():
    with torch.inference_mode():
        torch.manual_seed(1)
        module = nn.LSTM(4, 3, num_layers=2, dtype=torch.float64)
    torch.manual_seed(1)
    expected, x = nn.LSTM(4, 3, num_layers=2, dtype=torch.float64), draw(5, 2, 4)
    wrapper = InferenceAware(module)
    assert told(lambda: wrapper(x), "parameter 'weight_ih_l0'")
    out = wrapper(x)[0]
    near(
        torch.autograd.grad(out.sum(), list(module.parameters())),
        torch.autograd.grad(expected(x)[0].sum(), list(expected.parameters())),
    )


def test_modules_of_another_dtype_device_or_setting_keep_it():
    with torch.inference_mode():
        module = nn.BatchNorm1d(4, dtype=torch.float64)
        module.register_buffer("extra", torch.arange(3), persistent=False)
        module.weight.note = "kept"
    assert told(lambda: InferenceAware(module)(draw(3, 4)), "buffer 'extra'")
    assert module.extra.dtype is torch.int64
    assert "extra" not in module.state_dict()
    assert module.weight.note == "kept"
    assert module.num_batches_tracked == 1


def test_inference_tensors_given_by_functional_call():
    module, x, w = net(), draw(3, 4).requires_grad_(), born(4, 4)
    wrapper, weight = InferenceAware(module), module[3].weight
    expected = functional_call(module, {"3.weight": w.clone()}, (x,))
    found = []
    assert told(lambda: found.append(functional_call(wrapper, {"3.weight": w}, (x,))), "parameter '3.weight'")
    near(found[0], expected)
    near(torch.autograd.grad(found[0].sum(), x), torch.autograd.grad(expected.sum(), x))
    assert module[3].weight is weight
    assert w.is_inference()


@every_mode
def test_lazy_modules(mode):
    module, x = nn.Sequential(nn.LazyLinear(3), nn.Tanh(), nn.LazyLinear(2)), torch.randn(3, 4)
    wrapper = InferenceAware(module)
    with MODES[mode]():
        first = wrapper(x)
        torch.testing.assert_close(wrapper(x), first)
        torch.testing.assert_close(module(x), first)
    if mode == "inference":
        assert told(lambda: wrapper(x), "parameter '0.weight'")
    wrapper(x).sum().backward()
    assert all(p.grad is not None for p in module.parameters())
