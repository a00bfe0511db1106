"""The same counts by other means: hooks on saved tensors, and torch's allocator."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from saving import ZOO, Attention, Convolutions, first, is_number, mlp, seen_by_hooks, totals
from torch import nn

import torchadx
from torchadx.inspect import saved

ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Identity)


def same_as_hooks(model, x):
    torch.manual_seed(1)
    report = saved(model, x)
    torch.manual_seed(1)
    sizes, storages = seen_by_hooks(lambda: model(x))
    rows = [row for row in report.rows if not is_number(row)]
    assert sum(len(row.slots) for row in rows) == len(sizes)
    assert sum(row.slots_bytes for row in rows) == sum(sizes)
    assert sorted(row.storage_bytes for row in rows) == storages
    return report


@pytest.mark.parametrize("name", ZOO)
def test_hooks_see_the_same_tensors_and_storages(name):
    report = same_as_hooks(*ZOO[name]())
    assert report.tensors >= report.storages > 0


def test_hooks_see_the_same_of_duals_transforms_and_second_derivatives():
    x = torch.randn(10, requires_grad=True)

    def pushed(x):
        return torch.func.jvp(lambda y: (y * x).exp(), (torch.ones(10),), (torch.ones(10),))

    def second(x):
        return torch.autograd.grad((x**3).sum(), x, create_graph=True)[0].sin()

    def dual(x):
        with torch.autograd.forward_ad.dual_level():
            y = torch.autograd.forward_ad.make_dual(x.sin(), torch.ones(10)).exp()
            return tuple(torch.autograd.forward_ad.unpack_dual(y))

    # slots, and storages without those of the leaf: a factor, its tangent, exp's result; cos's and ...
    expected = {pushed: (5, 4, 160), second: (3, 3, 44), dual: (3, 3, 80)}
    for function, (tensors, storages, activation) in expected.items():
        report = saved(function, x)
        assert (report.tensors, report.storages, report.activation_bytes) == (tensors, storages, activation), function
        assert all(row.shape == (10,) for row in report.rows)


def test_vmap_saves_the_batched_tensor():
    x = torch.randn(3, 4, requires_grad=True)
    report = saved(lambda x: torch.vmap(lambda row: (row * row).exp())(x), x)
    assert totals(report) == (3, 2, 144, 96, 48, 48)


def layers(widths, kinds):
    made = []
    for (width, following), kind in zip(itertools.pairwise(widths), kinds, strict=False):
        made += [nn.Linear(width, following), kind()]
    return nn.Sequential(*made, nn.Linear(widths[-1], 3))


@settings(max_examples=40, deadline=None)
@given(
    widths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    kinds=st.lists(st.sampled_from(ACTIVATIONS), min_size=4, max_size=4),
    rows=st.integers(1, 5),
)
def test_sums_of_random_networks_agree(widths, kinds, rows):
    report = same_as_hooks(layers(widths, kinds), torch.randn(rows, widths[0]))
    # no view here shows less than its storage, nor more
    assert report.unique_bytes <= report.naive_bytes
    assert report.activation_bytes <= report.unique_bytes
    assert report.held_bytes == report.activation_bytes == report.resident_bytes
    assert sum(row.own_bytes for row in report.by_module()) == report.held_bytes
    (model,) = [row for row in report.by_module() if row.module == ""]
    assert model.total_bytes == report.held_bytes
    assert sum(row.storages for row in report.by_module()) == report.storages
    assert all(0 <= row.marginal_bytes <= row.held_bytes <= row.storage_bytes for row in report.rows)


MEASURED = {
    "mlp": (lambda: mlp(64), (32, 8)),
    "fused": (lambda: torchadx.nn.Linear(64, 128, activation="gelu"), (32, 64)),
    "attention": (lambda: Attention(32), (4, 16, 32)),
    "transformer layer": (lambda: nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True), (4, 16, 32)),
    "convolutions": (Convolutions, (4, 3, 10, 10)),
}


@pytest.mark.parametrize("name", MEASURED)
def test_the_allocator_grows_by_activations_and_outputs(name):
    make, shape = MEASURED[name]
    model, x = make(), torch.randn(shape)
    model(x)
    outputs = first(model(x)).nbytes
    report = saved(model, x, measure=True)
    if any("an output shows it" in (row.relation or "") for row in report.rows):
        outputs = 0
    assert report.measured_bytes == pytest.approx(report.activation_bytes + outputs, rel=0.05)
    assert report.peak_bytes >= report.measured_bytes
    assert "by which torch's allocator grew" in str(report)
    assert totals(report) == totals(saved(model, x))


def test_the_allocator_grows_by_exactly_that_for_an_mlp():
    report = saved(mlp(64), torch.randn(32, 8), measure=True)
    assert report.measured_bytes == report.activation_bytes + 32 * 2 * 4 == 32 * 64 * 4 + 32 * 2 * 4


def test_what_waits_for_nothing_is_not_measured():
    with torch.no_grad():
        report = saved(mlp(64), torch.randn(32, 8), measure=True)
    assert report.measured_bytes == 32 * 2 * 4
    # relu's input and result, and the output of the first layer is freed before the second runs
    assert report.peak_bytes >= 2 * 32 * 64 * 4
    assert report.activation_bytes == 0
