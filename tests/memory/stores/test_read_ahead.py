"""What is brought back ahead of its use: in reverse order, within the window, and little that is not used."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchadx.memory.stores._read_ahead import Item, ReadAhead


class Shelf:
    """Items and what happens to them; checks the rules that hold at every moment."""

    def __init__(self, window):
        self.window = window
        self.items = []
        self.ahead = set()
        self.brought = []
        self.used = 0
        self.plan = ReadAhead(window)

    def bring(self, item):
        assert item in self.items
        assert item not in self.ahead
        self.ahead.add(item)
        self.brought.append(item)

    def let_go(self, item):
        self.ahead.remove(item)

    def put(self, nbytes):
        item = Item(nbytes)
        self.plan.append(item)
        self.items.append(item)
        return item

    def take(self, item):
        """Take an item; tell whether it was foreseen."""
        foreseen = item in self.ahead
        assert foreseen == item.ahead
        self.ahead.discard(item)
        self.plan.take(item)
        assert not item.ahead
        self.plan.advance(self.bring, self.let_go)
        self.check()
        return foreseen

    def drop(self, item):
        self.items.remove(item)
        self.ahead.discard(item)
        self.plan.remove(item)
        assert not item.ahead
        self.check()

    def check(self):
        assert {item for item in self.items if item.ahead} == self.ahead
        assert self.plan.nbytes == sum(item.nbytes for item in self.ahead) <= self.window
        assert list(self.plan) == self.items[::-1]


@given(
    window=st.integers(0, 40),
    steps=st.lists(st.tuples(st.sampled_from(["put", "take", "newest", "drop"]), st.integers(0, 1 << 20)), max_size=60),
)
@settings(max_examples=200, deadline=None)
def test_the_rules_hold_whatever_happens(window, steps):
    shelf = Shelf(window)
    for what, number in steps:
        if what == "put":
            shelf.put(number % 20)
        elif shelf.items:
            item = shelf.items[-1 if what == "newest" else number % len(shelf.items)]
            shelf.take(item)
            if what != "take":
                shelf.drop(item)


@given(sizes=st.lists(st.integers(0, 20), min_size=1, max_size=50), window=st.integers(20, 60), drops=st.booleans())
@settings(max_examples=100, deadline=None)
def test_in_reverse_order_all_but_the_first_are_foreseen_and_brought_once(sizes, window, drops):
    shelf = Shelf(window)
    items = [shelf.put(size) for size in sizes]
    for item in reversed(items):
        assert shelf.take(item) == (item is not items[-1])
        if drops:
            shelf.drop(item)
    assert shelf.brought == items[-2::-1]


def test_it_runs_further_ahead_the_more_it_foresaw():
    shelf = Shelf(1000)
    items = [shelf.put(1) for _ in range(200)]
    depths = []
    for item in reversed(items):
        shelf.take(item)
        depths.append(len(shelf.ahead))
    assert depths[:8] == [1, 2, 4, 8, 16, 32, 64, 128]


def test_the_window_is_filled_and_not_exceeded():
    shelf = Shelf(10)
    items = [shelf.put(3) for _ in range(20)]
    for item in items[:9:-1]:
        shelf.take(item)
    assert shelf.ahead == set(items[7:10])


def test_each_of_two_graphs_is_swept_in_either_order():
    for first, second in ((0, 1), (1, 0)):
        shelf = Shelf(5)
        graphs = [[shelf.put(1) for _ in range(10)] for _ in range(2)]
        for graph in (graphs[first], graphs[second]):
            foreseen = [shelf.take(item) for item in reversed(graph)]
            # what an earlier sweep brought of an older graph is of use, too
            assert foreseen[1:] == [True] * 9
            for item in graph:
                shelf.drop(item)


def test_a_second_backward_is_foreseen_like_the_first():
    shelf = Shelf(8)
    items = [shelf.put(2) for _ in range(10)]
    for _ in range(2):
        assert [shelf.take(item) for item in reversed(items)] == [False] + [True] * 9
    assert len(shelf.brought) == 18


def test_one_surprise_does_not_end_a_sweep():
    shelf = Shelf(6)
    items = [shelf.put(2) for _ in range(20)]
    foreseen = [shelf.take(items[number]) for number in (19, 18, 17, 3, 16, 15, 4, 14, 13)]
    assert foreseen == [False, True, True, False, True, True, False, True, True]


def test_a_second_surprise_in_a_row_starts_a_new_sweep_which_replaces_what_the_old_one_brought():
    shelf = Shelf(6)
    items = [shelf.put(2) for _ in range(20)]
    foreseen = [shelf.take(items[number]) for number in (19, 18, 17, 8, 7, 6, 5, 4)]
    assert foreseen == [False, True, True, False, False, True, True, True]
    assert shelf.ahead == set(items[1:4])


def test_what_an_earlier_sweep_brought_becomes_part_of_the_one_that_reaches_it():
    shelf = Shelf(4)
    items = [shelf.put(1) for _ in range(20)]
    foreseen = [shelf.take(items[number]) for number in (6, 5, 19, 7, 6, 5, 4, 3, 2, 1)]
    assert foreseen == [False, True, False, False, True, True, True, True, True, True]
    assert items[18] not in shelf.ahead


def test_a_new_forward_starts_a_new_sweep():
    shelf = Shelf(6)
    old = [shelf.put(2) for _ in range(9)]
    assert [shelf.take(item) for item in old[:5:-1]] == [False, True, True]
    new = [shelf.put(2) for _ in range(4)]
    assert [shelf.take(item) for item in reversed(new)] == [False, True, True, True]
    assert not [item for item in shelf.ahead if item in new]


@pytest.mark.parametrize("large", [0, 3, 8])
def test_what_exceeds_the_window_waits_until_it_is_asked_for_and_the_sweep_goes_on(large):
    shelf = Shelf(4)
    items = [shelf.put(5 if number == large else 1) for number in range(10)]
    foreseen = [shelf.take(item) for item in reversed(items)]
    assert [9 - number for number, seen in enumerate(foreseen) if not seen] == [9, large]


def test_after_what_exceeds_the_window_the_sweep_is_as_deep_as_before():
    shelf = Shelf(4)
    items = [shelf.put(5 if number == 10 else 1) for number in range(20)]
    for item in items[:10:-1]:
        shelf.take(item)
    assert not shelf.ahead
    shelf.take(items[10])
    assert shelf.ahead == set(items[6:10])


def test_another_order_brings_little_in_vain():
    rng = random.Random(0)
    shuffled = list(range(300))
    rng.shuffle(shuffled)
    for order, most in ((list(range(300)), 300), (shuffled, 600)):
        shelf = Shelf(1 << 20)
        items = [shelf.put(1) for _ in range(300)]
        for number in order:
            shelf.take(items[number])
        assert len(shelf.brought) <= most
