"""What PyTorch itself does with tensors, weights and modes of inference: a failure says that PyTorch has changed."""

import threading

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from torch import nn

SAVED = "Inference tensors cannot be saved for backward"


@pytest.fixture
def linear():
    return nn.Linear(4, 2, dtype=torch.float64)


@pytest.fixture
def born():
    """A network whose parameters and buffers are inference tensors."""
    with torch.inference_mode():
        return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


# inference tensors in training


def test_an_inference_input(born):
    with torch.inference_mode():
        x = torch.randn(3, 4)
    for module in (nn.Linear(4, 2), nn.BatchNorm1d(4)):
        with pytest.raises(RuntimeError, match=SAVED):
            module(x)
    assert not nn.Linear(4, 2).requires_grad_(False)(x).requires_grad, "nothing to save: no complaint"
    for wrong, message in (
        (lambda: x.add_(1), "Inplace update to inference tensor"),
        (lambda: x.requires_grad_(), "Setting requires_grad=True on inference tensor"),
        (lambda: nn.Parameter(x), "Setting requires_grad=True on inference tensor"),
        (lambda: x._version, "do not track version counter"),
    ):
        with pytest.raises(RuntimeError, match=message):
            wrong()
    assert not x.clone().is_inference()
    assert x.detach().is_inference()
    assert x[0].is_inference()


def test_an_output_of_inference_mode_in_training():
    first, second = nn.Linear(4, 4), nn.Linear(4, 2)
    with torch.inference_mode():
        hidden = first(torch.randn(3, 4))
    with pytest.raises(RuntimeError, match=SAVED):
        second(hidden)
    with torch.no_grad():
        hidden = first(torch.randn(3, 4))
    assert second(hidden).requires_grad


def test_inference_parameters(born):
    x = torch.randn(3, 4)
    assert all(p.is_inference() and p.requires_grad for p in born.parameters())
    with pytest.raises(RuntimeError, match=SAVED):
        born[3](x.requires_grad_())
    first = born[0]
    first(x.detach()).sum().backward()
    assert first.weight.grad is None, "silently no gradient"


def test_inference_buffers(born):
    fresh = nn.BatchNorm1d(4)
    fresh.running_mean = born[1].running_mean
    fresh.running_var = born[1].running_var
    with pytest.raises(RuntimeError, match=SAVED):
        fresh(torch.randn(3, 4))
    with pytest.raises(RuntimeError, match=SAVED):
        fresh.eval()(torch.randn(3, 4, requires_grad=True))
    with pytest.raises(RuntimeError, match="Inplace update to inference tensor outside InferenceMode"):
        born[1](torch.randn(3, 4))  # counts its batches first


def test_data_swap_does_not_mend_an_inference_parameter(born):
    weight = born[3].weight
    weight.data = weight.data.clone()
    assert not weight.is_inference()
    with pytest.raises(RuntimeError, match="do not track version counter"):
        assert weight._version
    with pytest.raises(RuntimeError, match="do not track version counter"):
        born[3](torch.randn(3, 4, requires_grad=True))


def test_a_view_of_a_normal_tensor_is_normal(linear):
    with torch.inference_mode():
        view, computed = linear.weight.view(8), linear.weight * 1
        assert not linear.weight.data.is_inference()
    assert not view.is_inference()
    assert view.requires_grad
    assert computed.is_inference()
    assert not computed.requires_grad


# modules in train mode inside inference mode


def test_dropout_is_active():
    with torch.inference_mode():
        got = nn.Dropout(0.5)(torch.ones(1000))
        assert not nn.Dropout(0.5).eval()(torch.ones(1000)).ne(1).any()
    assert 300 < got.eq(0).sum() < 700


def test_batch_norm_updates():
    norm, x = nn.BatchNorm1d(4), torch.randn(8, 4) + 5
    with torch.inference_mode():
        got = norm(x)
    torch.testing.assert_close(norm.running_mean, 0.1 * x.mean(0))
    assert norm.num_batches_tracked == 1
    assert not norm.running_mean.is_inference()
    assert (norm.eval()(x) - got).abs().max() > 1


# how a prepared weight gets stale


def test_what_counts_versions():
    w = nn.Linear(4, 4).weight
    before, place = w._version, w.data_ptr()
    with torch.inference_mode():
        w.add_(1)
    assert w._version == before + 1
    with torch.no_grad():
        w.add_(1)
    assert w._version == before + 2
    w.data.add_(1)
    assert w._version == before + 2, "written through .data: not counted"
    w.data = w.data.clone()
    assert w._version == before + 2, "swapped: not counted, but elsewhere"
    assert w.data_ptr() != place
    w.grad = torch.ones_like(w)
    torch.optim.SGD([w], lr=0.1).step()
    assert w._version == before + 3


def test_sharing_memory_moves_without_a_version():
    w = torch.randn(4)
    before, place = w._version, w.data_ptr()
    w.share_memory_()
    assert w._version == before
    assert w.data_ptr() != place


# modes are of a thread; of a generator only when decorated


def test_modes_are_thread_local_and_tangents_are_not():
    seen = {}

    def look():
        seen.update(
            inference=torch.is_inference_mode_enabled(),
            grad=torch.is_grad_enabled(),
            tangent=fwAD.unpack_dual(dual).tangent,
        )

    with fwAD.dual_level():
        dual = fwAD.make_dual(torch.ones(2), torch.full((2,), 3.0))
        with torch.inference_mode():
            thread = threading.Thread(target=look)
            thread.start()
            thread.join()
    assert (seen["inference"], seen["grad"]) == (False, True)
    assert torch.equal(seen["tangent"], torch.full((2,), 3.0))


def test_a_mode_entered_in_a_generator_leaks():
    def plain():
        with torch.inference_mode():
            yield
        yield

    @torch.inference_mode()
    def decorated():
        yield torch.is_inference_mode_enabled()

    steps = plain()
    next(steps)
    assert torch.is_inference_mode_enabled()
    next(steps)
    assert not torch.is_inference_mode_enabled()
    assert next(decorated())
    assert not torch.is_inference_mode_enabled()
