"""Bytes that autograd saves for backward, beside parameters and inputs: never more than in eager PyTorch."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks

import torchadx
from torchadx import activations

WANTED = [wanted for wanted in itertools.product((True, False), repeat=3) if any(wanted)]
LAYOUTS = {
    "2-D": lambda: torch.randn(16, 8),
    "4-D": lambda: torch.randn(2, 1, 8, 8),
    "transposed": lambda: torch.randn(8, 16).t(),
    "broadcast": lambda: torch.randn(1, 8).expand(16, 8),
}


def saved_bytes(f, *given):
    """Bytes of the storages that ``f(*given)`` saves, each counted once; those of ``given`` are not counted."""
    storages = {}

    def pack(t):
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        y = f(*given)
    assert y.requires_grad
    for t in given:
        storages.pop(t.untyped_storage().data_ptr(), None)
    return sum(storages.values())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("row", activations.ROWS, ids=lambda row: row.name)
def test_never_more_than_eager(row, layout):
    for wanted in WANTED:
        args = [LAYOUTS[layout](), torch.randn(32, 8), torch.randn(32)]
        for t, want in zip(args, wanted, strict=True):
            t.requires_grad_(want)
        got = saved_bytes(lambda *a: torchadx.linear(*a, row), *args)
        assert got <= saved_bytes(lambda *a: row.forward(F.linear(*a)), *args), wanted


@pytest.mark.parametrize("row", activations.ROWS, ids=lambda row: row.name)
def test_one_layer_saves_one_tensor_or_none(row):
    args = [torch.randn(*shape, requires_grad=True) for shape in ((16, 8), (32, 8), (32,))]
    expected = 0 if row.keeps == "nothing" else 16 * 32 * 4
    assert saved_bytes(lambda *a: torchadx.linear(*a, row), *args) == expected


@pytest.mark.parametrize("act", ["relu", "tanh", "sigmoid"])
def test_an_mlp_that_keeps_outputs_saves_half_of_what_gelu_saves(act):
    x = torch.randn(16, 8)

    def saved(activation):
        layers = [torchadx.nn.Linear(k, n, activation=activation) for k, n in itertools.pairwise((8, 32, 32, 32))]
        net = torch.nn.Sequential(*layers, torchadx.nn.Linear(32, 4))
        return saved_bytes(lambda x, *_: net(x), x, *net.parameters())

    assert saved(act) == 3 * 16 * 32 * 4
    assert 2 * saved(act) <= saved("gelu")
