"""The solver of plans, against trying everything."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchadx.memory import _plan
from torchadx.memory._plan import Item, Option

SIZES = st.integers(0, 60)
TIMES = st.integers(0, 50)


@st.composite
def items(draw, count, overlapping, lossy=True):
    """Tensors with distinct ticks, each with at least the option to keep it."""
    total = draw(st.integers(1, count))
    ticks = draw(st.permutations(range(2 * total))) if overlapping else list(range(2 * total))
    made = []
    for index in range(total):
        nbytes = draw(st.integers(1, 60))
        smaller = st.builds(Option, st.integers(0, nbytes), TIMES, st.booleans() if lossy else st.just(False))
        options = (Option(nbytes, 0), *draw(st.lists(smaller, max_size=3)))
        born, died = sorted(ticks[2 * index : 2 * index + 2]) if overlapping else (index, None)
        made.append(Item(nbytes, options, born, died if draw(st.booleans()) else None))
    return made


def highest(tensors, chosen):
    """Most bytes at any tick, looked up tick by tick."""
    ticks = range(1 + max(max(t.born, t.died or 0) for t in tensors))
    return max(
        sum(
            t.options[c].nbytes
            for t, c in zip(tensors, chosen, strict=True)
            if t.born <= tick and (t.died is None or tick < t.died)
        )
        for tick in ticks
    )


def cost(tensors, chosen):
    """Bytes made lossy, then nanoseconds."""
    picked = [(t.nbytes, t.options[c]) for t, c in zip(tensors, chosen, strict=True)]
    return sum(nbytes for nbytes, o in picked if o.lossy), sum(o.nanoseconds for _, o in picked)


def best(tensors, limit):
    every = itertools.product(*(range(len(t.options)) for t in tensors))
    return min((cost(tensors, chosen) for chosen in every if highest(tensors, chosen) <= limit), default=None)


@given(items(5, overlapping=False), st.integers(0, 250))
def test_a_single_moment_is_solved_to_the_optimum(tensors, limit):
    chosen = _plan.solve(tensors, limit)
    if chosen is None:
        assert best(tensors, limit) is None
    else:
        assert highest(tensors, chosen) <= limit
        assert cost(tensors, chosen) == best(tensors, limit)


@given(st.lists(items(3, overlapping=False), min_size=2, max_size=2), st.integers(0, 150))
def test_moments_without_a_tensor_in_common_are_solved_to_the_optimum(groups, limit):
    first, second = ([Item(t.nbytes, t.options, 10 * n + t.born, 10 * n + 9) for t in g] for n, g in enumerate(groups))
    chosen = _plan.solve(first + second, limit)
    assert (chosen and cost(first + second, chosen)) == best(first + second, limit)


@given(items(5, overlapping=True), st.integers(0, 250))
def test_overlapping_moments_fit_whenever_that_is_possible(tensors, limit):
    chosen = _plan.solve(tensors, limit)
    if chosen is None:
        assert best(tensors, limit) is None
    else:
        assert highest(tensors, chosen) <= limit
        # one that is lossy needs to be: lossless ones alone did not fit
        assert (cost(tensors, chosen)[0] > 0) == (best(tensors, limit)[0] > 0)


@given(items(5, overlapping=True, lossy=False), st.integers(0, 250))
def test_overlapping_moments_miss_the_optimum_by_no_more_than_a_step_a_moment(tensors, limit):
    chosen = _plan.solve(tensors, limit)
    if chosen is not None:
        moments = len(_plan._moments(tensors))
        step = max(option.nanoseconds for tensor in tensors for option in tensor.options)
        assert cost(tensors, chosen)[1] <= best(tensors, limit)[1] + moments * step


@pytest.mark.parametrize("overlapping", [False, True])
@given(data=st.data())
def test_a_larger_limit_never_costs_more(overlapping, data):
    tensors = data.draw(items(8, overlapping))
    smaller = data.draw(st.integers(0, 400))
    chosen = _plan.solve(tensors, smaller)
    if chosen is not None:
        roomier = _plan.solve(tensors, smaller + data.draw(st.integers(0, 100)))
        assert cost(tensors, roomier) <= cost(tensors, chosen)


@settings(max_examples=20)
@given(items(12, overlapping=False), st.data())
def test_thinned_frontiers_and_descents_stay_within_the_limit_and_monotone(tensors, data):
    limits = sorted(data.draw(st.lists(st.integers(0, 700), min_size=2, max_size=4)))
    for states, knapsack in ((4, 256), (4096, 1)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_plan, "MAX_STATES", states)
            patch.setattr(_plan, "MAX_KNAPSACK", knapsack)
            plans = [_plan.solve(tensors, limit) for limit in limits]
        solved = [(limit, plan) for limit, plan in zip(limits, plans, strict=True) if plan is not None]
        assert all(highest(tensors, plan) <= limit for limit, plan in solved)
        costs = [cost(tensors, plan) for _, plan in solved]
        assert costs == sorted(costs, reverse=True)


@given(items(8, overlapping=False), st.integers(0, 480))
def test_a_thinned_frontier_costs_no_more_than_a_range_a_tensor_less_of_room(tensors, limit):
    coarse = 16
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_plan, "MAX_STATES", coarse)
        thinned = _plan.solve(tensors, limit)
    lost = len(tensors) * -(-(1 + sum(tensor.nbytes for tensor in tensors)) // coarse)
    exact = _plan.solve(tensors, limit - lost)
    if exact is not None:
        assert cost(tensors, thinned) <= cost(tensors, exact)


@given(items(6, overlapping=True))
def test_the_floor_is_the_least_limit_that_can_be_met(tensors):
    least = _plan.floor(tensors)
    assert _plan.solve(tensors, least) is not None
    assert least == 0 or _plan.solve(tensors, least - 1) is None


@given(items(6, overlapping=True), st.lists(SIZES, min_size=6, max_size=6))
def test_the_peak_is_the_highest_moment(tensors, sizes):
    held = [Item(size, (Option(size, 0),), t.born, t.died) for t, size in zip(tensors, sizes, strict=False)]
    assert _plan.peak(tensors, sizes[: len(tensors)]) == highest(held, [0] * len(held))


def test_nothing_to_plan():
    assert _plan.solve([], 0) == []
    assert _plan.peak([], []) == 0


def test_everything_is_kept_where_there_is_room():
    tensors = [Item(8, (Option(8, 0), Option(1, 5)), tick) for tick in range(3)]
    assert _plan.solve(tensors, 24) == [0, 0, 0]
    assert sorted(_plan.solve(tensors, 23)) == [0, 0, 1]


def test_slow_but_lossless_comes_before_fast_but_lossy():
    tensor = Item(8, (Option(8, 0), Option(4, 1000), Option(2, 1, lossy=True)), 0)
    assert [_plan.solve([tensor], limit) for limit in (8, 4, 3)] == [[0], [1], [2]]


def test_as_few_bytes_as_possible_are_made_lossy():
    large, small = (Item(n, (Option(n, 0), Option(n // 4, time, lossy=True)), n) for n, time in ((80, 1), (40, 9)))
    # either alone would do; the small one is the slower one
    assert _plan.solve([large, small], 90) == [0, 1]
    assert _plan.solve([large, small], 89) == [1, 0]


def test_a_tensor_that_died_makes_room():
    keep_or_move = (Option(10, 0), Option(0, 7))
    tensors = [Item(10, keep_or_move, 0, 1), Item(10, keep_or_move, 2, 3), Item(10, keep_or_move, 4)]
    assert _plan.solve(tensors, 10) == [0, 0, 0]


def test_steps_that_later_ones_made_needless_are_undone():
    cheap = Item(10, (Option(10, 0), Option(8, 1)), 0, 2)
    shared = Item(24, (Option(24, 0), Option(5, 30)), 1, 4)
    fixed = [Item(9, (Option(9, 0),), 3), Item(23, (Option(23, 0),), 5)]
    # 34, 33 and 32 bytes: the cheap one comes down first, and then the shared one, which would have done alone
    assert _plan.solve([cheap, shared, *fixed], 32) == [0, 1, 0, 0]
