"""The trace of a recording: who ran when, in what order memory came and went, and which interval is innermost."""

import dataclasses
import random

import pytest
import torch

from torchadx.inspect._trace import _trace
from torchadx.inspect._trace._nest import Nest
from torchadx.inspect._trace._trace import Recording, record
from torchadx.ops import sequence_number


@dataclasses.dataclass(frozen=True)
class Interval:
    start: float
    end: float
    thread: int = 0


@pytest.fixture(scope="module")
def recorded():
    """A trace, and the sequence numbers of the graph that was walked in it."""
    weight = torch.ones(4, 3, requires_grad=True)
    numbers = {}

    def run():
        with torch.profiler.record_function("outer"), torch.profiler.record_function("inner"):
            product = torch.ones(5, 4) @ weight
        loss = product.relu().sum()
        node = loss.grad_fn
        while node.next_functions and node.name() != "MmBackward0":
            numbers[node.name()] = sequence_number(node)
            node = node.next_functions[0][0]
        numbers[node.name()] = sequence_number(node)
        loss.backward()

    return record(run), numbers


def random_nest(generator, start, end, depth):
    """Intervals with whole numbers as bounds, each inside of the last or apart."""
    yield Interval(start, end)
    while depth and end - start > 3:
        middle = generator.randint(start, end)
        inner = generator.randint(middle, end)
        yield from random_nest(generator, middle, inner, depth - 1)
        start = inner


@pytest.mark.parametrize("seed", range(20))
def test_the_innermost_interval_is_the_shortest_that_holds_the_time(seed):
    generator = random.Random(seed)
    intervals = list(random_nest(generator, 0, 60, 4))
    nest = Nest(intervals)
    for time in [half / 2 for half in range(-2, 124)]:
        holding = [one for one in intervals if one.start <= time < one.end]
        found = nest.at(0, time)
        if not holding:
            assert found is None
        else:
            assert found.end - found.start == min(one.end - one.start for one in holding)
            assert found in holding
    assert nest.at(1, 5.0) is None


def test_self_times_sum_to_the_outermost_durations():
    nest = Nest([Interval(0, 10), Interval(1, 4), Interval(2, 3), Interval(4, 8), Interval(20, 25), Interval(1, 9, 7)])
    assert sum(nest.self_times()) == 10 + 5 + 8
    assert dict(zip(nest.items, nest.self_times(), strict=True))[Interval(0, 10)] == 3


def test_rounding_neither_nests_neighbours_nor_parts_the_nested():
    outer, first, second = Interval(0, 10), Interval(1, 4.001), Interval(4, 10.002)
    nest = Nest([second, outer, first])
    assert nest.items == [outer, first, second]
    assert nest.parents == [-1, 0, 0]
    assert nest.ends == [10, 4, 10]


def test_nodes_have_the_numbers_that_autograd_gave_them(recorded):
    trace, numbers = recorded
    found = {node.name: node.sequence for node in trace.nodes if node.name != "AccumulateGrad"}
    assert found == numbers
    assert {node.forward_thread for node in trace.nodes} == {trace.thread}


def test_accumulating_a_gradient_goes_by_the_node_that_made_it(recorded):
    trace, numbers = recorded
    (accumulate,) = (node for node in trace.nodes if node.name == "AccumulateGrad")
    assert accumulate.sequence == numbers["MmBackward0"]


def test_an_operator_has_the_number_of_the_node_it_makes(recorded):
    trace, numbers = recorded
    assert next(op.sequence for op in trace.ops if op.name == "aten::mm") == numbers["MmBackward0"]
    assert all(op.external is not None for op in trace.ops)


def test_ranges_and_nodes_are_found_by_time(recorded):
    trace, _ = recorded
    first = next(op for op in trace.ops if op.name == "aten::mm")
    assert trace.range_at(first.thread, first.start).name == "inner"
    assert trace.node_at(first.thread, first.start) is None
    product = [op for op in trace.ops if op.name == "aten::mm"][-1]
    assert trace.node_at(product.thread, product.start).name == "MmBackward0"
    assert trace.range_at(product.thread, product.start) is None
    assert [span.name for span in trace.ranges] == ["outer", "inner"]


def test_times_count_from_the_beginning_of_the_recording(recorded):
    trace, _ = recorded
    assert all(0 <= item.start <= item.end <= trace.end for item in (*trace.ops, *trace.ranges, *trace.nodes))


def test_totals_are_the_running_sum_of_what_the_allocator_did(recorded):
    trace, _ = recorded
    # torch goes on counting where a recording before this one ended
    total = trace.memory[0].total - trace.memory[0].bytes
    for event in trace.memory:
        total += event.bytes
        assert (event.total, event.device) == (total, "cpu")
    assert [event.time for event in trace.memory] == sorted(event.time for event in trace.memory)
    product = next(op for op in trace.ops if op.name == "aten::mm")
    inside = [event.bytes for event in trace.memory if product.start <= event.time < product.end]
    assert 5 * 3 * 4 in inside


def test_a_recording_survives_an_error_of_the_code():
    def fails():
        torch.ones(3)
        raise ZeroDivisionError

    recording = Recording()
    with pytest.raises(ZeroDivisionError), recording:
        fails()
    assert "aten::ones" in {op.name for op in recording.trace.ops}


def test_a_recording_inside_of_another_is_refused_and_does_no_harm():
    with Recording() as outer:
        with pytest.raises(RuntimeError, match="cannot run inside of each other"), Recording():
            pass
        torch.ones(3)
    assert "aten::ones" in {op.name for op in outer.trace.ops}


def test_another_profiler_that_takes_over_is_named():
    def run():
        with torch.profiler.profile():
            pass
        torch.ones(3)

    with pytest.raises(RuntimeError, match=r"another torch\.profiler ran"):
        record(run)


def test_kernels_are_read_with_the_launch_that_began_them():
    def span(cat, name, ts, dur, tid, **args):
        return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "tid": tid, "args": args}

    trace = _trace.read(
        [
            span("user_annotation", _trace.RECORDING, 100.0, 50.0, 1),
            span("cuda_runtime", "cudaLaunchKernel", 110.0, 2.0, 1, correlation=7),
            span("kernel", "gemm", 130.0, 9.0, 20, correlation=7, device=1),
            span("gpu_memset", "Memset", 120.0, 1.0, 20, device=0),
        ]
    )
    assert trace.kernels == (
        _trace.Kernel("Memset", 20.0, 21.0, "cuda:0", None, None),
        _trace.Kernel("gemm", 30.0, 39.0, "cuda:1", 10.0, 1),
    )
