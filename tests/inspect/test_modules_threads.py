"""``ModuleWatch`` and threads: numbers are of one thread, ranges of all; and what is compiled goes by its own names."""

import threading

import torch
from torch import nn

from torchadx.inspect._modules import RANGE, ModuleWatch
from torchadx.inspect._trace._trace import Recording


def in_a_thread(run):
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


def test_forwards_of_other_threads_own_no_node_of_this_one():
    model, x = nn.Linear(2, 2), torch.randn(1, 2)
    with ModuleWatch(model) as watch:
        in_a_thread(lambda: [model(x) for _ in range(50)])
        y = torch.randn(2, requires_grad=True).exp()
    assert watch.owner(y.grad_fn._sequence_nr()) is None


def test_ranges_are_around_forwards_of_all_threads():
    model, x = nn.Sequential(nn.Linear(2, 2)), torch.randn(1, 2)
    with Recording(), ModuleWatch(model, ranges=True) as watch:
        in_a_thread(lambda: model(x))
        model(x)
    paths = [watch.path(run) for run in range(4)]
    assert paths == ["", "0", "", "0"]
    assert watch.module() is None


def test_a_thread_does_not_nest_in_another():
    inner, x = nn.Linear(2, 2), torch.randn(1, 2)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            in_a_thread(lambda: other(x))
            return self.inner(x)

    other, model = nn.Tanh(), Outer()
    with Recording() as recording, ModuleWatch(model, ranges=True) as watch:
        model(x)
    names = {watch.path(int(span.name.removeprefix(RANGE))) for span in recording.trace.ranges}
    assert names == {"", "inner"}  # the profiler records this thread alone; the other's run is no part of the model's
    assert "Tanh" in {watch.path(run) for run in range(3)}


def test_a_compiled_module_goes_by_its_own_names():
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    with ModuleWatch(torch.compile(model, backend="eager")) as watch:
        assert watch.classes() == {"": "Sequential", "0": "Linear", "1": "Tanh"}
        assert set(watch.parameters()) == {"0.weight", "0.bias"}
