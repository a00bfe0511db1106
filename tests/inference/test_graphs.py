"""``cuda_graph=True``: an error where there is no GPU; elsewhere what the module computes, whatever changes between."""

import pytest
import torch
from torch import nn

from torchadx import InferenceAware


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    with pytest.raises(RuntimeError, match="cuda_graph=True needs a CUDA device"):
        InferenceAware(nn.Linear(2, 2), cuda_graph=True)


def gpu(test):
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")(test))


def mlp():
    return nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 8)).cuda().eval()


def agrees(wrapper, x):
    with torch.inference_mode():
        for _ in range(2):
            torch.testing.assert_close(wrapper(x), wrapper.module(x), rtol=1e-3, atol=1e-3)


@gpu
def test_a_graph_for_each_signature():
    wrapper = InferenceAware(mlp(), cuda_graph=True)
    for rows in (1, 16, 1, 16, 3):
        agrees(wrapper, torch.randn(rows, 64, device="cuda"))


@gpu
def test_results_are_not_overwritten_by_the_next_call():
    wrapper = InferenceAware(mlp(), cuda_graph=True)
    with torch.inference_mode():
        first = wrapper(torch.ones(4, 64, device="cuda"))
        kept = first.clone()
        wrapper(torch.zeros(4, 64, device="cuda"))
        assert torch.equal(first, kept)


@gpu
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
def test_changed_weights_are_seen(dtype):
    wrapper, x = InferenceAware(mlp(), cuda_graph=True, dtype=dtype), torch.randn(4, 64, device="cuda")
    bound = {"rtol": 0.02, "atol": 0.02}
    with torch.inference_mode():
        wrapper(x)
    with torch.no_grad():
        wrapper.module[0].weight.mul_(-1)
    with torch.inference_mode():
        torch.testing.assert_close(wrapper(x), wrapper.module(x), **bound)
    wrapper.module[2].weight.data = torch.randn_like(wrapper.module[2].weight)
    with torch.inference_mode():
        torch.testing.assert_close(wrapper(x), wrapper.module(x), **bound)


@gpu
def test_inputs_elsewhere_are_an_error():
    with torch.inference_mode(), pytest.raises(RuntimeError, match="takes CUDA tensors, got cpu"):
        InferenceAware(mlp(), cuda_graph=True)(torch.randn(4, 64))
