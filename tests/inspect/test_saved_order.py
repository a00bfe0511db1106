"""When each is saved and used last, against the order in which backward really runs; and that reports keep nothing."""

import functools
import gc
import weakref

import pytest
import torch
from saving import ZOO, Keeper, Nested, first, mlp, row_of
from torch import nn

from torchadx.inspect import _nodes, saved


def inner(outputs):
    return [node for node in _nodes.walk(outputs) if _nodes.leaf_of(node) is None]


def fired(*outputs):
    """The numbers of nodes in the order in which backward runs them."""
    order = []
    numbers = {node: _nodes.number_of(node) for node in inner(outputs)}
    handles = [node.register_prehook(lambda grads, n=number: order.append(n)) for node, number in numbers.items()]
    torch.autograd.backward([output.sum() for output in outputs], retain_graph=True)
    for handle in handles:
        handle.remove()
    return order, list(numbers.values())


def diamond(x):
    a = x.exp()
    left, right = a.sin(), a.cos().tanh()
    return left * right + right.sigmoid()


def long_and_short(x):
    short = x.exp()
    y = x.sin()
    for _ in range(4):
        y = y.tanh()
    return short * y


def early_end(x):
    y = x.exp()
    z = y.sin()
    return z * z.detach() + y.tanh().sum()


GRAPHS = {"diamond": diamond, "long and short": long_and_short, "early end": early_end}


@pytest.mark.parametrize("name", GRAPHS)
def test_nodes_are_in_the_order_in_which_backward_runs_them(name):
    got, expected = fired(GRAPHS[name](torch.randn(5, requires_grad=True)))
    assert got == expected
    assert len(got) > 4


@pytest.mark.parametrize("name", ZOO)
def test_nodes_of_models_are_in_that_order_too(name):
    model, x = ZOO[name]()
    got, expected = fired(first(model(x)))
    assert got == expected


def test_two_outputs_are_one_backward():
    x = torch.randn(5, requires_grad=True)
    y = x.exp()
    a, b = y.sin().tanh(), y.cos()
    got, expected = fired(b, a)
    assert got == expected
    assert [_nodes.name_of(node) for node in inner([a, b])] == [
        *("CosBackward0", "TanhBackward0", "SinBackward0", "ExpBackward0"),
    ]


def test_when_each_was_saved_and_is_used_last():
    report = saved(diamond, torch.randn(5, requires_grad=True))
    # made: exp, sin, cos, tanh, mul, sigmoid, add; backward: add 0, sigmoid 1, mul 2, tanh 3, cos 4, sin 5, exp 6
    assert [(row.slots, row.saved_at, row.used_at) for row in report.rows] == [
        (("ExpBackward0.result", "SinBackward0.self", "CosBackward0.self"), 0, 6),
        (("TanhBackward0.result", "MulBackward0.other"), 3, 3),
        (("MulBackward0.self",), 5, 2),
        (("SigmoidBackward0.result",), 6, 1),
    ]


def test_a_long_life_ends_at_the_last_node():
    report = saved(long_and_short, torch.randn(5, requires_grad=True))
    row = row_of(report, "ExpBackward0.result")
    assert row.slots == ("ExpBackward0.result", "MulBackward0.self")
    # mul, four tanh, sin, exp
    assert row.used_at == 6
    assert report.nodes == 8


def test_backward_that_retains_the_graph_changes_nothing():
    model, x = Nested(), torch.randn(4, 8)
    loss = model(x).square().sum()
    before = saved(loss, model=model)
    loss.backward(retain_graph=True)
    assert saved(loss, model=model) == before
    assert before.held_bytes > 0


FREED = {
    "layers": lambda: mlp()(torch.randn(4, 8)),
    "a function": lambda: Keeper.apply(torch.randn(4, requires_grad=True), torch.ones(4)),
    "a list": lambda: torch.randn(4, requires_grad=True)[torch.tensor([0, 1])],
    "a result": lambda: torch.randn(4, requires_grad=True).exp(),
}


@pytest.mark.parametrize("name", FREED)
def test_a_graph_that_backward_freed_raises(name):
    with saved() as seen:
        y = FREED[name]()
        y.sum().backward()
    for look in (saved, seen.report):
        with pytest.raises(RuntimeError, match="backward ran, and freed"):
            look(y)


def test_numbers_need_nothing():
    x = torch.randn(5, requires_grad=True)
    report = saved(lambda x: (x + x).sum(), x)
    assert report.rows == ()
    assert report.notes == ()


class Token:
    """Something to hang onto a node, to see when it dies."""


def alive(tensors, outputs):
    """Weak references to tensors, and to tokens hung onto all nodes of a graph."""
    references = [weakref.ref(tensor) for tensor in tensors]
    for node in _nodes.walk(outputs):
        node.metadata["token"] = token = Token()
        references.append(weakref.ref(token))
    return references


def note(kept, module, args, output):
    kept.append(output)


@pytest.mark.parametrize("how", ["call", "existing", "watched", "measured"])
def test_a_report_keeps_neither_tensors_nor_nodes_nor_modules(how):
    model, x = Nested(), torch.randn(4, 8)
    kept, seen = [], None
    for module in model.modules():
        module.register_forward_hook(functools.partial(note, kept))
    if how == "existing":
        kept.append(model(x))
        report = saved(kept[-1], model=model)
    elif how == "watched":
        with saved(model=model) as seen:
            model(x)
        report = seen.report(kept[-1])
    else:
        report = saved(model, x, measure=how == "measured")
    references = alive([*kept, x, model, *model.parameters()], kept)
    assert len(references) > 20
    assert report.held_bytes > 0
    del kept, x, model, module, seen
    gc.collect()
    assert not [reference() for reference in references if reference() is not None]
    assert "Linear" in str(report.by_module())
    assert "saved tensors" in str(report)


def test_the_classes_of_functions_are_not_kept():
    """A function made for one call holds what its forward closes over."""

    def once():
        big = torch.ones(1000)

        class Local(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return x + big.sum()

            @staticmethod
            def backward(ctx, cotangent):
                return cotangent

        report = saved(lambda a: Local.apply(a), torch.ones(3, requires_grad=True))
        return report, weakref.ref(big), weakref.ref(Local)

    report, *references = once()
    gc.collect()
    assert report.tensors == 1
    assert [reference() for reference in references] == [None, None]


def test_two_hundred_layers_work():
    model = nn.Sequential(*(layer for _ in range(100) for layer in (nn.Linear(4, 4), nn.Tanh())))
    report = saved(model, torch.randn(3, 4))
    assert report.activation_bytes == 100 * 3 * 4 * 4
    assert report.storages == 1 + 99 + 100
    assert report.largest(3) == tuple(sorted(report.rows, key=lambda row: (-row.held_bytes, row.saved_at)))[:3]
    assert "... and 180 more, which hold" in str(report)
    assert sum(row.own_bytes for row in report.by_module()) == report.held_bytes
