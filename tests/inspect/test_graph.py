"""Graphs of hand-made functions, edge by edge: what is in them, which module made it, and that nothing is touched."""

import collections
import gc
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from torchadx.inspect._graph._graph import graph
from torchadx.inspect._modules import ModuleWatch
from torchadx.memory import ActivationManager


def vector(*shape):
    return torch.randn(*(shape or (3,)), requires_grad=True)


def name(node):
    return node.label.split("\n")[0]


def edges(drawn):
    """Count the edges by the first lines of what they connect."""
    return collections.Counter(
        " ".join(
            (name(drawn.nodes[edge.source]), "-" if edge.style == "solid" else "~", name(drawn.nodes[edge.target]))
        )
        for edge in drawn.edges
    )


def kinds(drawn):
    return collections.Counter(node.kind for node in drawn.nodes)


def labels(drawn, kind):
    return sorted(node.label for node in drawn.nodes if node.kind == kind)


def modules(drawn):
    return {
        name(node): node.module for node in drawn.nodes if node.kind == "backward" and name(node) != "AccumulateGrad"
    }


class Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x, x.exp())
        ctx.mask, ctx.scale, ctx.how = x > 0, scale, {"a": object()}
        return x * scale

    @staticmethod
    def backward(ctx, cotangent):
        return cotangent * ctx.scale, None


class Block(nn.Module):
    """A residual block with an activation that has no parameters."""

    def __init__(self, width=4):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x):
        return x + self.mlp(self.norm(x))


class Stack(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def test_both_slots_of_a_product_with_itself_are_drawn():
    a = vector()
    drawn = graph(a * a, {"a": a}, show_saved=True)
    expected = {"a - AccumulateGrad": 1, "AccumulateGrad - MulBackward0": 2, "MulBackward0 - output": 1}
    assert edges(drawn) == expected | {"MulBackward0 - self": 1, "MulBackward0 - other": 1}
    assert labels(drawn, "saved") == ["other\n(3)\nleaf a", "self\n(3)\nleaf a"]
    assert labels(drawn, "leaf") == ["a\n(3)"]
    assert kinds(drawn) == {"backward": 2, "leaf": 1, "saved": 2, "output": 1}


def test_what_is_not_saved_is_not_drawn_unless_asked_for():
    a = vector()
    drawn = graph(a * a, {"a": a})
    assert kinds(drawn) == {"backward": 2, "leaf": 1, "output": 1}
    assert [node.id for node in drawn.nodes] == [0, 1, 2, 3]


def test_a_shared_parameter_is_one_leaf():
    w, x, y = vector(), vector(), vector()
    drawn = graph((w * x) + (w * y), {"w": w})
    assert edges(drawn) == {
        "w - AccumulateGrad": 1,
        "leaf - AccumulateGrad": 2,
        "AccumulateGrad - MulBackward0": 4,
        "MulBackward0 - AddBackward0": 2,
        "AddBackward0 - output": 1,
    }
    assert labels(drawn, "leaf") == ["leaf\n(3)", "leaf\n(3)", "w\n(3)"]


def test_a_residual_has_two_ways():
    a = vector()
    x = a.exp()
    assert edges(graph(x + x.sin())) == {
        "leaf - AccumulateGrad": 1,
        "AccumulateGrad - ExpBackward0": 1,
        "ExpBackward0 - SinBackward0": 1,
        "ExpBackward0 - AddBackward0": 1,
        "SinBackward0 - AddBackward0": 1,
        "AddBackward0 - output": 1,
    }


def test_an_operation_in_place_on_a_view_shows_the_base():
    a, b = vector(2, 3), vector()
    base = a.exp()
    view = base[0]
    view.mul_(b)
    drawn = graph(view, {"a": a, "b": b})
    assert edges(drawn) == {
        "a - AccumulateGrad": 1,
        "b - AccumulateGrad": 1,
        "AccumulateGrad - ExpBackward0": 1,
        "AccumulateGrad - CopySlices": 1,
        "ExpBackward0 - CopySlices": 1,
        "CopySlices - AsStridedBackward0": 1,
        "CopySlices - view base": 1,
        "AsStridedBackward0 - output": 1,
        "view base ~ output": 1,
    }
    assert labels(drawn, "base") == ["view base\n(2, 3)"]


def test_a_base_that_is_a_leaf_or_an_output_is_drawn_once():
    a = vector(2, 3)
    assert edges(graph(a.view(-1), {"a": a}))["a ~ output"] == 1
    x = a.exp()
    drawn = graph({"view": x[0], "x": x})
    assert kinds(drawn)["output"] == 2
    assert kinds(drawn)["base"] == 0
    assert edges(drawn)["output['x'] ~ output['view']"] == 1


def test_a_graph_of_a_gradient_contains_that_of_the_function():
    a = vector()
    y = (a**3).sum()
    (gradient,) = torch.autograd.grad(y, a, create_graph=True)
    drawn = graph([y, gradient], {"a": a})
    # the gradient of the sum, which nobody needs to differentiate, times 3 (Mul1) times a^2
    assert edges(drawn) == {
        "a - AccumulateGrad": 1,
        "AccumulateGrad - PowBackward0": 2,
        "PowBackward0 - SumBackward0": 1,
        "PowBackward0 - MulBackward1": 1,
        "MulBackward1 - MulBackward0": 1,
        "SumBackward0 - output[0]": 1,
        "MulBackward0 - output[1]": 1,
    }


def test_a_function_in_python_shows_what_it_saves_and_what_is_on_its_ctx():
    a = vector()
    drawn = graph(Gate.apply(a, 2.5), {"a": a}, show_saved=True, show_attrs=True)
    assert edges(drawn) == {
        "a - AccumulateGrad": 1,
        "AccumulateGrad - GateBackward": 1,
        "GateBackward - output": 1,
        "GateBackward - saved_tensors[0]": 1,
        "GateBackward - saved_tensors[1]": 1,
        "GateBackward - ctx.mask": 1,
    }
    [node] = [node for node in drawn.nodes if name(node) == "GateBackward"]
    assert node.label == "GateBackward\nctx.scale: 2.5\nctx.how: <dict>"
    assert node.detail["ctx.scale"] == "2.5"
    # the input is a leaf: its owner holds it
    assert node.saved_bytes == 12 + 3


def test_attributes_are_plain_and_short():
    x = vector(2, 3, 4)
    [node] = [node for node in graph(x.transpose(-1, 0), show_attrs=True).nodes if name(node) == "TransposeBackward0"]
    assert node.label.endswith("\ndim0: -1\ndim1: 0")
    wide = graph(x.repeat(*[1] * 30, 1, 1, 1).sum((0, 1)), show_attrs=True, max_attr_chars=10)
    texts = [
        line.split(": ")[1] for node in wide.nodes for line in node.label.split("\n")[1:] if node.kind == "backward"
    ]
    assert "(1, 1, ..." in texts
    assert max(map(len, texts)) == 10


def test_an_output_that_is_saved_is_named():
    a = vector()
    drawn = graph(a.exp(), show_saved=True)
    assert labels(drawn, "saved") == ["result\n(3)\noutput"]


def test_a_saved_view_of_a_parameter_is_named():
    model = nn.Linear(4, 2)
    drawn = graph(model(torch.randn(3, 4, requires_grad=True)), model, show_saved=True)
    assert labels(drawn, "saved") == ["mat1\n(3, 4)\nleaf", "mat2\n(4, 2)\nview of weight"]


def test_what_a_hook_packed_is_labelled_by_the_hook_and_not_unpacked():
    fired = []

    def unpack(packed):
        fired.append(packed)
        return packed[0]

    a = vector()
    with saved_tensors_hooks(lambda tensor: (tensor.detach(),), unpack):
        y = a.exp()
    drawn = graph(y, show_saved=True, show_attrs=True)
    [label] = labels(drawn, "saved")
    assert label.startswith("result\npacked as tuple\nfor ")
    assert label.endswith("<locals>.unpack")
    assert fired == []


def test_a_tensor_that_a_hook_made_is_counted_as_it_is():
    a = vector(4, 4)
    with saved_tensors_hooks(torch.Tensor.half, torch.Tensor.float):
        y = a.exp()
    drawn = graph(y, show_saved=True)
    assert labels(drawn, "saved") == ["result\n(4, 4)\npacked as Tensor\nfor TensorBase.float"]
    assert drawn.saved_bytes == 32


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_is_not_recomputed(reentrant):
    runs = []

    def function(x):
        runs.append(1)
        return x.exp().sin()

    a = vector()
    drawn = graph(checkpoint(function, a, use_reentrant=reentrant), {"a": a}, show_saved=True, show_attrs=True)
    assert runs == [1]
    if reentrant:
        assert edges(drawn)["AccumulateGrad - CheckpointFunctionBackward"] == 1
        assert edges(drawn)["CheckpointFunctionBackward - output"] == 1
    else:
        assert edges(drawn)["ExpBackward0 - SinBackward0"] == 1
        assert all("\npacked as _Holder\nfor _checkpoint_hook" in label for label in labels(drawn, "saved"))
        assert str(drawn).endswith("saved for backward: 0 B, and 2 tensors that hooks packed")
        assert kinds(drawn)["saved"] == 2


def test_nothing_that_a_manager_holds_is_decoded():
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4))
    with ActivationManager("int8") as manager:
        loss = model(torch.randn(64, 16)).sum()
    drawn = graph(loss, model, show_saved=True, show_attrs=True)
    assert "self\n(64, 32)\npacked as int8" in labels(drawn, "saved")
    assert "mat2\n(32, 4)\nview of 2.weight" in labels(drawn, "saved")
    assert drawn.saved_bytes == manager.report().held_bytes
    assert sum(row.decodes for row in manager.report().rows) == 0
    loss.backward()
    assert sum(row.decodes for row in manager.report().rows) > 0


def test_no_tensor_is_kept():
    a = vector()
    y = a.exp()
    references = [weakref.ref(a), weakref.ref(y), weakref.ref(y.untyped_storage())]
    drawn = graph(y.sum(), {"a": a}, show_saved=True, show_attrs=True)
    del a, y
    gc.collect()
    assert [reference() for reference in references] == [None] * 3
    assert len(drawn.nodes) == 6


def test_gradients_stay_what_they_were():
    model = Stack(2)
    x = torch.randn(3, 4)
    model(x).sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    loss = model(x).sum()
    graph(loss, model, show_saved=True, show_attrs=True).dot()
    assert all(parameter.grad is None for parameter in model.parameters())
    loss.backward()
    assert all(torch.equal(parameter.grad, grad) for parameter, grad in zip(model.parameters(), expected, strict=True))


def test_modules_are_inferred_from_names():
    model = Block()
    expected = {"NativeLayerNormBackward0": "norm", "ReluBackward0": "mlp", "AddBackward0": ""}
    found = modules(graph(model(torch.randn(3, 4)), dict(model.named_parameters())))
    assert {key: found[key] for key in expected} == expected
    assert [
        node.module for node in graph(model.mlp(torch.randn(3, 4)), model).nodes if name(node) == "AddmmBackward0"
    ] == [
        "mlp.0",
        "mlp.2",
    ]


def test_transposes_and_casts_lead_to_the_module_of_the_parameter():
    model = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False), "b": nn.Linear(4, 4)})
    x = torch.randn(3, 4, dtype=torch.float64)
    y = (x @ model["a"].weight.double().t().contiguous()).relu()
    drawn = graph(torch.addmm(model["b"].bias.double(), y, model["b"].weight.double().t()), model)
    assert modules(drawn)["MmBackward0"] == "a"
    assert [node.module for node in drawn.nodes if name(node) == "ToCopyBackward0"] == ["a", "b", "b"]
    # after the first layer, not of it
    assert modules(drawn)["ReluBackward0"] == ""


def test_a_record_knows_the_modules():
    model, loss = Block(), nn.MSELoss()
    with ModuleWatch(model) as record:
        y = loss(model(torch.randn(3, 4)), torch.zeros(3, 4)) * 2
    drawn = graph(y, record=record)
    found = modules(drawn)
    assert found["ReluBackward0"] == "mlp.1"
    assert found["AddBackward0"] == ""
    assert found["MseLossBackward0"] == "MSELoss"
    assert found["MulBackward0"] is None
    assert "norm.weight\n(4)" in labels(drawn, "leaf")
    assert drawn.classes["norm"] == "LayerNorm"


def test_without_names_there_are_no_modules():
    drawn = graph(Block()(torch.randn(3, 4)))
    assert {node.module for node in drawn.nodes} == {None}
    assert drawn.dot() == drawn.dot(collapse=None)


def test_after_backward_only_what_was_saved_is_gone():
    a = vector()
    loss = Gate.apply(a.exp() * a, 2.0).sum()
    loss.backward(retain_graph=True)
    assert kinds(graph(loss, show_saved=True))["saved"] == 6
    loss.backward()
    drawn = graph(loss, show_attrs=True)
    assert kinds(drawn) == {"backward": 5, "leaf": 1, "output": 1}
    assert drawn.saved_bytes is None
    assert str(drawn).endswith("saved: freed by backward")
    with pytest.raises(RuntimeError, match=r"before backward, or run backward with retain_graph=True"):
        graph(loss, show_saved=True)


def test_freed_slots_are_told_from_empty_ones():
    a = vector()
    loss = (a.exp() * torch.ones(3)).sum()
    # a product with a constant does not need the other factor
    assert "self\n(3)" not in labels(graph(loss, show_saved=True), "saved")
    loss.backward()
    assert graph(loss).saved_bytes is None
    with pytest.raises(RuntimeError, match="already freed"):
        graph(loss, show_saved=True)
    nothing = (a + 1).sum()
    nothing.backward()
    assert graph(nothing, show_saved=True).saved_bytes == 0


def test_storages_count_once():
    a = vector(4, 4)
    x = a.exp()
    drawn = graph((x * x).sum(), show_saved=True)
    assert drawn.saved_bytes == 64
    assert [node.saved_bytes for node in drawn.nodes if name(node) == "MulBackward0"] == [0]


def test_a_graph_that_threads_made_is_complete():
    # numbers are counted by thread: what was made first may have the larger one
    a = vector()
    made = [a.exp() for _ in range(5)]
    thread = threading.Thread(target=lambda: made.append(made[-1].sin()))
    thread.start()
    thread.join()
    assert edges(graph(made[-1]))["ExpBackward0 - SinBackward0"] == 1
    assert made[-2].grad_fn is made[-1].grad_fn.next_functions[0][0]


def test_outputs_go_by_their_places_and_those_without_a_graph_are_left_out():
    a = vector()
    drawn = graph({"loss": a.sum(), "more": [a.exp(), torch.zeros(3)]})
    assert labels(drawn, "output") == ["output['loss']\n()", "output['more'][0]\n(3)"]
    y = a.exp()
    assert kinds(graph([y, y]))["output"] == 1


def test_the_class_of_a_function_made_for_one_call_is_not_kept():
    def made():
        class Local(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.times = 3
                return x * 3

            @staticmethod
            def backward(ctx, cotangent):
                return cotangent * ctx.times

        drawn = graph(Local.apply(torch.ones(2, requires_grad=True)), show_attrs=True)
        assert any("ctx.times: 3" in node.label for node in drawn.nodes)
        return weakref.ref(Local)

    reference = made()
    gc.collect()
    assert reference() is None
