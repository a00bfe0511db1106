"""Pinned memory is cut without overlap, grows together again, is reused, and never exceeds its cap."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchadx.memory.stores._pool import ALIGNMENT, SlabPool

SLAB = 4096


def make(pool_bytes, pin=True):
    """A pool of plain memory, and the sizes of the slabs that it asked for."""
    asked = []

    def allocate(nbytes):
        asked.append(nbytes)
        return torch.zeros(nbytes, dtype=torch.uint8)

    return SlabPool(pool_bytes, SLAB, pin, allocate), asked


@given(
    cap=st.sampled_from([0, SLAB, 3 * SLAB, 16 * SLAB]),
    steps=st.lists(st.one_of(st.integers(1, 3 * SLAB), st.integers(1, 300), st.none()), max_size=60),
    seed=st.randoms(use_true_random=False),
)
@settings(max_examples=150, deadline=None)
def test_buffers_never_overlap_and_come_together_again(cap, steps, seed):
    pool, asked = make(cap)
    used = {}
    for mark, nbytes in enumerate(steps, 1):
        if nbytes is not None:
            buffer = pool.take(nbytes)
            assert buffer.memory.shape == (nbytes,)
            assert buffer.start % ALIGNMENT == 0
            buffer.memory.fill_(mark)
            used[mark] = buffer
        elif used:
            pool.give(used.pop(seed.choice(list(used))))
        assert all(buffer.memory.eq(mark).all() for mark, buffer in used.items())
        assert pool.pinned_bytes == sum(slab.size for slab in pool._slabs) <= cap
        assert pool.pageable_bytes == sum(b.memory.numel() for b in used.values() if b.slab is None)
        for slab in pool._slabs:
            assert slab.holes == sorted(slab.holes)
            assert all(one[1] < other[0] for one, other in zip(slab.holes, slab.holes[1:], strict=False))
    for buffer in used.values():
        pool.give(buffer)
    assert all(slab.unused for slab in pool._slabs)
    assert pool.pageable_bytes == 0
    assert all(size & (size - 1) == 0 for size in asked)


def test_slabs_are_reused_step_after_step():
    pool, asked = make(100 * SLAB)
    for _ in range(50):
        buffers = [pool.take(1000) for _ in range(12)]
        for buffer in buffers:
            pool.give(buffer)
    assert asked == [SLAB] * 3
    assert pool.pinned_bytes == 3 * SLAB


def test_the_smallest_hole_that_fits_is_used():
    pool, _ = make(SLAB)
    buffers = [pool.take(size) for size in (1024, 256, 512, 256)]
    pool.give(buffers[0])
    pool.give(buffers[2])
    assert pool.take(400).start == 1280
    assert pool.take(1000).start == 0


def test_what_is_larger_than_a_slab_gets_one_of_the_next_power_of_two():
    pool, asked = make(100 * SLAB)
    large = pool.take(SLAB + 1)
    assert asked == [2 * SLAB]
    small = pool.take(SLAB - ALIGNMENT)
    assert large.slab is small.slab


def test_above_the_cap_memory_is_pageable_and_counted():
    pool, asked = make(SLAB)
    first, second = pool.take(SLAB), pool.take(100)
    assert first.slab is not None
    assert second.slab is None
    assert (pool.pinned_bytes, pool.pageable_bytes) == (SLAB, 100)
    pool.give(first)
    assert pool.take(100).slab is not None
    pool.give(second)
    assert (pool.pageable_bytes, asked) == (0, [SLAB])


def test_unused_slabs_make_room_for_a_larger_one_but_not_in_vain():
    pool, asked = make(4 * SLAB)
    buffers = [pool.take(SLAB) for _ in range(4)]
    pool.give(buffers[0])
    assert pool.take(2 * SLAB).slab is None
    assert pool.pinned_bytes == 4 * SLAB
    pool.give(buffers[1])
    assert pool.take(2 * SLAB).slab is not None
    assert pool.pinned_bytes == sum(slab.size for slab in pool._slabs) == 4 * SLAB
    assert asked == [SLAB] * 4 + [2 * SLAB]


def test_without_pinning_there_are_no_slabs():
    pool, asked = make(100 * SLAB, pin=False)
    assert pool.take(100).slab is None
    assert (asked, pool.pinned_bytes, pool.pageable_bytes) == ([], 0, 100)


@pytest.mark.parametrize("slab_bytes", [0, 100, 3 * SLAB, -SLAB])
def test_slabs_are_powers_of_two(slab_bytes):
    with pytest.raises(ValueError, match=f"slab_bytes={slab_bytes}: expected a power of two, 256 at least"):
        SlabPool(1 << 20, slab_bytes)
