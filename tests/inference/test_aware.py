"""``aware`` as a decorator: functions, methods and generator functions, by the wrapper's rules."""

import functools
import inspect
import pickle
import warnings

import pytest
import torch
import torch.autograd.forward_ad as fwAD

from torchadx.inference import aware, current_mode, make_dual, unpack_dual

from .situations import MODES, born, draw, every_mode, near, told


@aware
def cube(x):
    """Cube."""
    return x**3


@aware(policy="exact")
def scaled(x: torch.Tensor, *, by: float = 2.0) -> torch.Tensor:
    return x * by


class Model:
    def __init__(self):
        self.weight = draw(3).requires_grad_()

    @aware
    def plain(self, x):
        return (self.weight * x).sin()

    @classmethod
    @aware
    def of_class(cls, x):
        return x.exp()

    @staticmethod
    @aware(policy="exact")
    def of_nobody(x):
        return x.tanh()

    @property
    @aware
    def square(self):
        return self.weight.detach() ** 2


def tangent_inside(function, x, t):
    """The tangent of a function of one input that is called in inference mode."""
    with fwAD.dual_level(), torch.inference_mode():
        out = unpack_dual(function(make_dual(x, t))).tangent
        assert torch.is_inference_mode_enabled()
    return out


def test_metadata():
    assert (cube.__name__, cube.__doc__, cube.__module__) == ("cube", "Cube.", __name__)
    assert str(inspect.signature(scaled)) == "(x: torch.Tensor, *, by: float = 2.0) -> torch.Tensor"
    assert cube.__wrapped__(2) == 8
    assert pickle.loads(pickle.dumps(cube)) is cube
    assert Model.plain.__qualname__ == "Model.plain"


def test_it_is_a_plain_call_where_nothing_is_to_do():
    x = draw(3).requires_grad_()
    near(torch.autograd.grad(cube(x).sum(), x)[0], 3 * x.detach() ** 2)
    assert scaled(torch.ones(1), by=3.0) == 3
    assert cube(2) == 8
    with torch.no_grad():
        assert not cube(x).requires_grad
    with torch.inference_mode():
        assert cube(x).is_inference()


@pytest.mark.parametrize("option", ["policy", "inference_tensors", "outputs"])
def test_bad_options(option):
    with pytest.raises(ValueError, match=f"{option}.*'neither'"):
        aware(**{option: "neither"})(cube.__wrapped__)
    with pytest.raises((TypeError, ValueError)):
        aware(**{option: 3})(cube.__wrapped__)
    with pytest.raises(TypeError):
        aware(nothing="of this name")(cube.__wrapped__)


def test_tangents_in_inference_mode():
    model, x, t = Model(), draw(3), draw(3)
    w = model.weight.detach()
    near(tangent_inside(cube, x, t), 3 * x**2 * t)
    near(tangent_inside(lambda x: scaled(x, by=4.0), x, t), 4 * t)
    near(tangent_inside(model.plain, x, t), (w * x).cos() * w * t)
    near(tangent_inside(Model.of_class, x, t), x.exp() * t)
    near(tangent_inside(Model.of_nobody, x, t), (1 - x.tanh() ** 2) * t)
    near(tangent_inside(aware(functools.partial(torch.mul, w)), x, t), w * t)
    near(tangent_inside(aware(torch.sin), x, t), x.cos() * t)
    near(model.square, w**2)


@every_mode
@pytest.mark.filterwarnings("ignore:.*input 0 was made under torch.inference_mode:UserWarning")
def test_tangents_of_an_inference_tensor(mode):
    x, t = born(3), draw(3)
    with fwAD.dual_level():
        for dual in (make_dual(x, t), fwAD.make_dual(x, t)):
            with MODES[mode]():
                near(tuple(unpack_dual(cube(dual))), (x**3, 3 * x**2 * t))


def test_tangents_of_what_is_no_argument():
    w, t = draw(3), draw(3)
    with fwAD.dual_level(), torch.inference_mode():
        dual = make_dual(w, t)
        near(unpack_dual(aware(lambda: dual.sin())()).tangent, w.cos() * t)
        with pytest.raises(RuntimeError, match="tangent"):
            aware(policy="raise")(lambda: dual.sin())()


def test_tangents_in_structures():
    @aware
    def tree(given, *more, last):
        return {"sum": given["a"][0] + more[0] + last, "kept": (given["a"][1], "word")}

    x, t = draw(4, 3), draw(4, 3)
    with fwAD.dual_level(), torch.inference_mode():
        a, b, c, d = (make_dual(*pair) for pair in zip(x, t, strict=True))
        out = tree({"a": [a, b]}, c, last=d)
        near(unpack_dual(out["sum"]).tangent, t[0] + t[2] + t[3])
        near(unpack_dual(out["kept"][0]).tangent, t[1])
    assert out["kept"][1] == "word"


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda f, x: f(x), "input 0"),
        (lambda f, x: f(1, x), "input 1"),
        (lambda f, x: f(mask=x), "keyword input 'mask'"),
        (lambda f, x: f({"image": x}), r"input 0\['image'\]"),
        (lambda f, x: f((1, [x])), r"input 0\[1\]\[0\]"),
        (lambda f, x: f(mask={"left": x}), r"keyword input 'mask'\['left'\]"),
    ],
)
def test_raising_names_the_argument(call, name):
    function = aware(policy="raise", inference_tensors="raise")(lambda *args, **kwargs: 0)
    with fwAD.dual_level():
        dual = make_dual(draw(3), draw(3))
        with torch.inference_mode(), pytest.raises(RuntimeError, match=f"{name}.*tangent"):
            call(function, dual)
        with torch.no_grad():
            assert call(function, dual) == 0
    with pytest.raises(RuntimeError, match=f"{name}.*inference_mode"):
        call(function, born(3))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert call(function, born(3)) == 0


def test_inference_tensors_are_copied_with_one_warning_each():
    function, x, y, w = aware(lambda x, *, y: (x * y).sum()), born(3), born(3), draw(3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            function(x, y=w.requires_grad_())
        function(w, y=y).backward()
    assert {one.category for one in caught} == {UserWarning}
    assert [sum(name in str(one.message) for one in caught) for name in ("input 0", "keyword input 'y'")] == [1, 1]
    assert len(caught) == 2
    near(w.grad, y)
    with pytest.warns(UserWarning, match="input 0"):
        aware(lambda x, y: x * y)(x, w)  # another wrapper says so again
    assert x.is_inference()


def test_one_tensor_given_twice_is_copied_once():
    x = born(3)
    found = []
    assert told(lambda: found.extend(aware(lambda a, b: (a, b["there"]))(x, {"there": x})), "input 0")
    assert found[0] is found[1]
    assert not found[0].is_inference()


def test_outputs():
    x, w = draw(3), draw(3).requires_grad_()
    function = aware(outputs="normal")(lambda x: {"y": [x * 2], "n": 3, "x": x})
    with torch.inference_mode():
        out = function(x)
        assert cube(x).is_inference()
    assert not out["y"][0].is_inference()
    assert out["x"] is x, "it was normal"
    assert out["n"] == 3
    near(torch.autograd.grad((out["y"][0] * w).sum(), w)[0], 2 * x)


def test_exceptions_leave_the_mode():
    function = aware(lambda x: {}[x.sum()])
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        for level in (False, True):
            with context(), fwAD.dual_level() if level else context():
                before = current_mode()
                with pytest.raises(KeyError):
                    function(draw(3))
                assert current_mode() == before


def test_recursion_and_nesting():
    @aware
    def power(x, n):
        return x if n == 1 else x * power(x, n - 1)

    x, t = draw(3), draw(3)
    near(tangent_inside(lambda x: power(x, 4), x, t), 4 * x**3 * t)
    near(tangent_inside(aware(aware(torch.exp)), x, t), x.exp() * t)
    near(tangent_inside(lambda x: cube(cube(x)), x, t), 9 * x**8 * t)


def test_transforms_see_through():
    x, t = draw(3), draw(3)
    near(torch.func.jvp(cube, (x,), (t,))[1], 3 * x**2 * t)
    near(torch.func.hessian(lambda x: cube(x).sum())(x), torch.diag(6 * x))
    near(torch.func.vmap(cube)(x), x**3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        near(torch.func.grad(lambda x: cube(x).sum())(born(3)).shape, x.shape)


@pytest.mark.parametrize("thing", [3, None, torch.ones(2)])
def test_what_cannot_be_called_is_refused(thing):
    with pytest.raises(TypeError, match="aware wraps a function"):
        aware(policy="raise")(thing)
