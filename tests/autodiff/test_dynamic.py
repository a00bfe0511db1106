"""The dynamic programme against every bracket tree there is, and against a published instance."""

import dataclasses
import itertools
import math
import random

import pytest
from chains_by_hand import Written, cheapest, every_tree, written
from hypothesis import given, settings
from hypothesis import strategies as st

from torchadx.autodiff._dynamic import ACTIONS, Step, Table, solve

FORWARD = {"forward", "push"}
REVERSE = {"reverse", "pull"}
quick = settings(deadline=None, max_examples=40, derandomize=True)
limits = st.integers(0, 150)


def priced(costs, step, limit=math.inf):
    """Seconds and peak of a solution, added up anew from its steps."""
    parts = [priced(costs, part, limit) for part in step.parts]
    blocks = [costs.block(part.start, part.end) for part in step.parts]
    own, seconds = costs.block(step.start, step.end), sum(part[0] for part in parts)
    if step.action == "known":
        return costs.known(step.start), own
    if step.action == "multiply":
        right, left = step.parts
        assert (right.start, right.end, left.end) == (step.start, left.start, step.end)
        seconds += costs.multiply(costs.width(step.end), costs.width(left.start), costs.width(step.start))
        return seconds, max(parts[0][1], blocks[0] + parts[1][1], sum(blocks) + own)
    adjoint = step.action in ("reverse", "pull")
    first, last = step.start, step.end
    if step.action == "push":
        assert step.parts[0].start == first
        first = step.parts[0].end
    if step.action == "pull":
        assert step.parts[0].end == last
        last = step.parts[0].start
    assert bool(step.parts) == (step.action in ("push", "pull"))
    count = costs.width(step.end if adjoint else step.start)
    seconds += costs.sweep(first, last, count, adjoint, not step.parts, limit - own - sum(blocks))
    return seconds, max(own + sum(blocks) + costs.room(first, last, adjoint), *[part[1] for part in parts], 0)


def check(costs, limit=math.inf, actions=ACTIONS):
    """The solution costs what the cheapest tree does, fits, and is what it says; return its seconds."""
    best = cheapest(every_tree(costs, limit, actions), limit)
    step = solve(costs, limit, actions)
    if best is None:
        assert step is None
        return math.inf
    assert step.seconds == best
    assert (step.start, step.end) == (0, costs.length)
    assert {one.action for one in step.walk()} <= set(actions)
    seconds, peak = priced(costs, step, limit)
    assert seconds == best
    if limit < math.inf:
        assert step.peak == peak <= limit
    return best


def random_chain(length, seed):
    pick = random.Random(seed)

    def numbers(count, low, high):
        return tuple(pick.randint(low, high) for _ in range(count))

    return Written(
        widths=numbers(length + 1, 1, 8),
        tangent=numbers(length, 1, 20),
        adjoint=numbers(length, 1, 20),
        free=tuple(pick.choice((None, None, 0, 3)) for _ in range(length)),
        calls=numbers(length, 0, 5),
        rooms=numbers(length, 1, 6),
    )


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("seed", range(6))
def test_no_tree_is_cheaper(length, seed):
    assert check(random_chain(length, seed)) > 0 or length == 1


def test_no_tree_of_six_segments_is_cheaper():
    # a quarter of a million trees
    assert check(random_chain(6, "six")) > 0


@pytest.mark.parametrize("limit", [15, 40, 70, 110])
@pytest.mark.parametrize("length", [2, 4, 5])
def test_no_tree_that_fits_is_cheaper(length, limit):
    assert check(random_chain(length, f"{length} limited"), limit) > 0


@quick
@given(written())
def test_any_chain(costs):
    assert check(costs) >= 0


@quick
@given(written(limited=True), limits)
def test_any_chain_with_a_limit(costs, limit):
    assert check(costs, limit) >= 0


@quick
@given(written(longest=4, limited=True), limits, st.sets(st.sampled_from(["known", "forward", "reverse", "multiply"])))
def test_any_chain_with_some_actions(costs, limit, actions):
    # moving through several segments is moving through one after the other
    actions |= {more for action, more in (("forward", "push"), ("reverse", "pull")) if action in actions}
    assert check(costs, limit, actions) >= 0
    assert check(costs, math.inf, actions) >= 0


@quick
@given(written())
def test_pure_modes_are_sums(costs):
    plain = dataclasses.replace(costs, head=(), tail=(), calls=())
    forward, reverse = solve(plain, actions=FORWARD), solve(plain, actions=REVERSE)
    assert forward.seconds == plain.widths[0] * sum(plain.tangent)
    assert reverse.seconds == plain.widths[-1] * sum(plain.adjoint)
    assert [step.action for step in forward.walk()] == ["forward"] + ["push"] * (plain.length - 1)
    assert [step.action for step in reverse.walk()] == ["reverse"] + ["pull"] * (plain.length - 1)


@quick
@given(written(limited=True), st.one_of(st.just(math.inf), limits))
def test_never_worse_than_either_pure_mode(costs, limit):
    best = solve(costs, limit)
    for actions in (FORWARD, REVERSE, FORWARD | {"known"}, REVERSE | {"known"}):
        pure = solve(costs, limit, actions)
        assert pure is None or best.seconds <= pure.seconds


@quick
@given(written(limited=True), limits, st.integers(0, 60))
def test_more_room_never_hurts(costs, limit, more):
    tight, loose, free = solve(costs, limit), solve(costs, limit + more), solve(costs)
    if tight is not None:
        assert free.seconds <= loose.seconds <= tight.seconds
        assert tight.peak <= limit
    # whatever takes no room fits into any room
    assert solve(costs, 1 << 62).seconds == free.seconds


@quick
@given(written(limited=True), st.one_of(st.just(math.inf), limits), st.data())
def test_a_known_segment_never_hurts(costs, limit, data):
    free = list(costs.free)
    free[data.draw(st.integers(0, costs.length - 1))] = 0
    before, after = solve(costs, limit), solve(dataclasses.replace(costs, free=tuple(free)), limit)
    assert before is None or after.seconds <= before.seconds


@quick
@given(written(longest=4, limited=True), st.one_of(st.just(math.inf), limits))
def test_mixed_ends_with_the_cheapest_product(costs, limit):
    products = [tree for tree in every_tree(costs, limit) if tree[2] == "multiply"]
    best, step = cheapest(products, limit), Table(costs, limit).mixed()
    assert (None if step is None else step.seconds) == best
    assert step is None or step.action == "multiply"


@quick
@given(written(longest=4, limited=True), limits)
def test_what_is_kept_is_beaten_by_nothing(costs, limit):
    kept = Table(costs, limit).best[0, costs.length]
    trees = [(seconds, peak) for seconds, peak, _ in every_tree(costs, limit) if peak <= limit and seconds < math.inf]
    undominated = {
        tree for tree in trees if not any(a <= tree[0] and b <= tree[1] and (a, b) != tree for a, b in trees)
    }
    assert {(step.seconds, step.peak) for step in kept} == undominated


def test_nothing_fits():
    costs = Written((3, 1, 3), (1, 1), (1, 1), rooms=(4, 4))
    assert solve(costs, 3) is None
    # a direction fits at 4; what stands between two sweeps does not
    assert [step.action for step in solve(costs, 4).walk()] == ["forward"]
    assert Table(costs, 4).mixed() is None
    assert solve(costs, 9).action in ("push", "pull", "multiply")


def test_a_bottleneck_is_where_the_product_is():
    edges = 10_000, 200, 200, 10_000
    step = solve(Written((100, 100, 2, 100, 100), edges, edges))
    assert step.action == "multiply"
    assert [(one.action, one.start, one.end) for one in step.walk()] == [
        ("reverse", 1, 2),
        ("pull", 0, 2),
        ("forward", 2, 3),
        ("push", 2, 4),
        ("multiply", 0, 4),
    ]
    assert step.seconds == 2 * sum(edges) + 100 * 2 * 100


def test_walking_comes_to_parts_first():
    right, left = Step("known", 0, 1, (), 0, 0), Step("forward", 1, 2, (), 1, 0)
    step = Step("multiply", 0, 2, (right, left), 2, 0)
    assert list(step.walk()) == [right, left, step]


# The example in the README of github.com/STCE-at-RWTH/ADMission: three dense elemental Jacobians of at most three rows
# and columns; optimal 56, tangent 150, adjoint 100 fused multiply-adds. The numbers are the published ones. The
# dimensions are reconstructed: with tangents and adjoints at one fused multiply-add for each edge of the tapes, only 3
# inputs, 2 outputs, 50 edges and a place of width 1 between give these numbers.


@pytest.mark.parametrize(
    ("widths", "edges"),
    [
        ((3, 1, 3, 2), (12, 20, 18)),
        ((3, 3, 1, 2), (20, 18, 12)),
        ((3, 1, 1, 2), (30, 5, 15)),
        ((3, 2, 1, 2), (9, 9, 32)),
    ],
)
def test_numbers_of_admission(widths, edges):
    costs = Written(widths, edges, edges)
    assert solve(costs, actions=FORWARD).seconds == 150
    assert solve(costs, actions=REVERSE).seconds == 100
    assert check(costs) == 56


def test_admission_needs_a_place_of_width_one():
    for widths in itertools.product((3,), (2, 3), (2, 3), (2,)):
        for first, second in itertools.product(range(1, 49), repeat=2):
            if first + second < 50:
                edges = first, second, 50 - first - second
                dense = all(n * m <= e for n, m, e in zip(widths, widths[1:], edges, strict=False))
                assert not dense or solve(Written(widths, edges, edges)).seconds != 56
