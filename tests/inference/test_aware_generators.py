"""``aware`` generator functions: each resume runs by the rules of the mode that is on then."""

import inspect

import pytest
import torch
import torch.autograd.forward_ad as fwAD

from torchadx.inference import INFERENCE, NO_GRAD, TRAIN, aware, current_mode, make_dual, unpack_dual

from .situations import born, draw, near


@aware
def modes(count=3):
    for _ in range(count):
        yield current_mode().kind


def test_a_generator_runs_in_the_mode_of_each_resume():
    steps = modes()
    with torch.inference_mode():
        assert next(steps) is INFERENCE
    assert next(steps) is TRAIN
    with torch.no_grad():
        assert next(steps) is NO_GRAD
        assert list(steps) == []


def test_send_throw_close_return():
    log = []

    @aware
    def body(x):
        try:
            sent = yield x
            try:
                yield sent * 2
            except KeyError:
                yield "caught"
        finally:
            log.append("closed")
        return "done"

    steps = body(1)
    assert (next(steps), steps.send(4), steps.throw(KeyError)) == (1, 8, "caught")
    with pytest.raises(StopIteration) as stop:
        next(steps)
    assert stop.value.value == "done"
    steps = body(1)
    next(steps)
    steps.close()
    assert log == ["closed", "closed"]
    steps = body(1)
    next(steps)
    with pytest.raises(ZeroDivisionError):
        steps.throw(ZeroDivisionError)
    assert list(steps) == []
    with pytest.raises(StopIteration):
        next(steps)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_tangents_of_what_a_generator_yields(mode):
    @aware
    def powers(x):
        y = x
        while True:
            yield y
            y = y * x

    x, t = draw(3), draw(3)
    with fwAD.dual_level(), mode():
        steps = powers(make_dual(x, t))
        for n in range(1, 5):
            near(tuple(unpack_dual(next(steps))), (x**n, n * x ** (n - 1) * t))
            assert current_mode().kind is {torch.enable_grad: TRAIN, torch.no_grad: NO_GRAD}.get(mode, INFERENCE)


def test_rules_of_generators():
    @aware(policy="raise", inference_tensors="raise", outputs="normal")
    def doubled(x):
        while True:
            yield x * 2

    with pytest.raises(RuntimeError, match="input 0"):
        next(doubled(born(3)))
    with fwAD.dual_level():
        dual = make_dual(draw(3), draw(3))
        with torch.inference_mode(), pytest.raises(RuntimeError, match="input 0"):
            next(doubled(dual))
    with torch.inference_mode():
        steps = doubled(draw(3))
        assert not next(steps).is_inference()
    assert not next(steps).is_inference()


def test_a_wrapped_generator_function_is_one():
    assert inspect.isgeneratorfunction(modes)
    assert modes.__name__ == "modes"
    with torch.inference_mode():
        assert list(aware(modes)(2)) == [INFERENCE] * 2
        twice = aware(outputs="normal")(aware(lambda x: (yield x * 2)))
        assert not next(twice(draw(3))).is_inference()


def test_methods_that_are_generators():
    class Stream:
        def __init__(self, weight):
            self.weight = weight

        @aware
        def rows(self, *xs):
            for x in xs:
                yield self.weight * x

    w, x, t = draw(3), draw(4, 3), draw(4, 3)
    with fwAD.dual_level(), torch.inference_mode():
        duals = [make_dual(*pair) for pair in zip(x, t, strict=True)]
        near([unpack_dual(y).tangent for y in Stream(w).rows(*duals)], list(w * t))


def test_a_mode_inside_a_generator_ends_with_it():
    @aware
    def inside():
        with torch.no_grad():
            yield 1
        yield 2

    for context in (torch.enable_grad, torch.inference_mode):
        with context():
            before = current_mode()
            assert list(inside()) == [1, 2]
            assert current_mode() == before
            with fwAD.dual_level():
                assert list(inside()) == [1, 2]
            assert current_mode() == before
    assert current_mode().kind is TRAIN
