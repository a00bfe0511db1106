"""Numerical derivatives of every op, in float64, to second order; and PyTorch's own check of how ops are registered."""

import itertools

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

import torchadx
from torchadx import activations

OPS = torch.ops.torchadx
ROUTES = {"functional": torchadx.linear, "op": OPS.linear}
REPRESENTATIVE = ("identity", "relu", "gelu", "tanh", "softplus")
ALL = tuple(row.name for row in activations.known())
SHAPES = {"1-D": (3,), "2-D": (2, 3), "4-D": (2, 1, 2, 3)}
# which of x, weight, bias require gradients
SUBSETS = {"all": (0, 1, 2), "x": (0,), "weight": (1,), "bias": (2,), "weight and bias": (1, 2)}
# where a derivative of some activation jumps
KINKS = (-3.0, 0.0, 3.0)


def leaf(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def operands(shape, bias=True):
    """x, weight and bias whose pre-activations keep their distance from every kink."""
    x, w, b = leaf(*shape), leaf(2, 3), leaf(2) if bias else None
    z = torch.nn.functional.linear(x, w, b)
    assert all((z - kink).abs().min() > 1e-3 for kink in KINKS)
    return x, w, b


def check(f, tensors, which):
    """First and second derivatives of ``f`` in the tensors at the positions ``which``."""

    def g(*some):
        full = [t if t is None else t.detach() for t in tensors]
        for i, t in zip(which, some, strict=True):
            full[i] = t
        return f(*full)

    some = tuple(tensors[i] for i in which)
    assert gradcheck(g, some, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(g, some, check_fwd_over_rev=True, check_rev_over_rev=True)


def present(tensors):
    return [i for i, t in enumerate(tensors) if t is not None]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("act", REPRESENTATIVE)
def test_linear_in_full(act, shape, route):
    for bias, subset in itertools.product((True, False), SUBSETS.values()):
        which = [i for i in subset if bias or i != 2]
        if which:
            check(lambda x, w, b: ROUTES[route](x, w, b, act), operands(SHAPES[shape], bias), which)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("act", ALL)
def test_linear_of_every_activation(act, route):
    check(lambda x, w, b: ROUTES[route](x, w, b, act), operands((2, 3)), (0, 1, 2))


@pytest.mark.parametrize("act", ALL)
def test_linear_saving(act):
    for bias in (True, False):
        args = operands((2, 3), bias)
        check(lambda x, w, b: OPS.linear_saving(x, w, b, act), args, present(args))


# (batch of tangents of x, weight, bias); None where there is no tangent
TANGENTS = {
    "x": ((), None, None),
    "weight": (None, (), None),
    "bias": (None, None, ()),
    "all": ((), (), ()),
    "batch of x": ((2,), None, None),
    "batches of all": ((2,), (2,), (2,)),
    "batch of weight, others shared": ((), (2,), ()),
    "batch of bias alone": (None, None, (2,)),
}


def with_tangents(pattern):
    primals = operands((2, 3))
    batches = TANGENTS[pattern]
    return *primals, *(None if t is None else leaf(*t, *p.shape) for t, p in zip(batches, primals, strict=True))


@pytest.mark.parametrize("tangents", TANGENTS)
@pytest.mark.parametrize("act", REPRESENTATIVE)
def test_linear_dual(act, tangents):
    args = with_tangents(tangents)
    check(lambda *tensors: OPS.linear_dual(*tensors, act), args, present(args))


@pytest.mark.parametrize("tangents", ["x", "all", "batches of all"])
@pytest.mark.parametrize("act", ["identity", "tanh", "gelu"])
def test_linear_jvp(act, tangents):
    args = with_tangents(tangents)
    check(lambda *tensors: OPS.linear_jvp(*tensors, act), args, present(args))


@pytest.mark.parametrize("act", sorted(set(ALL) - set(REPRESENTATIVE)))
def test_linear_dual_of_every_activation(act):
    args = (*operands((2, 3)), leaf(2, 2, 3), None, leaf(2))
    check(lambda *tensors: OPS.linear_dual(*tensors, act), args, present(args))


@pytest.mark.parametrize("needed", [(True, True, True), (True, False, False), (False, True, True)])
@pytest.mark.parametrize("cotangents", ["gy", "gz", "both"])
@pytest.mark.parametrize("act", REPRESENTATIVE)
def test_linear_backward(act, cotangents, needed):
    x, w, _ = operands((2, 3))
    # as independent as the others: relu's own output sits on its kink
    kept = None if act == "identity" or cotangents == "gz" else leaf(2, 2)
    gy, gz = leaf(2, 2) if cotangents != "gz" else None, leaf(2, 2) if cotangents != "gy" else None
    args = (gy, gz, x if needed[1] else None, w if needed[0] else None, kept)

    def wanted(*tensors):
        return [g for g, want in zip(OPS.linear_backward(*tensors, act, needed), needed, strict=True) if want]

    check(wanted, args, present(args))


@pytest.mark.parametrize("batch", [(), (2,)], ids=["one tangent", "batch of tangents"])
@pytest.mark.parametrize("present_cotangents", ["gty", "gy gty", "gz gty gtz", "gy gz gty gtz"])
@pytest.mark.parametrize("act", ["gelu", "tanh", "softplus", "elu"])
def test_linear_dual_cotangents(act, present_cotangents, batch):
    shapes = {"gy": (2, 2), "gz": (2, 2), "gty": (*batch, 2, 2), "gtz": (*batch, 2, 2)}
    cotangents = [leaf(*shape) if name in present_cotangents.split() else None for name, shape in shapes.items()]
    args = (*cotangents, leaf(2, 2), leaf(*batch, 2, 2))
    check(lambda *tensors: OPS.linear_dual_cotangents(*tensors, act), args, present(args))


def assert_no_shared_memory(tensors):
    storages = [t.untyped_storage().data_ptr() for t in tensors if t.numel()]
    assert len(set(storages)) == len(storages)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("act", REPRESENTATIVE)
def test_results_share_no_memory(act, shape, recorded):
    primals = [t.detach().requires_grad_(recorded) for t in operands(SHAPES[shape])]
    tangents = [torch.randn_like(t) for t in primals]
    assert_no_shared_memory([*primals, *OPS.linear_saving(*primals, act)])
    for given in (tangents, (tangents[0], None, None), (None, None, tangents[2])):
        assert_no_shared_memory([*primals, *tangents, *OPS.linear_dual(*primals, *given, act)])
    with fwAD.dual_level():
        results = OPS.linear_saving(*map(fwAD.make_dual, primals, tangents), act)
        assert_no_shared_memory([*primals, *tangents, *itertools.chain(*map(fwAD.unpack_dual, results))])


# per op: arguments, the most demanding first
X, W, B, Y = (3, 4), (5, 4), (5,), (3, 5)
PATTERNS = {
    "linear": {"4-D": ((2, 1, 3, 4), W, B), "no bias": (X, W, None)},
    "linear_saving": {"1-D": ((4,), W, B), "no bias": (X, W, None)},
    "linear_dual": {
        "batch of tangents": (X, W, B, (2, *X), (2, *W), (2, *B)),
        "tangent of x": (X, W, B, X, None, None),
        "no bias": (X, W, None, X, W, None),
    },
    "linear_jvp": {
        "batch of tangents": (X, W, B, (2, *X), None, B),
        "tangent of bias": (X, W, B, None, None, B),
    },
    "linear_backward": {
        "both cotangents": (Y, Y, X, W, Y, (True, True, True)),
        "input alone": (Y, None, None, W, Y, (True, False, False)),
        "weight alone": (None, Y, X, None, None, (False, True, False)),
        "bias alone": (Y, None, None, None, Y, (False, False, True)),
    },
    "linear_dual_cotangents": {
        "batch of tangents": (Y, Y, (2, *Y), (2, *Y), Y, (2, *Y)),
        "cotangent of ty alone": (None, None, Y, None, Y, Y),
    },
}
CASES = [(op, pattern, "gelu") for op, table in PATTERNS.items() for pattern in table]
CASES += [(op, next(iter(table)), act) for op, table in PATTERNS.items() for act in ("identity", "tanh")]
# the identity's tangents do not bend
CASES.remove(("linear_dual_cotangents", "batch of tangents", "identity"))


@pytest.mark.parametrize(("op", "pattern", "act"), CASES)
def test_opcheck(op, pattern, act):
    shapes = PATTERNS[op][pattern]
    static = (act,)
    if op == "linear_backward":
        *shapes, needed = shapes
        static = (act, needed)
    args = [None if shape is None else torch.randn(shape, requires_grad=True) for shape in shapes]
    if op == "linear_backward" and act == "identity":
        args[4] = None
    results = opcheck(getattr(OPS, op).default, (*args, *static))
    assert len(results) >= 4
    assert set(results.values()) == {"SUCCESS"}
