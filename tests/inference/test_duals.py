"""Duals and ``jvp`` that inference mode does not switch off: the same answers in every mode."""

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from torch.autograd.forward_ad import UnpackedDualTensor

from torchadx.inference import aware, current_mode, jvp, make_dual, unpack_dual

from . import situations
from .situations import born, draw, near

MODES = {**situations.MODES, "left": lambda: torch.inference_mode(False)}
every_mode = pytest.mark.parametrize("mode", MODES)


def curve(x, y):
    return (x.sin() @ y.T).exp(), x.square().sum()


# make_dual and unpack_dual


@every_mode
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("source", [draw, born])
def test_what_is_put_in_comes_out(mode, dtype, source):
    x, t = source(dtype=dtype), source(dtype=dtype)
    with fwAD.dual_level(), MODES[mode]():
        before = current_mode()
        got = unpack_dual(make_dual(x, t))
        assert isinstance(got, UnpackedDualTensor)
        assert torch.equal(got.primal, x)
        assert torch.equal(got.tangent, t)
        assert current_mode() == before
        assert unpack_dual(x).tangent is None, "the argument is not changed"


@every_mode
def test_the_duals_are_pytorchs(mode):
    x, t = draw(), draw()
    with fwAD.dual_level() as level:
        theirs = fwAD.make_dual(x, t)
        with MODES[mode]():
            ours = make_dual(x, t, level=level)
            near(unpack_dual(theirs, level=level).tangent, t)
        near(tuple(fwAD.unpack_dual(ours)), (x, t))
        near(fwAD.unpack_dual(ours.sin()).tangent, x.cos() * t)


@every_mode
@pytest.mark.parametrize("sources", [(draw, draw), (draw, born), (born, draw), (born, born)])
def test_operations_on_a_dual_of_inference_tensors(mode, sources):
    x, t = (source() for source in sources)
    with fwAD.dual_level():
        with MODES[mode]():
            dual = make_dual(x, t)
        with torch.no_grad():
            near(unpack_dual(dual.sin()).tangent, x.cos() * t)
            near(unpack_dual(dual[0].clone()).tangent, t[0])


@every_mode
def test_views_of_duals(mode):
    x, t = draw(), draw()
    with fwAD.dual_level(), MODES[mode]():
        dual = make_dual(x, t)
        for look in (lambda a: a.T, lambda a: a[1], lambda a: a[:, ::2], lambda a: a.reshape(2, 6)):
            near(tuple(unpack_dual(look(dual))), (look(x), look(t)))


@every_mode
def test_strides_and_expanded_tangents(mode):
    x = draw(4, 3).T
    with fwAD.dual_level(), MODES[mode]():
        for t in (draw(3, 4), draw(4, 3).T, draw(4).expand(3, 4), draw(3, 1).expand(3, 4)):
            near(unpack_dual(make_dual(x, t)).tangent, t)


@every_mode
def test_without_a_level(mode):
    x = draw()
    with MODES[mode]():
        with pytest.raises(RuntimeError, match="no level exists"):
            make_dual(x, x)
        assert unpack_dual(x).primal is x
        assert unpack_dual(x).tangent is None


@every_mode
def test_what_pytorch_refuses(mode):
    x = draw(3)
    with fwAD.dual_level(), MODES[mode]():
        before = current_mode()
        for other in (draw(4), born(4)):
            with pytest.raises(RuntimeError, match="different size"):
                make_dual(x, other)
        with pytest.raises(ValueError, match="floating point or complex"):
            make_dual(torch.arange(3), x)
        assert current_mode() == before


def test_a_tangent_that_requires_grad_is_recorded_where_gradients_are():
    x, t = draw().requires_grad_(), draw().requires_grad_()
    with fwAD.dual_level():
        out = unpack_dual(make_dual(x, t).sin()).tangent
    near(torch.autograd.grad(out.sum(), (x, t)), (-x.sin() * t, x.cos()))


def test_a_level_ends_as_ever():
    with torch.inference_mode():
        with fwAD.dual_level():
            dual = make_dual(draw(), draw())
        assert unpack_dual(dual).tangent is None
        with fwAD.dual_level():
            assert unpack_dual(dual).tangent is None


# jvp


@every_mode
@pytest.mark.parametrize("source", [draw, born])
def test_jvp_is_that_of_torch_func(mode, source):
    primals, tangents = (source(3, 4), source(2, 4)), (source(3, 4), source(2, 4))
    expected = torch.func.jvp(curve, *(tuple(t.clone() for t in some) for some in (primals, tangents)))
    with MODES[mode]():
        got = jvp(curve, primals, tangents)
        assert not any(t.is_inference() for pair in got for t in pair)
    near(got, expected)


@every_mode
def test_jvp_with_aux(mode):
    x, t = draw(), draw()
    with MODES[mode]():
        value, derivative, aux = jvp(lambda x: (x.sin(), {"kept": x.cos()}), (x,), (t,), has_aux=True)
    near((value, derivative, aux["kept"]), (x.sin(), x.cos() * t, x.cos()))


@every_mode
def test_jvp_of_trees(mode):
    def tree(given, scale):
        return {"out": given["a"] * scale, "all": [given["a"].exp(), given["b"][0].sum()]}

    x, t = ({"a": draw(3), "b": (draw(2),)} for _ in "xt")
    s, ts = torch.tensor(2.0, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    with MODES[mode]():
        value, derivative = jvp(tree, (x, s), (t, ts))
    near(value, tree(x, s))
    near(derivative["out"], t["a"] * s + x["a"] * ts)
    near(derivative["all"], [x["a"].exp() * t["a"], t["b"][0].sum()])


@every_mode
def test_jvp_of_jvp(mode):
    x, t, u = draw(), draw(), draw()
    with MODES[mode]():
        value, second = jvp(lambda x: jvp(torch.sin, (x,), (t,))[1], (x,), (u,))
    near((value, second), (x.cos() * t, -x.sin() * t * u))


@every_mode
def test_jvp_with_other_transforms(mode):
    x, t = draw(), draw()
    with MODES[mode]():
        rows = torch.func.vmap(lambda x, t: jvp(torch.sin, (x,), (t,))[1])(x, t)
        hvp = jvp(torch.func.grad(lambda x: x.sin().sum()), (x,), (t,))[1]
        jacobian = jvp(torch.func.jacfwd(torch.sin), (x[0],), (t[0],))[1]
    near((rows, hvp, jacobian), (x.cos() * t, -x.sin() * t, torch.diag(-x[0].sin() * t[0])))


@every_mode
def test_jvp_of_a_closure_over_an_inference_tensor(mode):
    x, t, w = draw(), draw(), born(4, 4)
    with MODES[mode]():
        near(jvp(lambda x: x @ w, (x,), (t,)), (x @ w, t @ w))


@every_mode
def test_jvp_of_inference_tensors_through_parameters(mode):
    linear, x, t = torch.nn.Linear(4, 2, dtype=torch.float64), born(), born()
    with MODES[mode]():
        near(jvp(linear, (x,), (t,)), (linear(x.clone()), t @ linear.weight.detach().T))


@every_mode
def test_jvp_of_a_function_that_enters_inference_mode(mode):
    @aware
    def sine(x):
        return x.sin()

    def inside(x):
        with torch.inference_mode():
            return sine(x)

    x, t = draw(), draw()
    with MODES[mode]():
        near(jvp(inside, (x,), (t,)), (x.sin(), x.cos() * t))


@every_mode
def test_jvp_leaves_the_mode(mode):
    with MODES[mode]():
        before = current_mode()
        jvp(torch.sin, (draw(),), (draw(),))
        assert current_mode() == before
        for wrong, error in (
            (lambda: jvp(torch.sin, draw(), draw()), RuntimeError),
            (lambda: jvp(torch.sin, (draw(3),), (draw(4),)), RuntimeError),
            (lambda: jvp(lambda x: {}[x.sum()], (draw(),), (draw(),)), KeyError),
        ):
            with pytest.raises(error):
                wrong()
            assert current_mode() == before


def test_jvp_records_gradients_only_in_grad_mode():
    x = draw().requires_grad_()
    for mode, context in MODES.items():
        with context():
            value, derivative = jvp(torch.sin, (x,), (torch.ones_like(x),))
        assert value.requires_grad == derivative.requires_grad == (mode in ("grad", "left"))
    near(torch.autograd.grad(derivative.sum(), x)[0], -x.sin())
