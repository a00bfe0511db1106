"""A wrapper in worker processes of a data loader, and in threads that serve, train and change weights at once."""

import copy
import threading

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from torchadx.inference import InferenceAware

from .checks import equal, lent, near, step
from .zoo import encoder, mlp


class Features(Dataset):
    """What a worker does with a wrapper: it serves features."""

    def __init__(self, wrapped):
        self.wrapped, self.inputs = wrapped, torch.linspace(-1, 1, 4 * 16 * 256).view(4, 16, 256)

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        with torch.inference_mode():
            return self.wrapped(self.inputs[index]).tolist()


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_of_a_data_loader(start):
    wrapped = InferenceAware(nn.Sequential(mlp(), nn.ReLU())).eval()
    dataset = Features(wrapped)
    expected = [dataset[index] for index in range(4)]  # prepares weights here, before the workers start
    loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context=start, timeout=60)
    near(torch.tensor(list(loader)), torch.tensor(expected))
    near(torch.tensor([dataset[index] for index in range(4)]), torch.tensor(expected))


def in_threads(*works):
    """Run each work in a thread of its own, all started together; raise the first error."""
    barrier, errors = threading.Barrier(len(works)), []

    def run(work):
        barrier.wait()
        try:
            work()
        except BaseException as error:  # raised again by the caller
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("name", ["mlp", "encoder layer"])
def test_threads_call_at_once(name):
    module = {"mlp": mlp, "encoder layer": encoder("relu", False, True)}[name]().eval()
    wrapped, inputs = InferenceAware(module, cache_bytes="600 KiB"), [torch.randn(4, 5, 256) for _ in range(4)]
    expected = [module(x).detach() for x in inputs]

    def serve(index):
        def work():
            for _ in range(20):
                with torch.inference_mode():
                    near(wrapped(inputs[index]).clone(), expected[index])

        return work

    in_threads(*map(serve, range(4)))
    assert lent(module) == set()


def test_threads_call_while_weights_are_refreshed():
    """The weight is one of two at any time, so every result is one of two as well."""
    wrapped, x = InferenceAware(nn.Linear(256, 512)).eval(), torch.randn(16, 256)
    weights = [torch.randn(512, 256) / 8, torch.randn(512, 256) / 8]
    bias, stop, served = wrapped.module.bias.detach(), threading.Event(), []
    wrapped.module.weight.data = weights[0]
    allowed = [nn.functional.linear(x, weight, bias) for weight in weights]

    def serve():
        try:
            while not stop.is_set():
                with torch.inference_mode():
                    y = wrapped(x).clone()
                assert any(torch.allclose(y, one, atol=1e-5) for one in allowed)
                served.append(1)
        finally:
            stop.set()

    def refresh():
        try:
            while len(served) < 200 and not stop.is_set():
                for weight in weights:
                    wrapped.module.weight.data = weight
                wrapped.release()
        finally:
            stop.set()

    in_threads(serve, serve, refresh)
    with torch.inference_mode():
        near(wrapped(x), allowed[1])


def test_one_thread_trains_while_another_serves():
    wrapped, x = InferenceAware(mlp()), torch.randn(16, 256)
    expected, stop = step(copy.deepcopy(wrapped.module), (x,), {})[1:], threading.Event()
    plain = wrapped.module(x).detach()

    def train(module):
        def work():
            for _ in range(60):
                y = module(x)
                assert y.requires_grad
                found = torch.autograd.grad(y.square().sum(), list(module.parameters()))
                equal(list(found), list(expected[1].values()))

        return work

    def serve():
        while not stop.is_set():
            with torch.inference_mode():
                near(wrapped(x).clone(), plain)

    def finish():
        try:
            in_threads(train(wrapped.module), train(wrapped))
        finally:
            stop.set()

    in_threads(serve, finish)
    assert lent(wrapped.module) == set()
