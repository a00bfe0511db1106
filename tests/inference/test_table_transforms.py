"""The table's row on transforms, compilation, export and tracing: a wrapper is not seen there."""

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from torch import nn
from torch.func import functional_call

from torchadx import InferenceAware
from torchadx.inference import aware, jvp, make_dual

from .situations import MODES, draw, every_mode, near


@pytest.fixture
def module():
    return nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4), nn.Tanh()).double()


def loss(f):
    return lambda x: f(x).square().sum()


def along(f, x, t):
    return torch.func.jvp(f, (x,), (t,))


TRANSFORMS = {
    "grad": lambda f, x, t: torch.func.grad(loss(f))(x),
    "vjp": lambda f, x, t: torch.func.vjp(f, x)[1](t),
    "jvp": along,
    "our jvp": lambda f, x, t: jvp(f, (x,), (t,)),
    "vmap": lambda f, x, t: torch.func.vmap(f)(x),
    "jacrev": lambda f, x, t: torch.func.jacrev(f)(x[0]),
    "jacfwd": lambda f, x, t: torch.func.jacfwd(f)(x[0]),
    "hessian": lambda f, x, t: torch.func.hessian(loss(f))(x[0]),
    "jvp of grad": lambda f, x, t: along(torch.func.grad(loss(f)), x, t),
    "grad of jvp": lambda f, x, t: torch.func.grad(lambda x: along(f, x, t)[1].sum())(x),
    "vmap of grad": lambda f, x, t: torch.func.vmap(torch.func.grad(loss(f)))(x),
    "vmap of jvp": lambda f, x, t: torch.func.vmap(lambda x, t: along(f, x, t))(x, t),
    "functionalize": lambda f, x, t: torch.func.functionalize(f)(x),
}


@every_mode
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(mode, name, module):
    x, t = draw(4, 4), draw(4, 4)
    expected = TRANSFORMS[name](module, x, t)
    wrapper = InferenceAware(module, policy="raise", inference_tensors="raise")
    with MODES[mode]():
        near(TRANSFORMS[name](wrapper, x, t), expected)


@every_mode
def test_transforms_over_parameters(mode, module):
    wrapper, x = InferenceAware(module), draw(3, 4)
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    assert set(parameters) == set(dict(wrapper.named_parameters()))

    def of(model):
        return lambda p, x: functional_call(model, p, (x,)).square().sum()

    expected = torch.func.grad(of(module))(parameters, x)
    per_sample = torch.func.vmap(torch.func.grad(of(module)), (None, 0))(parameters, x)
    with MODES[mode]():
        near(torch.func.grad(of(wrapper))(parameters, x), expected)
        near(torch.func.vmap(torch.func.grad(of(wrapper)), (None, 0))(parameters, x), per_sample)
    stacked = {name: torch.stack([p, 2 * p]) for name, p in parameters.items()}
    with MODES[mode]():
        both = torch.func.vmap(of(wrapper), (0, None))(stacked, x)
    near(both[0], of(module)(parameters, x))


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")
def test_linearize(module):
    x, t = draw(3, 4), draw(3, 4)
    for mode in ("grad", "no_grad"):  # it fails in inference mode
        with MODES[mode]():
            value, product = torch.func.linearize(InferenceAware(module), x)
            near((value, product(t)), along(module, x, t))


def test_duals_around_transforms(module):
    wrapper, x, t = InferenceAware(module), draw(3, 4), draw(3, 4)
    gradient, value = along(torch.func.grad(loss(module)), x, t), along(module, x, t)
    with fwAD.dual_level():
        got = torch.func.grad(loss(wrapper))(make_dual(x, t))
        near(tuple(fwAD.unpack_dual(got)), gradient)
        rows = torch.func.vmap(wrapper)(make_dual(x, t))
        near(tuple(fwAD.unpack_dual(rows)), value)


def test_a_mode_inside_a_transform(module):
    wrapper, x, t = InferenceAware(module), draw(3, 4), draw(3, 4)

    def inside(x):
        with torch.inference_mode():
            return wrapper(x)

    near(torch.vmap(inside)(x), module(x))
    near(along(inside, x, t), along(module, x, t))
    near(jvp(inside, (x,), (t,)), along(module, x, t))
    near(torch.func.jacfwd(inside)(x[0]), torch.func.jacrev(module)(x[0]))


def test_compile(module):
    module = module.float()
    wrapper, x = InferenceAware(module), torch.randn(3, 4)
    compiled = torch.compile(wrapper, fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), module(x))
    out = compiled(x)
    torch.testing.assert_close(out, module(x))
    names = list(dict(wrapper.named_parameters()).values())
    torch.testing.assert_close(
        torch.autograd.grad(out.sum(), names), torch.autograd.grad(module(x).sum(), list(module.parameters()))
    )


def test_compile_as_a_part(module):
    outer = nn.Sequential(nn.Linear(4, 4).double(), InferenceAware(module))
    x, function = draw(3, 4), aware(lambda x: outer(x) * 2)
    with torch.no_grad():
        near(torch.compile(lambda x: function(x), fullgraph=True, backend="eager")(x), 2 * outer(x))


@every_mode
def test_export(mode, module):
    x = draw(3, 4)
    with MODES[mode]():
        program = torch.export.export(InferenceAware(module.eval()), (x,))
        near(program.module()(x), module(x))
    assert set(program.state_dict) in (set(module.state_dict()), {f"module.{name}" for name in module.state_dict()})


@every_mode
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_jit_trace(mode, module):
    x, y = draw(3, 4), draw(5, 4)
    with MODES[mode]():
        traced = torch.jit.trace(InferenceAware(module.eval()), (x,))
        near(traced(y), module(y))
    near(traced(y), module(y))


@every_mode
def test_make_fx_and_modes_of_dispatch(mode, module):
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils.flop_counter import FlopCounterMode

    wrapper, x = InferenceAware(module.eval()), draw(3, 4)
    with MODES[mode]():
        graph = make_fx(wrapper)(x)
        near(graph(draw(3, 4)).shape, (3, 4))
        with FlopCounterMode(display=False) as counter:
            near(wrapper(x), module(x))
        assert counter.get_total_flops() == 2 * 2 * (3 * 4 * 6 * 2)
