"""Moves: what a tree of brackets leaves on a stack of Jacobians, in how many directions at once, in how many bytes."""

import dataclasses
import math
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchadx.autodiff._cost import ChainCosts, Segment
from torchadx.autodiff._dynamic import ACTIONS, Step, Table, solve
from torchadx.autodiff._planner import FORWARD, REVERSE
from torchadx.autodiff._rates import Rates
from torchadx.autodiff._schedule import peak, schedule, seconds

ITEM = 8
quick = settings(deadline=None, max_examples=60, derandomize=True)


def segment(known=False, forward=2.0, reverse=3.0, calls=0.5, room=16.0, tape=0.0):
    head = (forward, reverse) if known else (0.0, 0.0)
    return Segment(0, 1, 1.0, calls, forward, reverse, *head, known, room, tape, ("op",))


def costs_of(widths, *segments, working_set=1 << 40, chunk=None, samples=1):
    """A chain by its widths, the same at every segment unless told."""
    segments = segments or [segment()] * (len(widths) - 1)
    return ChainCosts(segments, widths, Rates(working_set=working_set), ITEM, samples, chunk)


def step(action, start, end, *parts):
    return Step(action, start, end, parts, 0.0, 0.0)


def left_over(moves):
    """Follow the moves on a stack; return the stretches that are on it in the end."""
    stack = []
    for move in moves:
        made = move.start, move.end
        if move.action == "multiply":
            left, right = stack.pop(), stack.pop()
            assert right[1] == left[0]
            assert made == (right[0], left[1])
            assert move.first == move.last == left[0]
        elif move.action in ("push", "pull"):
            top = stack.pop()
            assert move.first < move.last
            assert made == ((top[0], move.last) if move.action == "push" else (move.first, top[1]))
            assert top == ((move.start, move.first) if move.action == "push" else (move.last, move.end))
        else:
            assert made == (move.first, move.last)
            assert move.action in ("known", "forward", "reverse")
            assert move.action != "known" or move.last == move.first + 1
        stack.append(made)
    return stack


def brief(moves):
    return [(move.action, move.first, move.last) for move in moves]


# known trees


def test_one_sweep():
    costs = costs_of((3, 4, 2))
    (move,) = schedule(step("forward", 0, 2), costs, math.inf)
    assert (move.action, move.start, move.end, move.first, move.last, move.chunk) == ("forward", 0, 2, 0, 2, 3)
    assert move.seconds == 1.0 + 3 * 4.0
    (move,) = schedule(step("reverse", 0, 2), costs, math.inf)
    assert (move.action, move.first, move.last, move.chunk) == ("reverse", 0, 2, 2)
    assert move.seconds == 1.0 + 2 * 6.0


def test_a_known_matrix_costs_nothing():
    costs = costs_of((3, 4), segment(known=True))
    (move,) = schedule(step("known", 0, 1), costs, math.inf)
    assert (move.action, move.chunk, move.seconds, move.peak) == ("known", 0, 0.0, 0.0)


def test_the_right_factor_comes_first():
    costs = costs_of((3, 1, 2))
    tree = step("multiply", 0, 2, step("reverse", 0, 1), step("forward", 1, 2))
    moves = schedule(tree, costs, math.inf)
    assert brief(moves) == [("reverse", 0, 1), ("forward", 1, 2), ("multiply", 1, 1)]
    assert left_over(moves) == [(0, 2)]
    assert moves[-1].seconds == costs.multiply(2, 1, 3)


def test_products_of_products():
    costs = costs_of((2, 3, 4, 5, 6))
    right = step("multiply", 0, 2, step("forward", 0, 1), step("forward", 1, 2))
    left = step("multiply", 2, 4, step("reverse", 2, 3), step("reverse", 3, 4))
    moves = schedule(step("multiply", 0, 4, right, left), costs, math.inf)
    assert [move.action for move in moves] == ["forward"] * 2 + ["multiply"] + ["reverse"] * 2 + ["multiply"] * 2
    assert left_over(moves) == [(0, 4)]


def pushed(*ends):
    tree = step("forward", 0, ends[0])
    for end in ends[1:]:
        tree = step("push", 0, end, tree)
    return tree


def pulled(*starts):
    tree = step("reverse", starts[0], 4)
    for start in starts[1:]:
        tree = step("pull", start, 4, tree)
    return tree


@pytest.mark.parametrize(
    ("tree", "action"), [(pushed(1, 2, 3, 4), "forward"), (pushed(2, 4), "forward"), (pulled(3, 2, 1, 0), "reverse")]
)
def test_sweeps_that_follow_each_other_are_one(tree, action):
    assert brief(schedule(tree, costs_of((2, 3, 4, 5, 6)), math.inf)) == [(action, 0, 4)]


def test_sweeps_on_from_something_else_are_one():
    costs = costs_of((2, 3, 4, 5, 6), *[segment(known=n == 0) for n in range(4)])
    tree = step("push", 0, 4, step("push", 0, 3, step("push", 0, 2, step("known", 0, 1))))
    moves = schedule(tree, costs, math.inf)
    assert brief(moves) == [("known", 0, 1), ("push", 1, 4)]
    assert left_over(moves) == [(0, 4)]
    tree = step("pull", 0, 4, step("pull", 1, 4, step("multiply", 2, 4, step("forward", 2, 3), step("reverse", 3, 4))))
    moves = schedule(tree, costs, math.inf)
    assert brief(moves) == [("forward", 2, 3), ("reverse", 3, 4), ("multiply", 3, 3), ("pull", 0, 2)]
    assert left_over(moves) == [(0, 4)]


def test_sweeps_that_turn_are_two():
    costs = costs_of((2, 3, 4, 5, 6))
    tree = step("push", 0, 4, step("pull", 0, 2, step("forward", 1, 2)))
    moves = schedule(tree, costs, math.inf)
    assert brief(moves) == [("forward", 1, 2), ("pull", 0, 1), ("push", 2, 4)]
    assert left_over(moves) == [(0, 4)]
    # as many directions as the Jacobian has on that side
    assert [move.chunk for move in moves] == [3, 4, 2]


# directions at once


@pytest.mark.parametrize(("asked", "chunk"), [(1, 1), (7, 7), (100, 30)])
def test_chunks_as_asked_for(asked, chunk):
    (move,) = schedule(pushed(1, 2), costs_of((30, 4, 5), chunk=asked), math.inf)
    assert move.chunk == chunk
    assert move.seconds == math.ceil(30 / chunk) * 1.0 + 30 * 4.0


# bytes of a direction through the chain of widths 30, 4, 5: both ends and what is between
EACH = (30 + 5) * ITEM + 16


def test_chunks_that_stay_in_the_caches():
    (move,) = schedule(pushed(1, 2), costs_of((30, 4, 5), working_set=EACH * 10), math.inf)
    assert move.chunk == 10
    # however small the caches: a call costs more than what it moves
    (move,) = schedule(pushed(1, 2), costs_of((30, 4, 5), working_set=1), math.inf)
    assert move.chunk == 8


@pytest.mark.parametrize(
    ("limit", "chunk"), [(EACH, 1), (2 * EACH - 1, 1), (2 * EACH, 2), (EACH * 30, 30), (1 << 30, 30)]
)
def test_chunks_that_fit(limit, chunk):
    (move,) = schedule(pushed(1, 2), costs_of((30, 4, 5)), limit)
    assert move.chunk == chunk
    assert move.peak == EACH * chunk <= limit


def test_what_waits_takes_room():
    costs = costs_of((3, 2, 4))
    tree = step("multiply", 0, 2, step("reverse", 0, 1), step("reverse", 1, 2))
    right, left = 2 * 3 * ITEM, 4 * 2 * ITEM
    lower, upper = (3 + 2) * ITEM + 16, (2 + 4) * ITEM + 16
    # a byte short of a second direction through the upper half, while the lower half's Jacobian waits
    first, second, product = schedule(tree, costs, float(right + left + 2 * upper - 1))
    assert (first.chunk, first.peak) == (2, right + 2 * lower)
    assert (second.chunk, second.peak) == (1, right + left + upper)
    assert product.peak == right + left


def test_samples_multiply_bytes():
    tree, limit = pushed(1, 2), 1 << 20
    one, four = (schedule(tree, costs_of((30, 4, 5), samples=samples), limit)[0] for samples in (1, 4))
    assert (four.chunk, four.peak) == (one.chunk, 4 * one.peak)


# any chain


@st.composite
def chains(draw, working_set=None):
    count = draw(st.integers(1, 6))
    widths = draw(st.tuples(*[st.integers(1, 40)] * (count + 1)))
    numbers = st.integers(1, 30).map(float)
    segments = [
        segment(draw(st.booleans()), draw(numbers), draw(numbers), draw(numbers), ITEM * draw(numbers))
        for _ in range(count)
    ]
    size = draw(st.integers(1, 20_000)) if working_set is None else working_set
    return costs_of(widths, *segments, working_set=size)


def check(moves, costs, limit):
    assert left_over(moves) == [(0, costs.length)]
    assert peak(moves) <= limit
    for before, move in zip((None, *moves), moves, strict=False):
        assert move.seconds >= 0
        if move.action in ("known", "multiply"):
            assert move.chunk == 0
        else:
            adjoint = move.action in ("reverse", "pull")
            assert 1 <= move.chunk <= costs.width(move.end if adjoint else move.start)
        # what could have been one sweep is one, unless a limit keeps it from fitting
        if limit < math.inf:
            continue
        if move.action == "push":
            assert before.action not in ("push", "forward")
        if move.action == "pull":
            assert before.action not in ("pull", "reverse")


@quick
@given(chains(), st.one_of(st.just(math.inf), st.integers(0, 20_000)), st.sampled_from(["auto", FORWARD, REVERSE]))
def test_any_schedule_leaves_one_jacobian_and_fits(costs, limit, actions):
    found = solve(costs, limit) if actions == "auto" else solve(costs, limit, actions)
    if found is None:
        assert limit < math.inf
    else:
        check(schedule(found, costs, limit), costs, limit)


@quick
@given(chains(), st.integers(0, 20_000))
def test_any_product_leaves_one_jacobian_and_fits(costs, limit):
    for bound in (limit, math.inf):
        found = Table(costs, bound).mixed()
        if found is not None:
            moves = schedule(found, costs, bound)
            check(moves, costs, bound)
            assert moves[-1].action == "multiply"


@quick
@given(chains(working_set=1 << 40))
def test_moves_take_what_was_predicted(costs):
    found = solve(costs)
    assert seconds(schedule(found, costs, math.inf)) == pytest.approx(found.seconds, rel=1e-12)


@quick
@given(chains(working_set=1 << 40))
def test_moves_are_never_worse_than_those_of_a_pure_mode(costs):
    best, *pure = (seconds(schedule(solve(costs, actions=a), costs, math.inf)) for a in (ACTIONS, FORWARD, REVERSE))
    assert best <= min(pure) * (1 + 1e-12)


@quick
@given(chains(working_set=1 << 40), st.integers(100, 20_000))
def test_moves_within_a_limit_take_no_less_than_was_predicted(costs, limit):
    found = solve(costs, limit)
    if found is not None:
        # a factor that waits leaves less room for chunks than the other was weighed with
        assert seconds(schedule(found, costs, limit)) >= found.seconds * (1 - 1e-12)


def test_sweeps_that_are_made_one_still_fit():
    segments = [
        segment(known, forward, reverse, calls, room)
        for known, forward, reverse, calls, room in [
            (False, 13.0, 9.0, 10.0, 200.0),
            (False, 29.0, 27.0, 10.0, 240.0),
            (True, 4.0, 11.0, 22.0, 104.0),
            (False, 18.0, 21.0, 10.0, 168.0),
        ]
    ]
    costs, limit = costs_of((29, 12, 30, 11, 24), *segments), 5535
    moves = schedule(solve(costs, limit), costs, limit)
    assert seconds(moves) < math.inf
    check(moves, costs, limit)


def test_recomputing_holds_a_tape_only_in_its_turn():
    costs = costs_of((4, 4, 4), *[segment(tape=1000.0)] * 2)
    assert costs.tape == 2000.0
    assert costs.ends <= costs.tape
    direction, block = 4 * (8 * ITEM + 16), 4 * 4 * ITEM
    assert schedule(pushed(1, 2), costs, 1 << 20)[0].peak == direction
    again = costs.recomputing()
    assert schedule(pushed(1, 2), again, 1 << 20)[0].peak == direction + 2000
    first, second = schedule(step("push", 0, 2, step("reverse", 0, 1)), again, 1 << 20)
    assert first.peak == block + direction + 1000
    # to evaluate the second stretch, the first is passed again
    assert second.peak == block + direction + 2000


def test_sums():
    moves = schedule(
        step("multiply", 0, 2, step("reverse", 0, 1), step("forward", 1, 2)), costs_of((3, 1, 2)), math.inf
    )
    assert seconds(moves) == pytest.approx(sum(move.seconds for move in moves), rel=1e-12)
    assert peak(moves) == max(move.peak for move in moves)
    assert (seconds(()), peak(())) == (0, 0)


def test_moves_are_plain():
    moves = schedule(pushed(1, 2), costs_of((3, 1, 2)), math.inf)
    assert pickle.loads(pickle.dumps(moves)) == moves
    assert all(isinstance(value, (str, int, float)) for move in moves for value in dataclasses.astuple(move))
