"""Memory of results: used again when nobody holds it, and never before."""

import threading

import pytest
import torch
from torch import nn

from torchadx.autodiff import plan_jacobian
from torchadx.autodiff._pages import Pages

CPU = torch.device("cpu")
LARGE = (1024, 512)


def test_memory_is_used_again_once_it_is_free():
    pages = Pages()
    first = pages.empty(LARGE, torch.float32, CPU).fill_(1)
    second = pages.empty(LARGE, torch.float32, CPU).fill_(2)
    assert first.data_ptr() != second.data_ptr()
    assert bool((first == 1).all())
    address = second.data_ptr()
    del second
    third = pages.empty(LARGE, torch.float32, CPU)
    assert third.data_ptr() == address


@pytest.mark.parametrize("hold", [lambda t: t[3:5], lambda t: t.detach(), lambda t: t.numpy(), lambda t: t.view(-1)])
def test_a_view_holds_it(hold):
    pages = Pages()
    view = hold(pages.empty(LARGE, torch.float32, CPU).fill_(1))
    other = pages.empty(LARGE, torch.float32, CPU).fill_(2)
    assert (torch.as_tensor(view) == 1).all()
    assert (other == 2).all()


@pytest.mark.parametrize(
    ("shape", "dtype"), [((3,), torch.float32), (LARGE, torch.float64), ((2, 600, 700), torch.half)]
)
def test_shapes_and_dtypes(shape, dtype):
    got = Pages().empty(shape, dtype, CPU)
    assert (got.shape, got.dtype, got.is_contiguous()) == (torch.Size(shape), dtype, True)


def test_results_of_a_plan_are_kept_apart():
    net = nn.Sequential(
        nn.Linear(600, 40), nn.Tanh(), nn.Linear(40, 8), nn.Tanh(), nn.Linear(8, 40), nn.Tanh(), nn.Linear(40, 500)
    ).requires_grad_(False)
    xs = torch.randn(3, 600)
    plan = plan_jacobian(net, xs[0], mode="mixed")
    assert plan.decision.moves[-1].action == "multiply"
    results = [plan(x) for x in xs]
    for x, result in zip(xs, results, strict=True):
        torch.testing.assert_close(result, torch.func.jacrev(net)(x))


def test_threads_do_not_share_a_result():
    net = nn.Sequential(nn.Linear(600, 4), nn.Tanh(), nn.Linear(4, 500)).requires_grad_(False)
    xs = torch.randn(4, 600)
    plan, wrong = plan_jacobian(net, xs[0], mode="mixed"), []

    def work(x):
        expected = torch.func.jacrev(net)(x)
        wrong.extend(1 for _ in range(10) if not torch.allclose(plan(x), expected, atol=1e-6))

    threads = [threading.Thread(target=work, args=(x,)) for x in xs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
