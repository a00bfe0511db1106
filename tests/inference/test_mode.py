"""``current_mode`` in every situation, alone and nested."""

import contextlib
import threading

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import torchadx
from torchadx.inference import INFERENCE, NO_GRAD, TRAIN, Kind, Mode, current_mode

PLAIN = Mode(TRAIN, False, (), False, ())


class Looks(nn.Module):
    """Notes the mode of each call."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(current_mode())
        return x.sin()


def looked(around, *given):
    """Return the modes seen by a function under a transform."""
    looks = Looks()
    around(looks.forward)(*given)
    return looks.seen


def test_names():
    assert tuple(Kind) == (TRAIN, NO_GRAD, INFERENCE)
    assert (Kind.TRAIN, Kind.NO_GRAD, Kind.INFERENCE) == (TRAIN, NO_GRAD, INFERENCE)
    assert torchadx.inference.current_mode is current_mode
    assert Mode._fields == ("kind", "forward_ad", "functorch", "compiling", "autocast")
    assert current_mode() == PLAIN


@pytest.mark.parametrize(
    ("context", "kind"),
    [
        (torch.enable_grad, TRAIN),
        (torch.no_grad, NO_GRAD),
        (lambda: torch.set_grad_enabled(False), NO_GRAD),
        (torch.inference_mode, INFERENCE),
        (lambda: torch.inference_mode(False), TRAIN),
    ],
)
def test_each_kind(context, kind):
    with context():
        assert current_mode() == PLAIN._replace(kind=kind)
    assert current_mode() == PLAIN


def test_the_innermost_decides():
    with torch.no_grad():
        with torch.enable_grad():
            assert current_mode().kind is TRAIN
        with torch.inference_mode():
            with torch.enable_grad():
                assert current_mode().kind is INFERENCE, "nothing is recorded there"
            with torch.inference_mode(False):
                assert current_mode().kind is TRAIN, "leaving inference mode turns gradients on"
                with torch.no_grad():
                    assert current_mode().kind is NO_GRAD
                with torch.inference_mode():
                    assert current_mode().kind is INFERENCE
            assert current_mode().kind is INFERENCE
        assert current_mode().kind is NO_GRAD


CONTEXTS = {
    "grad": torch.enable_grad,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "left": lambda: torch.inference_mode(False),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "plain": lambda: torch.autocast("cpu", enabled=False),
}


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from(sorted(CONTEXTS)), max_size=7))
def test_any_nesting_agrees_with_what_pytorch_records(names):
    weight = torch.ones(2, 2, requires_grad=True)
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(CONTEXTS[name]())
        mode, product = current_mode(), weight @ weight
    expected = INFERENCE if product.is_inference() else TRAIN if product.requires_grad else NO_GRAD
    assert mode.kind is expected
    assert mode.autocast == (("cpu",) if product.dtype is torch.bfloat16 else ())
    assert current_mode() == PLAIN


def test_exceptions():
    for context in (torch.no_grad, torch.inference_mode, fwAD.dual_level):
        with pytest.raises(KeyError), context():
            raise KeyError
        assert current_mode() == PLAIN


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_dual_level(context):
    with context():
        kind = current_mode().kind
        with fwAD.dual_level():
            assert current_mode() == PLAIN._replace(kind=kind, forward_ad=True)
        assert not current_mode().forward_ad
    with fwAD.dual_level(), context():
        assert current_mode() == PLAIN._replace(kind=kind, forward_ad=True)


def test_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert current_mode().autocast == ("cpu",)
        with torch.autocast("cpu", enabled=False), torch.inference_mode():
            assert current_mode() == PLAIN._replace(kind=INFERENCE)
    assert current_mode().autocast == ()


def test_threads():
    seen = {}

    def look(name, context):
        with context():
            barrier.wait()
            seen[name] = current_mode().kind
            barrier.wait()

    contexts = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}
    barrier = threading.Barrier(len(contexts) + 1)
    threads = [threading.Thread(target=look, args=item) for item in contexts.items()]
    with torch.inference_mode():
        for thread in threads:
            thread.start()
        barrier.wait()
        assert current_mode().kind is INFERENCE
        barrier.wait()
        for thread in threads:
            thread.join()
    assert seen == {"grad": TRAIN, "no_grad": NO_GRAD, "inference": INFERENCE}


def test_a_dual_level_is_of_the_process():
    seen = []
    with fwAD.dual_level(), torch.inference_mode():
        thread = threading.Thread(target=lambda: seen.append(current_mode()))
        thread.start()
        thread.join()
    assert seen == [PLAIN._replace(forward_ad=True)]


def grad(f):
    return torch.func.grad(lambda x: f(x).sum())


def vjp(f):
    return lambda x: torch.func.vjp(f, x)[1](torch.ones_like(x))[0]


def jvp(f):
    return lambda x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1]


TRANSFORMS = {
    "grad": (grad, ("grad",)),
    "vjp": (vjp, ("grad",)),
    "vmap": (torch.func.vmap, ("vmap",)),
    "jvp": (jvp, ("jvp",)),
    "functionalize": (torch.func.functionalize, ("functionalize",)),
    "jacfwd": (torch.func.jacfwd, ("vmap", "jvp")),
    "jacrev": (torch.func.jacrev, ("grad",)),
    "hessian": (torch.func.hessian, ("vmap", "jvp", "grad")),
    "grad(vmap)": (lambda f: grad(torch.func.vmap(f)), ("grad", "vmap")),
    "vmap(grad)": (lambda f: torch.func.vmap(grad(f)), ("vmap", "grad")),
    "jvp(grad)": (lambda f: jvp(grad(f)), ("jvp", "grad")),
    "grad(jvp)": (lambda f: grad(jvp(f)), ("grad", "jvp")),
    "jvp(jvp)": (lambda f: jvp(jvp(f)), ("jvp", "jvp")),
    "vmap(jvp(grad))": (lambda f: torch.func.vmap(jvp(grad(f))), ("vmap", "jvp", "grad")),
    "vmap(vmap)": (lambda f: lambda x: torch.func.vmap(torch.func.vmap(f))(x[None]), ("vmap", "vmap")),
}


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_the_outermost_first(name, context):
    around, expected = TRANSFORMS[name]
    with context():
        kind = current_mode().kind
        (mode,) = set(looked(around, torch.randn(3, dtype=torch.float64)))
        assert mode.functorch == expected
        assert mode.forward_ad == ("jvp" in expected)
        if "grad" in expected:  # it turns recording on, and leaves inference mode
            assert mode.kind is TRAIN
        elif "jvp" in expected:
            assert mode.kind is (TRAIN if kind is TRAIN else NO_GRAD)
        else:
            assert mode.kind is kind
        assert current_mode() == PLAIN._replace(kind=kind)


def test_modes_inside_a_transform():
    def inner(x):
        with torch.inference_mode():
            return Looks.forward(looks, x)

    looks = Looks()
    torch.func.vmap(inner)(torch.randn(3))
    assert looks.seen == [PLAIN._replace(kind=INFERENCE, functorch=("vmap",))]


def test_compile():
    def told(x):
        mode = current_mode()
        return x + (1.0 if mode.compiling else 10.0) + (100.0 if mode.kind is TRAIN else 1000.0)

    x = torch.zeros(2)
    assert told(x)[0] == 110
    compiled = torch.compile(told, backend="eager", fullgraph=True)
    assert compiled(x)[0] == 101
    with torch.no_grad():
        assert compiled(x)[0] == 1001
    assert current_mode() == PLAIN


def test_export():
    seen = []

    class Tells(nn.Module):
        def forward(self, x):
            seen.append(current_mode())
            return x.sin()

    torch.export.export(Tells(), (torch.zeros(2),))
    assert {mode.compiling for mode in seen} == {True}
    assert current_mode() == PLAIN
