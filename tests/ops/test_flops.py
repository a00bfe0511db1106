"""FLOP counters see the fused ops as they see the plain ones."""

import pytest
import torch
import torch.autograd.forward_ad as fwAD
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import torchadx


def train(layer, x, w, t):
    layer(x.requires_grad_(), w.requires_grad_()).sum().backward()


def frozen(layer, x, w, t):
    layer(x.requires_grad_(), w).sum().backward()


def tangent_on_x(layer, x, w, t):
    with fwAD.dual_level():
        layer(fwAD.make_dual(x, t), w)


def tangent_on_both(layer, x, w, t):
    with fwAD.dual_level():
        layer(fwAD.make_dual(x, t), fwAD.make_dual(w, w.clone()))


PRODUCT = 2 * (4 * 3) * 16 * 8


def counted(run, layer):
    with FlopCounterMode(display=False) as counter:
        run(layer, torch.randn(4, 3, 16), torch.randn(8, 16), torch.randn(4, 3, 16))
    return counter.get_total_flops()


@pytest.mark.parametrize("act", ["gelu", "relu"])
@pytest.mark.parametrize(("run", "products"), [(train, 3), (frozen, 2), (tangent_on_x, 2), (tangent_on_both, 3)])
def test_products_are_counted(run, products, act):
    torchadx.register_flop_formulas()
    torchadx.register_flop_formulas()  # again: nothing happens
    row = torchadx.activations.resolve(act)
    ours = counted(run, lambda x, w: torchadx.linear(x, w, None, act))
    assert ours == products * PRODUCT
    # PyTorch's own linear multiplies the tangent it makes up for a weight that has none
    assert ours <= counted(run, lambda x, w: row.forward(F.linear(x, w)))
