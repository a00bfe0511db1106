"""Chains of recorded functions: what passes each place, and that the Jacobian is a product wherever it is cut."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import names, points, recorded
from torch import nn

from torchadx.autodiff._chain import blocked, chain
from torchadx.autodiff._evaluate import Evaluator
from torchadx.autodiff._run import Runner
from torchadx.autodiff._schedule import Move

(X,) = points(1, 4)
CONSTANT = points(2, 4)[1]


def chained(f, *arguments, wrt=None, module=None):
    """The chain of a function, by all of its inputs or by those at some positions."""
    program = recorded(f, *arguments, module=module)
    return chain(program, [program.inputs[n] for n in (range(len(arguments)) if wrt is None else wrt)])


def operations(found):
    return [node.call.target.overloadpacket.__name__ for node in found.nodes]


def widths(found):
    return [found.width(place) for place in range(len(found.nodes) + 1)]


def counts(found):
    return [len(frontier) for frontier in found.frontiers]


def dense(found, arguments, first, last, adjoint):
    """The Jacobian of nodes first..last-1, by one sweep."""
    if first == last:
        return torch.eye(found.width(first), dtype=torch.float64)
    width = found.width(last if adjoint else first)
    move = Move("reverse" if adjoint else "forward", 0, 1, 0, 1, width, 0.0, 0.0)
    (jacobian,), _ = Runner(found, (first, last), (move,), False)(arguments, False, lambda _: None)
    return jacobian


def wanted(f, arguments, found, wrt):
    """PyTorch's Jacobian, of the active outputs by the active inputs, flattened."""
    outputs = f(*arguments)
    outputs = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
    numbers = list(found.program.outputs)
    chosen = [numbers.index(value) for value in found.frontiers[-1]]

    def flat(*xs):
        ys = f(*xs)
        ys = list(ys) if isinstance(ys, (tuple, list)) else [ys]
        return torch.cat([ys[n].reshape(-1) for n in chosen])

    columns = [n for n in wrt if found.program.inputs[n] in found.frontiers[0]]
    blocks = torch.func.jacrev(flat, tuple(columns))(*arguments)
    return torch.cat([block.reshape(block.shape[0], -1) for block in blocks], 1)


def cuts_agree(f, arguments, wrt=None):
    """Every cut gives PyTorch's Jacobian, whichever way each side is computed."""
    wrt = list(range(len(arguments))) if wrt is None else wrt
    found = chained(f, *arguments, wrt=wrt)
    last = len(found.nodes)
    want = wanted(f, arguments, found, wrt)
    assert want.shape == (found.width(last), found.width(0))
    for place, (left, right) in itertools.product(range(last + 1), [(True, False), (False, True)]):
        upper, lower = dense(found, arguments, place, last, left), dense(found, arguments, 0, place, right)
        torch.testing.assert_close(upper @ lower, want, rtol=1e-10, atol=1e-10)
    # and all places at once
    product = torch.eye(found.width(0), dtype=torch.float64)
    for place in range(last):
        product = dense(found, arguments, place, place + 1, place % 2 == 0) @ product
    torch.testing.assert_close(product, want, rtol=1e-10, atol=1e-10)
    return found


# frontiers


def test_a_plain_chain():
    found = cuts_agree(lambda x: x.sin()[:2].exp().sum(), (X,))
    assert operations(found) == ["sin", "slice", "exp", "sum"]
    assert counts(found) == [1] * 5
    assert widths(found) == [4, 4, 2, 2, 1]
    calls = [node.call for node in found.nodes]
    assert found.frontiers == (found.wrt, *[call.outputs for call in calls])
    assert found.frontiers[-1] == found.program.outputs
    assert found.active == {*found.wrt, *[index for call in calls for index in call.outputs]}


def test_a_residual_is_in_the_frontier_while_it_waits():
    found = cuts_agree(lambda x: x + x.sin().exp(), (X,))
    assert operations(found) == ["sin", "exp", "add"]
    assert widths(found) == [4, 8, 8, 4]
    assert all(found.wrt[0] in frontier for frontier in found.frontiers[:3])


def test_a_long_skip():
    def f(x):
        early = x[:2].sin()
        return (x.cumsum(0).exp()[1:3].tanh() * early).sum()

    found = cuts_agree(f, (X,))
    assert operations(found) == ["slice", "sin", "cumsum", "exp", "slice", "tanh", "mul", "sum"]
    assert widths(found) == [4, 6, 6, 6, 6, 4, 4, 2, 1]


def test_several_inputs_stand_in_the_callers_order():
    y, z = points(2, 3)
    found = cuts_agree(lambda x, y, z: z.sin() * y + x.sum(), (X, y, z))
    assert found.frontiers[0] == found.wrt == found.program.inputs
    assert widths(found) == [10, 10, 7, 4, 3]
    for order in itertools.permutations(range(3)):
        other = chained(lambda x, y, z: z.sin() * y + x.sum(), X, y, z, wrt=order)
        assert other.frontiers[0] == tuple(other.program.inputs[n] for n in order)


def test_inputs_that_are_not_asked_for_are_constants():
    (y,) = points(1, 3)
    found = cuts_agree(lambda x, y: y.sin() * x[:3].cos(), (X, y), wrt=[0])
    assert operations(found) == ["slice", "cos", "mul"]
    assert [edge.source for edge in found.nodes[-1].edges] == list(found.nodes[-2].call.outputs)


def test_inputs_that_do_not_matter():
    (y,) = points(1, 3)
    found = cuts_agree(lambda x, y: x.sin(), (X, y))
    assert found.frontiers[0] == found.program.inputs[:1]
    assert widths(found) == [4, 4]


def test_several_outputs():
    def f(x):
        y = x.sin()
        return y, y.exp().sum(), x[1:].cos()

    found = cuts_agree(f, (X,))
    assert found.frontiers[-1] == found.program.outputs
    assert widths(found) == [4, 8, 12, 9, 8, 8]


def test_outputs_that_are_inputs():
    found = cuts_agree(lambda x: (x, x.sin()), (X,))
    assert found.frontiers == (found.wrt, (found.wrt[0], *found.nodes[0].call.outputs))
    assert widths(found) == [4, 8]


def test_the_identity():
    found = chained(lambda x: x, X)
    assert found.nodes == ()
    assert found.frontiers == (found.wrt,)
    assert cuts_agree(lambda x: x, (X,)).active == {*found.wrt}


def test_an_output_twice_passes_once():
    found = chained(lambda x: [x.sin()] * 2 + [x], X)
    assert widths(found) == [4, 8]
    assert len(found.program.outputs) == 3


def test_outputs_that_do_not_depend():
    found = chained(lambda x: (CONSTANT * 2, x.sin()), X)
    assert found.frontiers[-1] == found.program.outputs[1:]
    nothing = chained(lambda x: torch.ones_like(x), X)
    assert nothing.nodes == () or set(operations(nothing)) == {"ones_like"}
    assert chained(lambda x: CONSTANT * 2, X).frontiers == ((),)


def test_one_value_as_several_arguments():
    found = cuts_agree(lambda x: torch.cat([x * x, x, x]), (X,))
    mul, cat = found.nodes
    assert [(edge.wrt, edge.source) for edge in mul.edges] == [((0,), found.wrt[0]), ((1,), found.wrt[0])]
    assert [edge.wrt for edge in cat.edges] == [(0, 0), (0, 1), (0, 2)]


def test_one_operation_with_several_results():
    def f(x):
        first, _, third = x.view(2, 2).expand(3, 2, 2).unbind(0)
        return first @ third

    found = cuts_agree(f, (X,))
    (unbind,) = [node for node in found.nodes if node.call.target is torch.ops.aten.unbind.int]
    # what nobody reads is not in the way
    assert [edge.of for edge in unbind.edges] == [0, 2]


def test_integers_carry_nothing():
    def f(x):
        return x.sin()[x.argsort()] * (x > 0) + x.topk(4).indices

    found = cuts_agree(f, (X,))
    recorded_names = set(names(found.program))
    assert {"gt", "topk"} <= recorded_names
    assert not {"gt", "topk", "argsort", "sort"}.intersection(operations(found))
    assert max(widths(found)) == 4


def test_a_narrow_network_is_narrow_in_the_middle():
    module = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1), nn.Tanh(), nn.Linear(1, 5)).double()
    found = cuts_agree(module, points(1, 6))
    assert widths(found)[0] == 6
    assert widths(found)[-1] == 5
    assert min(widths(found)) == 1
    assert max(counts(found)) == 1


def test_links_hold_the_derivatives_at_a_point():
    found = chained(lambda x: x.sin() * CONSTANT, X)
    sin, mul = Evaluator(found).links((X,))
    ones = torch.ones(1, 4, dtype=torch.float64)
    torch.testing.assert_close(sin.parts[0].push(ones)[0], X.cos(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(mul.parts[0].pull(ones)[0], CONSTANT, rtol=1e-10, atol=1e-10)


# where derivatives stop


def two_stops(x):
    y = x.sin().detach() * x.exp().detach()
    with torch.no_grad():
        y = y.cos().tanh()
        y = y + x
    return y * x


def test_stops_are_told_once_a_cause_and_line():
    program = recorded(two_stops, X)
    stops = blocked(program, program.inputs)
    assert [call.blocked for call in stops] == ["detach", "no_grad", "no_grad"]
    assert len({call.line for call in stops}) == 3
    found = chain(program, program.inputs)
    assert operations(found) == ["mul"]
    assert [edge.wrt for edge in found.nodes[0].edges] == [(1,)]


def test_stops_of_what_is_not_asked_for_are_not_told():
    program = recorded(lambda x, y: x.sin() * y.detach(), X, CONSTANT)
    assert blocked(program, program.inputs[:1]) == []
    assert len(blocked(program, program.inputs[1:])) == 1
    assert len(blocked(program, program.inputs)) == 1


def order(x):
    with torch.no_grad():
        found = x.argsort()
    return x[found]


def largest(x):
    with torch.no_grad():
        found = x.softmax(0).argmax(0, keepdim=True)
    return x[found]


def masked(x):
    with torch.no_grad():
        found = x * 2 > 0.5
    return torch.where(found, x, x.sin())


@pytest.mark.parametrize("f", [order, largest, masked])
def test_nothing_stops_on_the_way_to_integers_and_masks(f):
    program = recorded(f, X)
    assert blocked(program, program.inputs) == []


# any program


UNARY = [torch.sin, torch.tanh, lambda v: v.mT, lambda v: v.cumsum(0), lambda v: v.softmax(1), lambda v: 2 * v]
BINARY = [torch.add, torch.mul, torch.matmul, torch.sub, lambda a, b: torch.cat([a[:1], b[1:]])]
step = st.tuples(st.booleans(), st.integers(0, 10), st.integers(0, 30), st.integers(0, 30))


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.lists(step, min_size=1, max_size=7), st.sets(st.integers(0, 30), max_size=2), st.integers(1, 2))
def test_any_cut_of_any_program(steps, extra, inputs):
    arguments = tuple(0.5 * t for t in points(inputs, 2, 2))

    def f(*xs):
        values = list(xs)
        for unary, which, a, b in steps:
            # most operations read what was just made, the rest anything: residuals
            first = values[-1] if a % 2 else values[a % len(values)]
            if unary:
                values.append(UNARY[which % len(UNARY)](first))
            else:
                values.append(BINARY[which % len(BINARY)](first, values[b % len(values)]))
        return [values[-1], *[values[n % len(values)] for n in extra]]

    found = cuts_agree(f, arguments)
    assert set(found.frontiers[-1]) == set(found.program.outputs) & found.active


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_chunks_and_recomputing_change_nothing(recompute, chunk):
    def f(x):
        return (x.sin() + x).exp().cumsum(0) * x.sum()

    found = chained(f, X)
    last = len(found.nodes)
    moves = (Move("reverse", 0, 1, 0, 1, chunk, 0.0, 0.0), Move("push", 0, 2, 1, 2, chunk, 0.0, 0.0))
    (got,), seconds = Runner(found, (0, 2, last), moves, recompute)((X,), False, lambda _: None)
    torch.testing.assert_close(got, torch.func.jacrev(f)(X), rtol=1e-10, atol=1e-10)
    assert len(seconds) == 3
