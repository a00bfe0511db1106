"""What saved() refuses, and tensors of unusual kinds."""

import json
import warnings

import pytest
import torch
from saving import is_number, mlp, totals

from torchadx.inspect import saved


@pytest.fixture
def leaf():
    return torch.randn(4, requires_grad=True)


REFUSED = {
    "arguments, but nothing to call": (lambda x: saved(None, 3), TypeError, "nothing to call"),
    "keyword arguments, but nothing to call": (lambda x: saved(a=3), TypeError, "NoneType is nothing to call"),
    "arguments beside a tensor": (lambda x: saved(x.exp(), x), TypeError, "Tensor is nothing to call"),
    "a number": (lambda x: saved(3), TypeError, "got int without a tensor"),
    "text": (lambda x: saved("model"), TypeError, "got str without a tensor"),
    "an empty list": (lambda x: saved([]), TypeError, "got list without a tensor"),
    "a tensor without a graph": (lambda x: saved(torch.ones(2)), ValueError, "requires grad"),
    "a leaf": (lambda x: saved(x), ValueError, "no graph was recorded"),
    "measuring a graph": (lambda x: saved(x.exp(), measure=True), ValueError, "needs a function to run"),
    "measuring what is watched": (lambda x: saved(measure=True), ValueError, "needs a function to run"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused(name, leaf):
    call, error, text = REFUSED[name]
    with pytest.raises(error, match=text):
        call(leaf)


def test_a_hook_that_packs_into_nothing_is_still_a_slot(leaf):
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: None, lambda packed: 1 / 0):
        y = leaf.exp().sin()
    report = saved(y)
    assert totals(report) == (2, 2, 0, 0, 0, 0)
    assert all(row.residence.startswith("unknown") for row in report.rows)


def test_what_was_changed_in_place_is_shown(leaf):
    y = leaf.exp()
    z = y.detach() + 1
    y.add_(1)
    assert totals(saved(y)) == (1, 1, 16, 16, 16, 16)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    assert torch.equal(z, y.detach())


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_nested_tensors_have_no_sizes(layout):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = [torch.randn(2, 4), torch.randn(3, 4)]
        x = torch.nested.nested_tensor(parts, layout=layout, requires_grad=True)
        report = saved(lambda x: x.clone().sin(), x)
    (row,) = report.rows
    # a jagged one is made of values and of where its parts begin
    assert (row.shape, row.strides, row.storage_bytes) == (None, None, 80 + (3 * 8 if layout is torch.jagged else 0))
    assert json.loads(report.to_json()) == report.to_dict()


def test_sparse_tensors_are_slots_of_their_own():
    def product(w):
        return sum(torch.sparse.mm((torch.eye(4) * scale).to_sparse(), w) for scale in (1, 2))

    report = saved(product, torch.randn(4, 3, requires_grad=True))
    assert [(row.slots, row.shape, row.strides) for row in report.rows] == [
        (("SparseAddmmBackward0.mat1",), (4, 4), None),
    ] * 2
    assert json.loads(report.to_json())["totals"]["tensors"] == 2
    (note,) = report.notes
    assert note.startswith("rows without a known storage")
    assert note.endswith(": 2")


def test_a_tensor_of_a_transform_on_ctx_is_noted(leaf):
    class Puts(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return x.sin()

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)
            ctx.output = output

        @staticmethod
        def backward(ctx, cotangent):
            return cotangent * ctx.saved_tensors[0].cos()

    assert saved(Puts.apply, leaf).notes == ()
    report = saved(lambda x: torch.vmap(Puts.apply)(x[:, None]), leaf)
    assert [row.slot for row in report.rows] == ["saved_tensors[0]", "ctx.output"]
    (note,) = report.notes
    assert note.endswith("which count 0: 1")


class Sub(torch.Tensor):
    """A subclass that adds nothing."""


def test_subclasses_are_tensors(leaf):
    report = saved(lambda x: x.clone().exp().sin(), leaf.detach().as_subclass(Sub).requires_grad_())
    assert totals(report) == (2, 1, 32, 16, 16, 16)


def test_hooks_of_tensors_and_nodes_are_not_fired(leaf):
    calls = []
    y = leaf.exp()
    y.register_hook(lambda grad: calls.append("tensor"))
    y.grad_fn.register_prehook(lambda grads: calls.append("node"))
    loss = y.sum()
    saved(loss)
    assert calls == []
    loss.backward()
    assert calls == ["tensor", "node"]
    assert torch.equal(leaf.grad, leaf.detach().exp())


@pytest.mark.filterwarnings("ignore:Using `torch.compile:UserWarning")
@pytest.mark.parametrize("backend", ["aot_eager"])
def test_a_compiled_function_keeps_what_the_compiler_chose(backend, leaf):
    compiled = torch.compile(lambda x, w: (x @ w).tanh().sin(), backend=backend)
    x, w = torch.randn(4, 8), torch.randn(8, 3, requires_grad=True)
    report = saved(compiled, x, w)
    again = saved(compiled, x, w)
    assert {row.node for row in report.rows} == {"CompiledFunctionBackward"}
    assert "torch.compile chose it" in report.rows[0].why
    assert 0 < report.activation_bytes <= 2 * 4 * 3 * 4
    assert totals(again) == totals(report)
    report = saved(torch.compile(mlp(), backend=backend, fullgraph=True), x)
    assert {row.node for row in report.rows} == {"CompiledFunctionBackward"}
    assert report.held_bytes == 4 * 16 * 4
    assert {row.alias for row in report.rows} == {"input", "parameter 2.weight", None}
    (eager,) = torch.autograd.grad((x @ w).tanh().sin().sum(), w)
    (got,) = torch.autograd.grad(compiled(x, w).sum(), w)
    torch.testing.assert_close(got, eager)


def test_numbers_of_python_are_told_by_their_shape(leaf):
    (row,) = saved(lambda x: x * 2.5, leaf).rows
    assert is_number(row)
    assert (row.nbytes, row.alias) == (8, None)


def test_a_graph_that_is_partly_freed_is_reported_as_far_as_it_is_left():
    x, y = torch.randn(4, requires_grad=True), torch.randn(4, requires_grad=True)
    first, second = x.exp().sum(), y.exp().sum()
    first.backward()
    report = saved(first + second)
    assert [row.nbytes for row in report.rows] == [16]
    assert any("an earlier backward ran through them: 1" in note for note in report.notes)
    second.backward()
    with pytest.raises(RuntimeError, match="backward ran, and freed"):
        saved(first + second)


def test_a_report_of_nothing_is_refused():
    with saved() as seen:
        pass
    with pytest.raises(TypeError, match="takes the tensors whose graphs are looked at"):
        seen.report()
