"""One wrapper, many threads, each in its own mode."""

import copy
import sys
import threading

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from torch import nn

from torchadx import InferenceAware
from torchadx.inference import current_mode, make_dual, unpack_dual

from .situations import MODES

ROUNDS = 40


@pytest.fixture(autouse=True)
def one_thread_each():
    before, interval = torch.get_num_threads(), sys.getswitchinterval()
    torch.set_num_threads(1)
    sys.setswitchinterval(1e-5)
    yield
    torch.set_num_threads(before)
    sys.setswitchinterval(interval)


@pytest.fixture
def module():
    return nn.Sequential(nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 256), nn.Sequential(nn.Tanh(), nn.Dropout(0.0)))


def together(*works):
    """Run functions at once, each in a thread and as often as there are rounds; raise what one of them raised."""
    errors, start = [], threading.Barrier(len(works))

    def rounds(work):
        try:
            start.wait()
            for _ in range(ROUNDS):
                work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=rounds, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def traces(module):
    return [dict(vars(m)) for m in module.modules()]


def caller(wrapper, mode, x, expected):
    def call():
        with MODES[mode]():
            out = wrapper(x)
            assert current_mode().kind.value == {"grad": "train"}.get(mode, mode)
        close(out.detach(), expected)
        assert out.is_inference() == (mode == "inference")
        assert out.requires_grad == (mode == "grad")

    return call


def test_one_wrapper_in_every_mode_while_the_bare_module_trains(module):
    x, wrapper = torch.randn(16, 256), InferenceAware(module)
    expected = module(x).detach()
    twin = copy.deepcopy(module)
    twin(x).square().sum().backward()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)  # counts versions, and changes nothing

    def train():
        optimizer.zero_grad()
        out = module(x)
        assert out.requires_grad
        out.square().sum().backward()
        for got, wanted in zip(module.parameters(), twin.parameters(), strict=True):
            close(got.grad, wanted.grad)
        optimizer.step()

    before = traces(module)
    together(train, *(caller(wrapper, mode, x, expected) for mode in ("inference", "inference", "no_grad", "grad")))
    assert traces(module) == before


def test_tangents_beside_other_threads(module):
    x, t, wrapper = torch.randn(16, 256), torch.randn(16, 256), InferenceAware(module)
    expected, tangent = torch.func.jvp(module, (x,), (t,))
    expected, tangent = expected.detach(), tangent.detach()

    def differentiate():
        with fwAD.dual_level(), torch.inference_mode():
            close(tuple(unpack_dual(wrapper(make_dual(x, t)))), (expected, tangent))

    def infer():
        with torch.inference_mode():
            close(wrapper(x), expected)

    before = traces(module)
    together(differentiate, infer, infer)
    assert traces(module) == before


def test_calls_that_fail_beside_calls_that_do_not(module):
    x, wrapper = torch.randn(16, 256), InferenceAware(module)
    expected = module(x).detach()

    def fail():
        with torch.inference_mode(), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            wrapper(torch.randn(16, 255))

    before = traces(module)
    together(fail, caller(wrapper, "inference", x, expected), caller(wrapper, "grad", x, expected))
    assert traces(module) == before


def test_eval_for_overlapping_calls(module):
    module[3][1].p = 0.5
    module[3].eval()
    module[3][1].train()
    x, wrapper = torch.randn(16, 256), InferenceAware(module, eval_in_inference=True)
    flags, expected = [m.training for m in module.modules()], copy.deepcopy(module).eval()(x).detach()
    together(*[caller(wrapper, "inference", x, expected)] * 4)
    assert [m.training for m in module.modules()] == flags


def test_weights_that_change_between_rounds(module):
    x, wrapper = torch.randn(16, 256), InferenceAware(module)
    for _ in range(4):
        with torch.no_grad():
            for p in module.parameters():
                p.normal_(0, 0.1)
        expected = module(x).detach()
        together(*[caller(wrapper, "inference", x, expected)] * 3)
    assert wrapper.prepared_bytes > 0


def test_release_beside_calls(module):
    x, wrapper = torch.randn(16, 256), InferenceAware(module)
    together(wrapper.release, *[caller(wrapper, "inference", x, module(x).detach())] * 3)
    wrapper.release()
    assert wrapper.prepared_bytes == 0


def test_wrappers_of_one_module(module):
    x, before = torch.randn(16, 256), traces(module)
    expected = module(x).detach()
    wrappers = [InferenceAware(module), InferenceAware(module, outputs="normal"), InferenceAware(module[:3])]

    def normal():
        with torch.inference_mode():
            out = wrappers[1](x)
        assert not out.is_inference()
        close(out, expected)

    together(
        normal,
        caller(wrappers[0], "inference", x, expected),
        caller(wrappers[2], "inference", x, module[:3](x).detach()),
        caller(module, "inference", x, expected),
    )
    assert traces(module) == before


def test_copies_of_the_module_taken_beside_calls(module):
    x, wrapper, copies = torch.randn(16, 256), InferenceAware(module), []
    expected, names = module(x).detach(), [set(vars(m)) for m in module.modules()]
    together(lambda: copies.append(copy.deepcopy(module)), *[caller(wrapper, "inference", x, expected)] * 3)
    for one in copies:
        close(one(x).detach(), expected)
    assert all([set(vars(m)) for m in one.modules()] == names for one in copies)
