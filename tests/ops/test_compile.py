"""torch.compile and torch.export of every mode, through ``functional.linear`` and through the op."""

import io
import shutil

import pytest
import torch
import torch.autograd.forward_ad as fwAD
import torch.nn.functional as F
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch.func import functional_call, grad, hessian, jacfwd, jvp, vmap

import torchadx
from torchadx import activations

ROUTES = {
    "functional": torchadx.linear,
    "op": torch.ops.torchadx.linear,
    "plain": lambda x, w, b, act: activations.resolve(act).forward(F.linear(x, w, b)),
}
every_route = pytest.mark.parametrize("route", ["functional", "op"])
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs g++, which is not here")


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def through(route, act="gelu"):
    """The layer as a function of three tensors."""
    linear = ROUTES[route]
    return lambda x, w, b: linear(x, w, b, act)


plain = through("plain")


def operands(rows=3):
    torch.manual_seed(rows)
    return torch.randn(rows, 4), torch.randn(5, 4), torch.randn(5)


class Graphs:
    """A backend as aot_eager that keeps the names of the operators in every graph, forward and backward."""

    def __init__(self):
        self.operators = set()

        def keep(module, example_inputs):
            self.operators |= {str(node.target) for node in module.graph.nodes if node.op == "call_function"}
            return make_boxed_func(module.forward)

        self.backend = aot_autograd(fw_compiler=keep, bw_compiler=keep)

    @property
    def fused(self):
        return {name for name in self.operators if name.startswith("torchadx")}


# each takes a linear function and its arguments, and returns tensors; what needs a gradient asks for it inside


def forward(f, x, w, b):
    return f(x, w, b)


def func_jvp(f, x, w, b):
    return jvp(lambda x: f(x, w, b), (x,), (x.cos(),))


def func_jacfwd(f, x, w, b):
    return jacfwd(lambda b: f(x, w, b))(b)


def func_hessian(f, x, w, b):
    return hessian(lambda b: f(x, w, b).square().sum())(b)


def per_sample_gradients(f, x, w, b):
    return vmap(grad(lambda x, w: f(x, w, b).square().sum(), (0, 1)), (0, None))(x, w)


def dual_level(f, x, w, b):
    with fwAD.dual_level():
        return tuple(fwAD.unpack_dual(f(fwAD.make_dual(x, x.cos()), w, b)))


def mean_flow_loss(f, x, w, b):
    y, ty = jvp(lambda x: f(x, w, b), (x,), (x.cos(),))
    return ((y - ty) ** 2).sum()


def everything(f, x, w, b):
    """All of the above in one region: inductor is slow."""
    return [transform(f, x, w, b) for transform in TRANSFORMS.values()]


TRANSFORMS = {
    "forward": forward,
    "jvp": func_jvp,
    "jacfwd": func_jacfwd,
    "hessian": func_hessian,
    "vmap(grad)": per_sample_gradients,
    "dual_level": dual_level,
    "MeanFlow loss": mean_flow_loss,
}


def compiled(function, route, backend, act="gelu", **options):
    linear = through(route, act)
    return torch.compile(lambda *args: function(linear, *args), fullgraph=True, backend=backend, **options)


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=2e-5, atol=2e-5)


@every_route
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_one_graph_equals_eager(transform, route):
    graphs, function = Graphs(), TRANSFORMS[transform]
    close(compiled(function, route, graphs.backend)(*operands()), function(plain, *operands()))
    assert bool(graphs.fused) is (route == "op")
    assert graphs.operators


@every_route
@pytest.mark.parametrize("function", [forward, mean_flow_loss])
@pytest.mark.parametrize("act", ["identity", "tanh", "gelu"])
def test_backward_of_one_graph_equals_eager(function, route, act):
    graphs, eager = Graphs(), through("plain", act)
    got, expected = (
        torch.autograd.grad(run(*leaves).square().sum(), leaves)
        for run, leaves in (
            (compiled(function, route, graphs.backend, act), [t.requires_grad_() for t in operands()]),
            (lambda *args: function(eager, *args), [t.requires_grad_() for t in operands()]),
        )
    )
    close(got, expected)
    assert bool(graphs.fused) is (route == "op")
    if route == "op" and function is forward:
        assert "torchadx.linear_backward.default" in graphs.fused


@pytest.mark.slow
@needs_compiler
@every_route
def test_inductor(route):
    leaves = [t.requires_grad_() for t in operands()]
    got = compiled(everything, route, "inductor")(*leaves)
    expected = everything(plain, *leaves)
    close(got, expected)
    close(
        torch.autograd.grad(got[0].sum() + got[-1], leaves),
        torch.autograd.grad(expected[0].sum() + expected[-1], leaves),
    )


# PyTorch's own ops specialise on the batch size under a compiled jvp, and so does the function that lowers to them
@pytest.mark.parametrize(("transform", "route"), [("forward", "functional"), ("forward", "op"), ("jvp", "op")])
def test_one_compilation_serves_every_batch_size(transform, route):
    graphs, function = [], TRANSFORMS[transform]

    def backend(module, example_inputs):
        graphs.append(module)
        return module.forward

    run = compiled(function, route, backend, dynamic=True)
    for rows in (3, 7, 16):
        close(run(*operands(rows)), function(plain, *operands(rows)))
    assert len(graphs) == 1


@every_route
def test_no_graph_breaks(route):
    linear = through(route)
    explained = torch._dynamo.explain(lambda *args: linear(*args) + 1)(*operands())
    assert (explained.graph_break_count, explained.graph_count) == (0, 1)


@every_route
@pytest.mark.parametrize("around", [False, True])
def test_autocast(route, around):
    linear, leaves = through(route), [t.requires_grad_() for t in operands()]

    def inside(f, x, w, b):
        with torch.autocast("cpu", torch.bfloat16):
            return f(x, w, b)

    run = torch.compile(lambda *a: (forward if around else inside)(linear, *a), fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16, enabled=around):
        y = run(*leaves)
    expected = inside(plain, *leaves)
    torch.testing.assert_close(y, expected)
    got = torch.autograd.grad(y.sum(), leaves)
    torch.testing.assert_close(got, torch.autograd.grad(expected.sum(), leaves))
    assert [g.dtype for g in got] == [torch.float32] * 3


class Layer(torch.nn.Module):
    def __init__(self, route, function):
        super().__init__()
        self.route, self.function = route, function
        _, w, b = operands()
        self.weight, self.bias = torch.nn.Parameter(w), torch.nn.Parameter(b)

    def forward(self, x):
        return self.function(through(self.route), x, self.weight, self.bias)


def saved_and_loaded(program):
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file)


@every_route
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non-strict"])
def test_export_save_and_load(strict, route):
    module = Layer(route, forward)
    batch = {"x": {0: torch.export.Dim("rows")}}
    exported = torch.export.export(module, (operands()[0],), dynamic_shapes=batch, strict=strict)
    operators = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert any(name.startswith("torchadx") for name in operators) is (route == "op")
    for program in (exported, saved_and_loaded(exported)):
        for rows in (3, 6):
            x = operands(rows)[0]
            close(program.module()(x), module(x))


@pytest.mark.skipif(torch.__version__ < "2.13", reason="torch before 2.13 cannot export a jvp, of plain ATen either")
@every_route
def test_export_of_a_jvp(route):
    """Non-strict alone: strict export of a jvp fails in PyTorch, for its own ops too."""
    module, x = Layer(route, func_jvp), operands()[0]
    close(torch.export.export(module, (x,), strict=False).module()(x), module(x))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=needs_compiler)])
def test_a_compiled_module_trains_as_in_eager(backend):
    def step(compile_it):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torchadx.nn.Linear(4, 8, activation="relu"), torchadx.nn.Linear(8, 2))
        run = torch.compile(net, fullgraph=True, backend=backend) if compile_it else net
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        loss = run(operands()[0]).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach(), list(net.parameters())

    close(step(True), step(False))


def test_functional_call_of_a_module_inside_a_compiled_hessian():
    layer, x = torchadx.nn.Linear(4, 5, activation="softplus"), operands()[0]
    of_bias = hessian(lambda b: functional_call(layer, {"bias": b}, (x,)).sum())
    run = torch.compile(of_bias, fullgraph=True, backend="aot_eager")
    close(run(layer.bias.detach()), of_bias(layer.bias.detach()))
