"""Hooks of every kind, lazy layers and the digits: what fires, is made, or is learnt as on the bare module."""

import copy
import warnings

import pytest
import torch
import torch.nn.modules.module
from torch import nn
from torch.utils._pytree import tree_map

from torchadx.inference import InferenceAware

from .checks import as_exact, equal, lent, near, step
from .zoo import encoder, mlp

MODELS = {
    "mlp": lambda: nn.Sequential(mlp(), nn.ReLU()),
    "in place": lambda: mlp(lambda: nn.ReLU(inplace=True)),
    "encoder layer": encoder("gelu", False, True),
}
MODES = {"inference": torch.inference_mode, "no_grad": torch.no_grad, "grad": torch.enable_grad}


def observe(module, seen, where=("pre", "post")):
    """Note what goes into and comes out of every submodule; return the handles."""
    handles = []
    for name, child in module.named_modules():

        def before(child, args, kwargs, name=name):
            seen.append(("before", name, [x.clone() for x in args], sorted(kwargs)))

        def after(child, args, out, name=name):
            seen.append(("after", name, tree_map(lambda y: y.clone() if torch.is_tensor(y) else y, out)))

        if "pre" in where:
            handles.append(child.register_forward_pre_hook(before, with_kwargs=True))
        if "post" in where:
            handles.append(child.register_forward_hook(after))
    return handles


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("where", [("pre",), ("post",), ("pre", "post")], ids="+".join)
@pytest.mark.parametrize("name", MODELS)
def test_every_hook_fires_with_the_same_values(name, where, mode):
    bare = MODELS[name]().eval()
    wrapped, x = InferenceAware(copy.deepcopy(bare)).eval(), torch.randn(4, 5, 256)
    expected, got = [], []
    with MODES[mode]():
        wrapped(x)  # hooks come after the first call
        handles = observe(wrapped.module, got, where)
        observe(bare, expected, where)
        bare(x)
        for _ in range(2):
            got.clear()
            y = wrapped(x)
            near(got, expected)
            assert expected
        for handle in handles:
            handle.remove()
        got.clear()
        near(wrapped(x), y)
        assert got == []


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_hook_may_change_what_passes(index):
    bare = mlp().eval()
    wrapped, x = InferenceAware(copy.deepcopy(bare)).eval(), torch.randn(16, 256)
    for model in (bare, wrapped.module):
        model[index].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
        model[index].register_forward_hook(lambda module, args, out: 2 * out + args[0].mean())
    with torch.inference_mode():
        for _ in range(2):
            near(wrapped(x), bare(x))


def test_hooks_on_the_wrapper_itself():
    wrapped, seen, x = InferenceAware(mlp()).eval(), [], torch.randn(16, 256)
    wrapped.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    wrapped.register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.inference_mode():
        equal(wrapped(x), seen[0])
        near(seen[0], wrapped.module(2 * x))


@pytest.mark.parametrize("register", ["register_module_forward_hook", "register_module_forward_pre_hook"])
def test_global_hooks_see_every_submodule(register):
    module, x, seen = mlp().eval(), torch.randn(16, 256), []
    wrapped = InferenceAware(module)
    with torch.inference_mode():
        wrapped(x)
        handle = getattr(nn.modules.module, register)(lambda child, *args: seen.append(child) and None)
        try:
            wrapped(x)
        finally:
            handle.remove()
    assert [child for child in seen if child is not wrapped] == (
        [module, *module] if "pre" in register else [*module, module]
    )


def test_backward_hooks_fire_in_training_after_inference():
    module, seen, x = mlp(), [], torch.randn(16, 256)
    wrapped = InferenceAware(module)
    module[0].register_full_backward_hook(lambda child, grad_in, grad_out: seen.append("backward"))
    with torch.inference_mode(), warnings.catch_warnings(action="error"):
        near(wrapped(x), module(x))
    step(wrapped, (x,), {})
    assert seen == ["backward"]


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.LazyLinear(512), nn.LazyBatchNorm1d(), nn.LazyLinear(256)

    def forward(self, x):
        return self.last(torch.relu(self.norm(self.first(x))))


@pytest.mark.parametrize("mode", MODES)
def test_lazy_layers_are_made_by_the_first_call(mode):
    x, results = torch.randn(16, 256), []
    for make in (lambda: Lazy().eval(), lambda: InferenceAware(Lazy()).eval()):
        torch.manual_seed(7)
        module = make()
        assert nn.parameter.is_lazy(next(module.parameters()))
        with MODES[mode]():
            results.append([module(x), module(x)])
        assert not any(nn.parameter.is_lazy(p) for p in module.parameters())
    near(results[1], results[0])
    assert type(module.first) is nn.Linear


def test_lazy_layers_made_in_inference_mode_can_be_trained():
    x, module = torch.randn(16, 256), Lazy().eval()
    wrapped = InferenceAware(module)
    with torch.inference_mode():
        before = wrapped(x)
    assert module.first.weight.is_inference(), "PyTorch has changed: parameters used to be made as inference tensors"
    with pytest.raises(RuntimeError, match=r"[Ii]nference tensor"):
        module(x).sum().backward()
    with warnings.catch_warnings(record=True, action="always") as caught:
        after = wrapped(x)
    named = [str(warning.message).partition(" was made")[0].partition(": ")[2] for warning in caught]
    parameters = {f"parameter '{name}'" for name, _ in module.named_parameters()}
    assert sorted(named) == sorted({*parameters, "buffer 'norm.running_mean'", "buffer 'norm.running_var'"})
    near(after.detach(), before.clone())
    out, inputs, found = step(wrapped, (x,), {})
    assert all(gradient is not None for gradient in found.values())


def digits():
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    return torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)


def test_the_digits():
    images, labels = digits()
    bare = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    wrapped = InferenceAware(copy.deepcopy(bare))
    for model in (bare, wrapped):
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for part in range(80):
            picked = slice(part * 16, part * 16 + 16)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[picked]), labels[picked]).backward()
            optimizer.step()
            if part % 10 == 0:  # a look in between must not disturb training
                with torch.inference_mode():
                    model(images[1280:1300])
    equal(dict(wrapped.state_dict()), dict(bare.state_dict()))
    exact = copy.deepcopy(bare).double()
    with torch.inference_mode():
        for _ in range(3):
            got, plain = wrapped(images[1280:]), bare(images[1280:])
            as_exact(got, plain, exact(images[1280:].double()))
    assert (got.argmax(1) == labels[1280:]).double().mean() > 0.8
    assert lent(wrapped.module) == set()
    assert wrapped.prepared_bytes > 0
