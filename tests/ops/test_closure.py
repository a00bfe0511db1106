"""The closure matrix: every transform of every activation equals the same transform of ``act(F.linear(...))``."""

import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
import transforms
from torch.utils._pytree import tree_leaves

import torchadx
from torchadx import activations, dispatch

# under Triton's interpreter the same matrix runs over the kernels, which do not serve float64
DTYPE = torch.float32 if dispatch.interpreting() else torch.float64
TOLERANCE = {torch.float32: {"rtol": 2e-4, "atol": 2e-4}, torch.float64: {"rtol": 1e-9, "atol": 1e-11}}

ROUTES = {
    "functional": torchadx.linear,
    "op": lambda x, w, b, act: torch.ops.torchadx.linear(x, w, b, activations.resolve(act).name),
    "saving op": lambda x, w, b, act: torch.ops.torchadx.linear_saving(x, w, b, activations.resolve(act).name)[0],
}
CARRIERS = {"x": (0,), "weight": (1,), "bias": (2,), "all": (0, 1, 2)}
# what the op is given is a view of a dense tensor, taken inside the function that is differentiated
LAYOUTS = {
    "1-D": ((4,), lambda x: x),
    "2-D": ((3, 4), lambda x: x),
    "4-D": ((2, 1, 3, 4), lambda x: x),
    "broadcast": ((1, 4), lambda x: x.expand(3, 4)),
    "transposed": ((4, 3), lambda x: x.mT),
    "strided": ((6, 8), lambda x: x[::2, ::2]),
    "empty batch": ((0, 4), lambda x: x),
    "size 1": ((1, 4), lambda x: x),
}
# torch's own jacrev cannot go through a Jacobian with no rows ("select(): index 0 out of range")
BEYOND_TORCH = {("jacrev(jacfwd)", "empty batch", "x"), ("jacrev(jacfwd)", "empty batch", "all")}
REPRESENTATIVE = ("identity", "relu", "gelu", "tanh", "softplus")
ALL = tuple(row.name for row in activations.known())


def check(transform, act, layout, bias, carried, route, dtype=DTYPE, device="cpu"):
    torch.manual_seed(0)
    shape, view = LAYOUTS[layout]
    shapes = (shape, (5, 4), (5,))
    args = [torch.randn(shape, dtype=dtype, device=device) for shape in shapes[: 2 + bias]] + [None] * (not bias)
    carried = tuple(i for i in CARRIERS[carried] if args[i] is not None)
    fused = ROUTES[route]
    row = activations.resolve(act)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*performance drop.*")
        got = transforms.EVERY[transform](lambda x, w, b: fused(view(x), w, b, act), args, carried)
    try:
        expected = transforms.EVERY[transform](lambda x, w, b: row.forward(F.linear(view(x), w, b)), args, carried)
    except NotImplementedError:
        # ATen has no forward AD for some backward kernels (silu, mish); the formula has
        expected = transforms.EVERY[transform](lambda x, w, b: row.value(F.linear(view(x), w, b)), args, carried)
    got, expected = tree_leaves(got), tree_leaves(expected)
    assert len(got) == len(expected)
    for g, e in zip(got, expected, strict=True):
        # no graph and no gradient where nothing depends on the input: as good as zeros
        g, e = (torch.zeros_like(o) if t is None and o is not None else t for t, o in ((g, e), (e, g)))
        torch.testing.assert_close(g, e, **TOLERANCE[dtype])


FULL = [
    case for case in itertools.product(REPRESENTATIVE, LAYOUTS, (True, False), CARRIERS) if case[2] or case[3] != "bias"
]


@pytest.mark.parametrize("transform", transforms.EVERY)
@pytest.mark.parametrize("act", REPRESENTATIVE)
def test_full_matrix(transform, act):
    for _, layout, bias, carried in (case for case in FULL if case[0] == act):
        if (transform, layout, carried) in BEYOND_TORCH:
            continue
        try:
            check(transform, act, layout, bias, carried, "functional")
        except Exception as error:
            case = f"{transform} of {act}: x {layout}, bias {bias}, carried by {carried}"
            raise AssertionError(case) from error


@pytest.mark.parametrize("route", ["op", "saving op"])
@pytest.mark.parametrize("transform", transforms.EVERY)
@pytest.mark.parametrize("act", ALL)
def test_reduced_matrix(transform, act, route):
    check(transform, act, "4-D", True, "all", route)
    check(transform, act, "2-D", False, "weight", route)
    check(transform, act, "1-D", True, "x", route)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("transform", transforms.EVERY)
@pytest.mark.parametrize("act", REPRESENTATIVE)
def test_reduced_matrix_on_a_gpu(monkeypatch, transform, act):
    monkeypatch.setenv("TORCHADX_BACKEND", "triton")
    check(transform, act, "4-D", True, "all", "functional", torch.float32, "cuda")
    check(transform, act, "2-D", False, "weight", "functional", torch.float32, "cuda")
