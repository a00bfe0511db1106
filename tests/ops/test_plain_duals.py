"""``_closure.plain_duals``: the short way of dual tensors is taken where one forward level is all there is."""

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from torch.func import grad, jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from torchadx.ops import _closure as closure


class Subclass(torch.Tensor):
    pass


CONSTANT = torch.ones(2)


def asked_in(transform):
    """What ``plain_duals`` answers for the argument of a function that a transform calls."""

    def ask(x):
        found = []

        def f(x):
            found.append(closure.plain_duals(x, None, CONSTANT))
            return x.sum()

        transform(f)(x)
        return found[0]

    return ask


def asked_at_a_dual(context, x_of=lambda x: x):
    """The same for a dual tensor of ``dual_level``, made before a context is entered."""

    def ask(x):
        with fwAD.dual_level():
            dual = fwAD.make_dual(x_of(x), x.detach().cos())
            with context():
                return closure.plain_duals(dual, None, CONSTANT)

    return ask


def along(x):
    return lambda f: lambda y: jvp(f, (y,), (x,))


SHORT = {
    "dual_level": asked_at_a_dual(torch.enable_grad),
    "no_grad": asked_at_a_dual(torch.no_grad),
    "func.jvp": asked_in(lambda f: lambda x: jvp(f, (x,), (x.cos(),))),
}
LONG = {
    "no level": lambda x: closure.plain_duals(x),
    "no tangent": asked_in(lambda f: lambda x: jvp(lambda y: f(x), (x,), (x,))),
    "requires grad": asked_at_a_dual(torch.enable_grad, lambda x: x.requires_grad_()),
    "vmap": asked_in(lambda f: lambda x: vmap(along(x[0])(f))(x)),
    "grad inside": asked_in(lambda f: lambda x: jvp(grad(f), (x,), (x,))),
    "grad outside": asked_in(lambda f: lambda x: grad(lambda y: jvp(f, (y,), (x,))[1])(x)),
    "jvp of jvp": asked_in(lambda f: lambda x: jvp(lambda y: jvp(f, (y,), (x,))[1], (x,), (x,))),
    "inference mode": asked_at_a_dual(torch.inference_mode),
    "forward AD off": asked_at_a_dual(lambda: closure._set_fwd_grad_enabled(False)),
    "dispatch mode": asked_at_a_dual(TorchDispatchMode),
    "autocast": asked_at_a_dual(lambda: torch.autocast("cpu")),
    "subclass": asked_at_a_dual(torch.enable_grad, lambda x: x.as_subclass(Subclass)),
}


@pytest.mark.parametrize("case", SHORT)
def test_taken_apart(case):
    x = torch.randn(2, 2)
    (primal, absent, constant), (tangent, *others), _ = SHORT[case](x)
    assert closure.plain(primal, tangent)
    assert torch.equal(primal, x)
    assert torch.equal(tangent, x.cos())
    assert torch.equal(constant, CONSTANT)
    assert absent is None
    assert others == [None, None]


@pytest.mark.parametrize("case", LONG)
def test_left_to_the_dispatcher(case):
    assert LONG[case](torch.randn(2, 2)) is None
    assert not torch._C._are_functorch_transforms_active()


def test_an_error_inside_leaves_no_level_behind():
    def fails():
        raise RuntimeError("inside")

    def f(x):
        _, _, level = closure.plain_duals(x)
        return closure.join_duals(level, fails)

    x = torch.randn(2, 2)
    with pytest.raises(RuntimeError, match="inside"):
        jvp(f, (x,), (x,))
    assert not torch._C._are_functorch_transforms_active()
    assert torch.equal(jvp(torch.sin, (x,), (x,))[1], x * x.cos())


def answer_in(transform, weight=None):
    """What ``records_in_functorch`` answers inside of a transform."""
    found = []

    def f(x):
        found.append(closure.records_in_functorch(x, weight))
        return x.sin().sum()

    transform(f)(torch.randn(2))
    return found[0]


JVP = along(torch.ones(2))
WEIGHT = torch.ones(2, requires_grad=True)


@pytest.mark.parametrize(
    ("transform", "weight", "expected"),
    [
        pytest.param(grad, None, True, id="grad"),
        pytest.param(JVP, WEIGHT, True, id="MeanFlow"),
        pytest.param(lambda f: JVP(grad(f)), None, True, id="hvp"),
        pytest.param(lambda f: f, WEIGHT, False, id="no transform"),
        pytest.param(JVP, None, False, id="jvp"),
        pytest.param(lambda f: JVP(lambda x: jvp(f, (x,), (x,))[1]), None, False, id="jvp of jvp"),
        pytest.param(lambda f: lambda x: vmap(grad(f))(torch.stack([x, x])), None, False, id="per-sample gradients"),
    ],
)
def test_reverse_mode_in_functorch_is_seen(transform, weight, expected):
    assert answer_in(transform, weight) is expected
