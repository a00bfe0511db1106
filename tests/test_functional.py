"""What ``functional.linear`` takes and refuses, and how it behaves as a citizen of eager PyTorch."""

import contextlib
import itertools
import re
import threading

import pytest
import torch
import torch.autograd.forward_ad as fwAD
import torch.nn.functional as F
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode

import torchadx
from torchadx import activations

KINDS = {"nothing": "identity", "output": "tanh", "pre_activation": "gelu"}
every_kind = pytest.mark.parametrize("act", KINDS.values())


def operands(*lead, dtype=torch.float64, size=(5, 4), grad=True):
    n, k = size
    return [torch.randn(shape, dtype=dtype, requires_grad=grad) for shape in ((*lead, k), (n, k), (n,))]


def plain_linear(x, w, b, act):
    return activations.resolve(act).forward(F.linear(x, w, b))


class Recorded(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append(func)
        return func(*args, **(kwargs or {}))


X, W, B = operands(3, dtype=torch.float32, grad=False)
NESTED = torch.nested.nested_tensor([X, X[:2]], layout=torch.jagged)
# what is wrong: (arguments, error, what its message names)
BAD = {
    "x a list": (([1.0], W, B), TypeError, ["x", "tensor", "list"]),
    "x None": ((None, W, B), TypeError, ["x", "tensor", "NoneType"]),
    "weight a number": ((X, 2.0, B), TypeError, ["weight", "tensor", "float"]),
    "bias a bool": ((X, W, True), TypeError, ["bias", "tensor", "bool"]),
    "x integer": ((X.long(), W, B), TypeError, ["x", "torch.int64", "torch.float32"]),
    "x boolean": ((X > 0, W, B), TypeError, ["x", "torch.bool", "torch.float32"]),
    "x complex": ((X.cfloat(), W, B), TypeError, ["x", "torch.complex64", "torch.float32"]),
    "all complex": ((X.cfloat(), W.cfloat(), B.cfloat()), TypeError, ["x", "torch.complex64"]),
    "all integer": ((X.long(), W.long(), B.long()), TypeError, ["x", "torch.int64"]),
    "weight integer": ((X, W.int(), B), TypeError, ["weight", "torch.int32", "torch.float32"]),
    "bias complex": ((X, W, B.cdouble()), TypeError, ["bias", "torch.complex128", "torch.float32"]),
    "float8": ((X.to(torch.float8_e4m3fn), W, B), TypeError, ["x", "torch.float8_e4m3fn", "torch.bfloat16"]),
    "x sparse": ((X.to_sparse(), W, B), TypeError, ["x", "dense", "sparse"]),
    "weight sparse": ((X, W.to_sparse(), B), TypeError, ["weight", "dense", "sparse"]),
    "x nested": ((NESTED, W, B), TypeError, ["x", "dense", "nested"]),
    "x 0-d": ((X[0, 0], W, B), ValueError, ["x", "at least one dimension", "0-d"]),
    "weight 1-D": ((X, W[0], B), ValueError, ["weight", "2-D", "(4,)"]),
    "weight 3-D": ((X, W[None], B), ValueError, ["weight", "2-D", "(1, 5, 4)"]),
    "sizes": ((X[:, :3], W, B), ValueError, ["x", "3", "weight", "(5, 4)", "(3, 3)"]),
    "weight transposed": ((X, W.t(), None), ValueError, ["x", "4", "weight", "(4, 5)"]),
    "bias too long": ((X, W, torch.ones(6)), ValueError, ["bias", "(5,)", "(6,)"]),
    "bias would broadcast": ((X, W, torch.ones(1)), ValueError, ["bias", "(5,)", "(1,)"]),
    "bias 2-D": ((X, W, torch.ones(1, 5)), ValueError, ["bias", "(5,)", "(1, 5)"]),
    "bias 0-d": ((X, W, torch.tensor(1.0)), ValueError, ["bias", "(5,)", "()"]),
    "weight half": ((X, W.half(), B), ValueError, ["weight", "torch.float16", "torch.float32", "autocast"]),
    "bias double": ((X, W, B.double()), ValueError, ["bias", "torch.float64", "torch.float32"]),
    "x on meta": ((X.to("meta"), W, B), ValueError, ["weight", "cpu", "meta"]),
    "weight on meta": ((X, W.to("meta"), B), ValueError, ["weight", "meta", "cpu"]),
    "bias on meta": ((X, W, B.to("meta")), ValueError, ["bias", "meta", "cpu"]),
    "activation unknown": ((X, W, B, "glue"), ValueError, ["activation", "'glue'", "gelu", "relu_squared"]),
    "activation a class": ((X, W, B, torch.nn.GELU), ValueError, ["activation", "GELU", "gelu_tanh"]),
}


@pytest.mark.parametrize("function", [torchadx.linear, torchadx.explain], ids=["linear", "explain"])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_before_anything_runs(case, function):
    args, error, named = BAD[case]
    with Recorded() as mode, pytest.raises(error) as raised:
        function(*args)
    message = str(raised.value)
    assert re.search(rf"\b{named[0]}\b", message), message
    assert all(name in message for name in named), message
    # prim: questions about a tensor
    assert all(func.namespace == "prim" for func in mode.calls)


@every_kind
def test_nan_and_infinity_propagate_as_in_torch(act):
    x, w, b = operands(6)
    with torch.no_grad():
        x[1, 2], x[2, 0], x[3, 1], w[4, 3] = torch.nan, torch.inf, -torch.inf, 1e300
    for poisoned in (x, x * 0 + torch.nan):
        got, expected = torchadx.linear(poisoned, w, b, act), plain_linear(poisoned, w, b, act)
        torch.testing.assert_close(got, expected, equal_nan=True)
        grads = [torch.autograd.grad(y.sum(), (w, b)) for y in (got, expected)]
        torch.testing.assert_close(*grads, equal_nan=True)


@pytest.mark.parametrize("act", ["identity", "relu", "sigmoid", "softplus"])
@pytest.mark.parametrize(
    ("lead", "size"), [((0,), (5, 4)), ((2, 0), (5, 4)), ((3,), (0, 4)), ((3,), (5, 0)), ((0,), (0, 0)), ((), (5, 0))],
    ids=["no rows", "no rows, 3-D", "no outputs", "no inputs", "nothing", "no inputs, 1-D"],
)  # fmt: skip
def test_zero_sizes(lead, size, act):
    args = operands(*lead, size=size)
    tangents = operands(*lead, size=size, grad=False)

    def results(f):
        y = f(*args)
        return y, torch.autograd.grad(y.sum(), args), torch.func.jvp(f, tuple(args), tuple(tangents))

    got = results(lambda *some: torchadx.linear(*some, act))
    assert got[0].shape == (*lead, size[0])
    torch.testing.assert_close(got, results(lambda *some: plain_linear(*some, act)))


@pytest.mark.parametrize(
    ("act", "changed"), [("gelu", "weight"), ("tanh", "weight"), ("identity", "x"), ("relu", "y"), ("sigmoid", "y")]
)
def test_changing_what_backward_reads_raises(act, changed):
    x, w, b = operands(3)
    inner, weight = x * 1, w * 1
    y = torchadx.linear(inner, weight, b, act)
    with torch.no_grad():
        {"x": inner, "weight": weight, "y": y}[changed].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
@pytest.mark.parametrize("act", ["identity", "gelu", "softplus"])
def test_the_output_may_change_in_place_where_backward_does_not_read_it(act, lead):
    args = operands(*lead)
    assert not torchadx.linear(*args, act)._is_view()
    got, expected = (torch.autograd.grad(f(*args, act).mul_(2).sum(), args) for f in (torchadx.linear, plain_linear))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("act", [row.name for row in activations.known()])
def test_backward_twice_is_equal_and_writes_to_nothing(act):
    args = operands(3)
    y = torchadx.linear(*args, act)
    saved = [t for t in y.grad_fn.saved_tensors if t is not None]
    cotangent = torch.randn_like(y)
    watched = [*args, y, cotangent, *saved]
    before = [(t._version, t.detach().clone()) for t in watched]
    first = torch.autograd.grad(y, args, cotangent, retain_graph=True)
    kept = [g.clone() for g in first]
    second = torch.autograd.grad(y, args, cotangent)
    assert all(map(torch.equal, first, second))
    assert all(map(torch.equal, first, kept))
    for t, (version, value) in zip(watched, before, strict=True):
        assert t._version == version
        assert torch.equal(t, value)


@every_kind
def test_results_nobody_used_get_no_zeros(act):
    y = torch.ops.torchadx.linear_saving(*operands(3), act)[0]
    with Recorded() as mode:
        y.backward(torch.ones_like(y))
    assert not any("zeros" in str(func) for func in mode.calls)


def test_backward_after_the_graph_is_freed_raises():
    y = torchadx.linear(*operands(3), "gelu").sum()
    y.backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


@every_kind
@pytest.mark.parametrize("bias", [True, False])
def test_only_what_is_asked_for_gets_a_gradient(act, bias):
    for wanted in itertools.product((True, False), repeat=3 if bias else 2):
        args = operands(3)[: len(wanted)]
        for t, want in zip(args, wanted, strict=True):
            t.requires_grad_(want)
        full = [*args, None][:3]
        got, expected = torchadx.linear(*full, act), plain_linear(*full, act)
        assert got.requires_grad is any(wanted)
        if any(wanted):
            got.sum().backward()
            assert [t.grad is not None for t in args] == list(wanted)
            leaves = [t for t in args if t.requires_grad]
            torch.testing.assert_close([t.grad for t in leaves], [*torch.autograd.grad(expected.sum(), leaves)])


COTANGENTS = {
    "expanded": lambda y: torch.ones((), dtype=y.dtype).expand_as(y),
    "row expanded": lambda y: torch.randn(y.shape[-1], dtype=y.dtype).expand_as(y),
    "transposed": lambda y: torch.randn(*y.shape[::-1], dtype=y.dtype).permute(*range(y.dim())[::-1]),
    "strided": lambda y: torch.randn(*y.shape, 2, dtype=y.dtype)[..., 0],
}


@every_kind
@pytest.mark.parametrize("cotangent", COTANGENTS)
def test_cotangents_of_any_strides(act, cotangent):
    args = operands(3, 2)
    y = torchadx.linear(*args, act)
    g = COTANGENTS[cotangent](y)
    assert not g.is_contiguous()
    got = torch.autograd.grad(y, args, g)
    torch.testing.assert_close(got, torch.autograd.grad(plain_linear(*args, act), args, g))


class Counted(torch.Tensor):
    seen = ()

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen = (*cls.seen, func)
        return super().__torch_function__(func, types, args, kwargs)


@every_kind
@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_torch_function_subclass_sees_the_call_and_survives(act, position):
    args = operands(3, grad=False)
    expected = plain_linear(*args, act)
    args[position] = args[position].as_subclass(Counted)
    y = torchadx.linear(*args, act)
    assert torchadx.linear in Counted.seen
    assert type(y) is Counted
    torch.testing.assert_close(y.as_subclass(torch.Tensor), expected)


@every_kind
def test_a_torch_dispatch_subclass_goes_through_every_mode(act):
    args, tangents = operands(3, grad=False), operands(3, grad=False)
    leaves = [TwoTensor(t.clone(), 2 * t).requires_grad_() for t in args]
    y = torchadx.linear(*leaves, act)
    y.sum().backward()
    with fwAD.dual_level():
        duals = [fwAD.make_dual(TwoTensor(t, 2 * t), TwoTensor(v, 3 * v)) for t, v in zip(args, tangents, strict=True)]
        ty = fwAD.unpack_dual(torchadx.linear(*duals, act)).tangent
    for side, scale, speed in (("a", 1, 1), ("b", 2, 3)):
        inner = [(scale * t).requires_grad_() for t in args]
        expected, pushed = torch.func.jvp(
            lambda *some: plain_linear(*some, act), tuple(inner), tuple(speed * t for t in tangents)
        )
        torch.testing.assert_close(getattr(y, side), expected)
        torch.testing.assert_close(getattr(ty, side), pushed)
        grads = [getattr(t.grad, side) for t in leaves]
        torch.testing.assert_close(grads, [*torch.autograd.grad(plain_linear(*inner, act).sum(), inner)])


def test_a_dispatch_mode_sees_the_op():
    with Recorded() as mode:
        torchadx.linear(*operands(3), "gelu")
    assert any(func.namespace == "torchadx" for func in mode.calls)


def test_tangents_that_inference_mode_would_drop_raise():
    x, w, b = operands(3, grad=False)
    with fwAD.dual_level():
        dual = fwAD.make_dual(x, torch.ones_like(x))
        with torch.inference_mode(), pytest.raises(RuntimeError, match=r"tangent.*inference_mode"):
            torchadx.linear(dual, w, b, "gelu")


@every_kind
@pytest.mark.parametrize("level", [contextlib.nullcontext, fwAD.dual_level], ids=["no level", "dual level elsewhere"])
def test_threads(act, level):
    args = operands(16)
    y = plain_linear(*args, act)
    expected = y.detach(), torch.autograd.grad(y.sum(), args)
    start, wrong = threading.Barrier(8), []

    def work():
        start.wait()
        try:
            for _ in range(10):
                y = torchadx.linear(*args, act)
                torch.testing.assert_close((y.detach(), torch.autograd.grad(y.sum(), args)), expected)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    with level():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


@every_kind
@pytest.mark.parametrize("route", ["functional", "op"])
def test_saved_tensor_hooks_see_everything_that_is_saved(act, route):
    linear = torchadx.linear if route == "functional" else torch.ops.torchadx.linear
    args = operands(3)
    packed, unpacked = [], []

    def pack(t):
        packed.append(t)
        return 2 * t.detach()

    def unpack(t):
        unpacked.append(t)
        return t / 2

    with saved_tensors_hooks(pack, unpack):
        y = linear(*args, act)
    got = torch.autograd.grad(y.sum(), args)
    assert len(packed) == (2 if act == "identity" else 3)
    assert len(unpacked) == len(packed)
    torch.testing.assert_close(got, torch.autograd.grad(plain_linear(*args, act).sum(), args))


@every_kind
def test_save_on_cpu(act):
    args = operands(3)
    with save_on_cpu():
        y = torchadx.linear(*args, act)
    got = torch.autograd.grad(y.sum(), args)
    torch.testing.assert_close(got, torch.autograd.grad(plain_linear(*args, act).sum(), args))


@every_kind
@pytest.mark.parametrize("route", ["functional", "op"])
def test_no_tensor_sits_on_the_context(act, route):
    linear = torchadx.linear if route == "functional" else torch.ops.torchadx.linear
    kept = vars(linear(*operands(3), act).grad_fn)
    assert kept["static"] == (act,)
    assert not any(isinstance(leaf, torch.Tensor) for leaf in torch.utils._pytree.tree_leaves(kept))


def test_explain_names_backend_reason_and_measured_routes(monkeypatch):
    x, w, b = operands(64, dtype=torch.float32, size=(128, 64), grad=False)
    assert torchadx.explain(x, w, b, "gelu") == "aten: TORCHADX_BACKEND=aten"
    monkeypatch.setenv("TORCHADX_BACKEND", "auto")
    assert "float64 always takes the ATen route" in torchadx.explain(x.double(), w.double(), b.double(), "gelu")
    assert "PyTorch's own two ops are called" in torchadx.explain(x[:1, :8], w[:8, :8], b[:8], "gelu")
    monkeypatch.setenv("TORCHADX_BACKEND", "aten")
    if not torchadx.dispatch.onednn_serves(x):
        pytest.skip("nothing to measure: this CPU has no oneDNN")
    monkeypatch.setenv("TORCHADX_TUNING", "full")
    torchadx.linear(x, w, b, "gelu")
    torchadx.linear(x.requires_grad_(), w, b, "gelu").sum().backward()
    backend, *routes = torchadx.explain(x, w, b, "gelu").splitlines()
    assert backend.startswith("aten: ")
    measured = {line.split(":")[0] for line in routes if "measured" in line and " us" in line}
    assert {"affine_gelu", "affine"} <= measured
