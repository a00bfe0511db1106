"""The table of what a wrapper does in each situation: values and tangents; next to it is what PyTorch does there."""

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

import torchadx
from torchadx import InferenceAware
from torchadx.inference import make_dual, unpack_dual

from .situations import MODES, born, draw, every_mode, near


class Trees(nn.Module):
    """Reads nested and keyword inputs, parameters of its own, of a child, tied ones, and a buffer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.second = nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 4))
        self.second[0].weight = nn.Parameter(self.second[0].weight.detach().clone())
        self.scale = nn.Parameter(torch.randn(4))
        self.register_buffer("shift", torch.randn(4))
        self.norm = nn.BatchNorm1d(6).eval()
        self.norm.running_mean.normal_()
        self.to(torch.float64)

    def forward(self, batch, pair=(0.0, 0.0), *, mask=None):
        hidden = self.norm(self.first(batch["image"])) + pair[0]
        out = self.second(hidden) * self.scale + self.shift + pair[1]
        out = out if mask is None else out * mask
        return {"out": out, "all": [hidden.sum() * out.sum(), (out, "word")]}


SHAPES = {"image": (3, 4), "pair 0": (3, 6), "pair 1": (4,), "mask": (3, 4)}.values()


def sensitivities(module, chosen, call):
    """Tangents by ``torch.func.jvp`` of the bare module along ones for the state's tensors of the names ``chosen``."""
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    moved = {name: state[name].detach() for name in chosen}
    along = {name: torch.ones_like(t) for name, t in moved.items()}
    return torch.func.jvp(lambda moved: call(lambda *a, **k: functional_call(module, moved, a, k)), (moved,), (along,))


def put_duals(module, chosen):
    """Replace parameters and buffers by duals along ones, as in PyTorch's tutorial of forward AD."""
    for name in chosen:
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        tensor = getattr(owner, leaf).detach()
        if leaf in owner._parameters:
            del owner._parameters[leaf]
            setattr(owner, leaf, make_dual(tensor, torch.ones_like(tensor)))
        else:
            owner._buffers[leaf] = make_dual(tensor, torch.ones_like(tensor))


def tangents(out):
    return {"out": unpack_dual(out["out"]).tangent, "all": [unpack_dual(out["all"][0]).tangent]}


# inference mode, ordinary inputs


def test_forward_only():
    module = nn.Sequential(nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 256), nn.Tanh()).eval()
    wrapper, x, before = InferenceAware(module), torch.randn(16, 256), [dict(vars(m)) for m in module.modules()]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t), torch.inference_mode():
        for _ in range(3):
            got = wrapper(x)
        torch.testing.assert_close(got, module(x))
        assert got.is_inference()
    assert saved == []
    assert wrapper.prepared_bytes > 0
    assert [dict(vars(m)) for m in module.modules()] == before
    torch.testing.assert_close(wrapper(x), module(x), rtol=0, atol=0)
    assert wrapper(x).requires_grad


# dual inputs


class Seen(TorchDispatchMode):
    """Notes the names of the operations."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", ["no_grad", "inference"])
def test_one_launch_for_primal_and_tangent(mode):
    module, x = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4)).double(), draw(3, 4)
    with fwAD.dual_level():
        dual = make_dual(x, x)
        with MODES[mode](), Seen() as seen:
            InferenceAware(module)(dual)
        with torch.no_grad(), Seen() as plainly:
            module(dual)
    products = [name for name in seen.names if "linear" in name or "mm" in name]
    assert products == ["torchadx.linear_dual.default", "torchadx.linear_jvp.default"], "linear with gelu, and linear"
    assert sum("mm" in name for name in plainly.names) == 6


@every_mode
def test_tangents_of_inputs_in_structures_and_keywords(mode):
    module = Trees()
    wrapper, (x, t) = InferenceAware(module), ([draw(*shape) for shape in SHAPES] for _ in "xt")

    def call(f):
        return lambda a, b, c, d: {k: f({"image": a}, (b, c), mask=d)[k] for k in ("out", "all")}

    def bare(*xs):
        out = call(module)(*xs)
        return {"out": out["out"], "all": [out["all"][0]]}

    value, expected = torch.func.jvp(bare, tuple(x), tuple(t))
    with fwAD.dual_level(), MODES[mode]():
        out = call(wrapper)(*(make_dual(*pair) for pair in zip(x, t, strict=True)))
        assert out["all"][1][1] == "word"
        near(unpack_dual(out["out"]).primal, value["out"])
        near(tangents(out), expected)
        near(unpack_dual(out["all"][1][0]).tangent, expected["out"])


@every_mode
@pytest.mark.parametrize(
    "chosen",
    [
        ("first.weight",), ("first.bias",), ("second.0.weight", "second.2.bias"), ("scale",), ("shift",),
        ("norm.bias", "norm.weight"), ("first.weight", "second.2.weight", "scale", "shift"),
    ],
)  # fmt: skip
def test_tangents_of_parameters_and_buffers(mode, chosen):
    module, x = Trees(), draw(3, 4)
    wrapper = InferenceAware(module)
    with torch.inference_mode():
        wrapper({"image": x})  # whatever is kept of a call must not be taken for the duals

    def call(f):
        out = f({"image": x})
        return {"out": out["out"], "all": [out["all"][0]]}

    value, expected = sensitivities(module, chosen, call)
    with fwAD.dual_level(), MODES[mode]():
        put_duals(module, chosen)
        out = wrapper({"image": x})
        near(unpack_dual(out["out"]).primal, value["out"])
        near(tangents(out), expected)


@every_mode
def test_tangents_of_tied_parameters(mode):
    module = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    module[2].weight = module[0].weight
    wrapper, x, w = InferenceAware(module), draw(3, 4), module[0].weight.detach()
    expected = torch.func.jvp(lambda w: functional_call(module, {"0.weight": w}, (x,)), (w,), (torch.ones_like(w),))
    with fwAD.dual_level(), MODES[mode]():
        dual = make_dual(w, torch.ones_like(w))
        for layer in (module[0], module[2]):
            layer._parameters.pop("weight")
            layer.weight = dual
        near(tuple(unpack_dual(wrapper(x))), expected)


@every_mode
def test_tangents_by_functional_call(mode):
    wrapper, x = InferenceAware(nn.Sequential(nn.Linear(4, 4), nn.GELU()).double()), draw(3, 4)
    w, t = wrapper.module[0].weight.detach(), draw(4, 4)
    expected = torch.func.jvp(lambda w: functional_call(wrapper.module, {"0.weight": w}, (x,)), (w,), (t,))
    with fwAD.dual_level(), MODES[mode]():
        out = functional_call(wrapper, {"0.weight": make_dual(w, t)}, (x,))
        near(tuple(unpack_dual(out)), expected)
    near(wrapper(x), wrapper.module(x))


@every_mode
@pytest.mark.filterwarnings("ignore:.*input 0 was made under torch.inference_mode:UserWarning")
@pytest.mark.parametrize("sources", [(draw, draw), (draw, born), (born, draw), (born, born)])
def test_tangents_of_inference_tensors(mode, sources):
    module = nn.Sequential(nn.Tanh(), nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2)).double()
    wrapper, x, t = InferenceAware(module), sources[0](3, 4), sources[1](3, 4)
    expected = torch.func.jvp(module, (x.clone(),), (t.clone(),))
    with fwAD.dual_level():
        duals = [make_dual(x, t)]
        if not t.is_inference():  # of two inference tensors PyTorch makes no dual, and it cannot save such a tangent
            duals.append(fwAD.make_dual(x, t))
        for dual in duals:
            with MODES[mode]():
                near(tuple(unpack_dual(wrapper(dual))), expected)


@every_mode
@pytest.mark.parametrize(
    "layer",
    [nn.Linear(4, 3), torchadx.nn.Linear(4, 3, activation="gelu"), nn.Sequential(nn.Linear(4, 8), nn.SiLU()),
     nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 4)), nn.Sequential(nn.ReLU(), nn.Softmax(-1)),
     nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4), nn.Flatten())],
    ids=lambda layer: "-".join(type(m).__name__ for m in (layer if isinstance(layer, nn.Sequential) else [layer])),
)  # fmt: skip
def test_tangents_of_layers(mode, layer):
    layer, x, t = layer.double().eval(), draw(2, 3, 4), draw(2, 3, 4)
    expected = torch.func.jvp(layer, (x,), (t,))
    with fwAD.dual_level(), MODES[mode]():
        near(tuple(unpack_dual(InferenceAware(layer)(make_dual(x, t)))), expected)


def test_policy_raise_names_what_carries_a_tangent():
    x, t = draw(3, 4), draw(3, 4)
    with fwAD.dual_level():
        dual, module = make_dual(x, t), Trees()
        wrapper = InferenceAware(module, policy="raise")
        for call, name in (
            (lambda: wrapper({"image": dual}), r"input 0\['image'\]"),
            (lambda: wrapper({"image": x}, (0.0, dual)), r"input 1\[1\]"),
            (lambda: wrapper({"image": x}, mask=dual), "keyword input 'mask'"),
        ):
            with torch.inference_mode(), pytest.raises(RuntimeError, match=f"{name}.*tangent"):
                call()
            with torch.no_grad():
                assert call()["out"].shape == (3, 4)
        with torch.inference_mode():
            near(wrapper({"image": x})["out"], module({"image": x})["out"])
        for name in ("second.0.weight", "shift"):
            put_duals(module, (name,))
            wrapper = InferenceAware(module, policy="raise")
            kind = "buffer" if name == "shift" else "weight"
            with torch.inference_mode(), pytest.raises(RuntimeError, match=f"{kind}.*tangent|tangent.*{kind}"):
                wrapper({"image": x})
            module = Trees()


def test_no_tangent_no_level():
    wrapper, x = InferenceAware(Trees()), draw(3, 4)
    with fwAD.dual_level():
        dual = make_dual(x, x)
    with torch.inference_mode():
        assert unpack_dual(wrapper({"image": dual})["out"]).tangent is None
        with fwAD.dual_level():
            assert unpack_dual(wrapper({"image": x})["out"]).tangent is None
            assert unpack_dual(wrapper({"image": dual})["out"]).tangent is None
