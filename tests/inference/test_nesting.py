"""Modes in modes, in generators, after exceptions: each call is by the innermost mode, and leaves nothing behind."""

import contextlib
import copy

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torchadx import InferenceAware
from torchadx.inference import INFERENCE, NO_GRAD, TRAIN, aware, current_mode, jvp, make_dual, unpack_dual

from .situations import MODES, draw, every_mode, near

NESTS = st.lists(st.sampled_from(["grad", "no_grad", "inference", "left"]), max_size=5)
CONTEXTS = {**MODES, "left": lambda: torch.inference_mode(False)}


class Net(nn.Module):
    """Sequences in sequences, layers alone, a norm, and a keyword."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Sequential(nn.Linear(6, 4), nn.Tanh()))
        self.gate, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.double().eval()

    def forward(self, x, *, scale=1.0):
        return self.norm(self.first(x)) * self.gate(x).sigmoid() * scale


MODULE = Net()
WRAPPER = InferenceAware(MODULE, policy="exact", inference_tensors="raise")
AWARE = aware(MODULE.__call__)


def enter(stack, names):
    for name in names:
        stack.enter_context(CONTEXTS[name]())


@contextlib.contextmanager
def no_trace(module):
    """Nothing of a module, nor the mode, is changed."""
    before, mode = [dict(vars(m)) for m in module.modules()], current_mode()
    children = [dict(m._modules) for m in module.modules()]
    yield
    assert [dict(vars(m)) for m in module.modules()] == before
    assert [dict(m._modules) for m in module.modules()] == children
    assert current_mode() == mode


# any nesting


@settings(deadline=None, max_examples=30)
@given(NESTS, st.sampled_from([WRAPPER, AWARE]))
def test_outputs_of_any_nesting(names, wrapped):
    x = draw(3, 4)
    expected = MODULE(x)
    with no_trace(MODULE), contextlib.ExitStack() as stack:
        enter(stack, names)
        kind, got = current_mode().kind, wrapped(x)
        near(got, MODULE(x))
    near(got, expected)
    assert got.requires_grad == (kind is TRAIN)
    assert got.is_inference() == (kind is INFERENCE)
    if kind is TRAIN:
        parameters = list(MODULE.parameters())
        near(torch.autograd.grad(got.sum(), parameters), torch.autograd.grad(expected.sum(), parameters))


@settings(deadline=None, max_examples=40)
@given(NESTS, NESTS, NESTS, NESTS, st.sampled_from([WRAPPER, AWARE]))
def test_tangents_of_any_nesting(around, before, between, after, wrapped):
    x, t, s, ts = draw(3, 4), draw(3, 4), draw(4), draw(4)
    expected = torch.func.jvp(lambda x, s: MODULE(x, scale=s), (x, s), (t, ts))
    with no_trace(MODULE), contextlib.ExitStack() as stack:
        enter(stack, around)
        stack.enter_context(fwAD.dual_level())
        enter(stack, before)
        dual, scale = make_dual(x, t), make_dual(s, ts)
        enter(stack, between)
        kind, out = current_mode().kind, wrapped(dual, scale=scale)
        enter(stack, after)
        got = tuple(unpack_dual(out))
    near(got, expected)
    assert got[0].requires_grad == got[1].requires_grad == (kind is TRAIN)


@settings(deadline=None, max_examples=20)
@given(NESTS, st.sampled_from([MODULE, WRAPPER, AWARE]))
def test_jvp_in_any_nesting(names, function):
    x, t = draw(3, 4), draw(3, 4)
    expected = torch.func.jvp(MODULE, (x,), (t,))
    with no_trace(MODULE), contextlib.ExitStack() as stack:
        enter(stack, names)
        near(jvp(function, (x,), (t,)), expected)


def test_inference_inside_grad_inside_inference():
    x = draw(3, 4).requires_grad_()
    outs = []
    with torch.inference_mode():
        outs.append(WRAPPER(x))
        with torch.inference_mode(False):
            outs.append(WRAPPER(x))
            with torch.inference_mode():
                outs.append(WRAPPER(x))
                with torch.enable_grad():
                    outs.append(WRAPPER(x))
            outs.append(WRAPPER(x))
            with torch.no_grad():
                outs.append(WRAPPER(x))
        outs.append(WRAPPER(x))
    assert [y.is_inference() for y in outs] == [True, False, True, True, False, False, True]
    assert [y.requires_grad for y in outs] == [False, True, False, False, True, False, False]
    for y in outs:
        near(y, MODULE(x))
    near(torch.autograd.grad(outs[1].sum(), x), torch.autograd.grad(MODULE(x).sum(), x))


# wrappers in wrappers, calls in calls


@every_mode
def test_wrappers_in_wrappers(mode):
    x, t = draw(3, 4), draw(3, 4)
    plain = nn.Sequential(Net(), nn.Linear(4, 4).double(), Net())
    nested = InferenceAware(nn.Sequential(InferenceAware(InferenceAware(plain[0])), plain[1], InferenceAware(plain[2])))
    expected = torch.func.jvp(plain, (x,), (t,))
    with no_trace(plain), fwAD.dual_level(), MODES[mode]():
        near(nested(x), plain(x))
        near(tuple(unpack_dual(nested(make_dual(x, t)))), expected)


@every_mode
def test_two_wrappers_and_the_module_take_turns(mode):
    a, b, x = InferenceAware(MODULE), InferenceAware(MODULE, outputs="normal"), draw(3, 4)
    inner, turns = [], iter(range(3))

    def call_the_other(*_):
        if next(turns, None) is not None:
            inner.append(b(x))

    hook = MODULE.gate.register_forward_hook(call_the_other)
    try:
        with no_trace(MODULE), MODES[mode]():
            near(a(x), MODULE(x))
    finally:
        hook.remove()
    assert len(inner) == 3, "it was called within itself"
    for out in inner:
        near(out.detach(), MODULE(x).detach())


def test_a_module_that_changes_modes_inside():
    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.kinds = Net(), []

        def forward(self, x):
            with torch.no_grad():
                y = self.body(x)
                self.kinds.append(current_mode().kind)
            with torch.inference_mode(False):
                z = self.body(x)
            with torch.enable_grad():
                return self.body(x) + y.clone() + z

    module, x = Inside(), draw(3, 4)
    for mode in MODES.values():
        with mode():
            near(InferenceAware(module)(x), 3 * module.body(x))
    assert module.kinds == [NO_GRAD, NO_GRAD, INFERENCE]


# generators


def test_a_generator_that_holds_a_mode():
    def held(mode):
        with mode():
            yield WRAPPER(x)
            yield WRAPPER(x)

    x = draw(3, 4)
    with no_trace(MODULE):
        steps = held(torch.inference_mode)
        outs = [next(steps), WRAPPER(x)]
        steps.close()
        outs.append(WRAPPER(x))
    assert [y.is_inference() for y in outs] == [True, True, False]
    near(outs[0], outs[2])


def test_a_stream_of_calls_each_in_the_mode_of_the_caller():
    @aware
    def stream(x):
        while True:
            x = wrapper(x)
            yield x

    x, wrapper = draw(3, 4), InferenceAware(MODULE, outputs="normal", inference_tensors="raise")
    expected, steps = [MODULE(x)], stream(x)
    for mode in MODES.values():
        with mode():
            near(next(steps), expected[-1])
        expected.append(MODULE(expected[-1]))
    assert not next(steps).is_inference()


# exceptions


class Fails(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.linear, self.error = nn.Linear(4, 4).double(), error

    def forward(self, x):
        self.linear(x)
        raise self.error


@every_mode
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, StopIteration])
def test_exceptions_leave_no_trace(mode, error):
    module = nn.Sequential(Net(), nn.Linear(4, 4).double(), nn.ReLU(), nn.Sequential(Fails(error)))
    wrappers = [InferenceAware(module), InferenceAware(module, outputs="normal"), aware(module.__call__)]
    x = draw(3, 4)
    for wrapped in wrappers:
        with no_trace(module), MODES[mode](), pytest.raises(error):
            wrapped(x)
        with no_trace(module), fwAD.dual_level(), MODES[mode](), pytest.raises(error):
            wrapped(make_dual(x, x))
    with no_trace(module), torch.inference_mode(), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        wrappers[0](draw(3, 5))
    module[3] = nn.Identity()
    for wrapped in wrappers:
        with MODES[mode]():
            near(wrapped(x), module(x))


def test_refusals_leave_no_trace():
    wrapper, x = InferenceAware(MODULE, policy="raise", inference_tensors="raise"), draw(3, 4)
    with torch.inference_mode():
        born = x.clone()
    with no_trace(MODULE), pytest.raises(RuntimeError, match="input 0"):
        wrapper(born)
    with no_trace(MODULE), fwAD.dual_level():
        dual = make_dual(x, x)
        with torch.inference_mode(), pytest.raises(RuntimeError, match="input 0"):
            wrapper(dual)
    near(wrapper(x), MODULE(x))


def test_a_copy_taken_during_a_call():
    copies = []

    class Copies(nn.Module):
        def forward(self, x):
            with torch.inference_mode(False):
                copies.append(copy.deepcopy(module[0]))
            return x

    module, x = nn.Sequential(Net(), Copies()), draw(3, 4)
    with torch.inference_mode():
        InferenceAware(module)(x)
    near(copies[0](x), module[0](x))
    assert [set(vars(m)) for m in copies[0].modules()] == [set(vars(m)) for m in module[0].modules()]
