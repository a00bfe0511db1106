"""Totals against numbers made by hand: tensors, storages, bytes as if none shared, each once, activations, held."""

import pytest
import torch
from saving import Keeper, Tied, mlp, row_of, totals
from torch import nn
from torch.utils.checkpoint import checkpoint

import torchadx
from torchadx.inspect import saved


def leaf(*shape, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def square(a):
    b = a.clone()
    return b * b


def halves(a):
    b = a.clone()
    return b[:5] * b[5:]


def expanded(a):
    b = a.sum().expand(10)
    return b * b


def in_place(a):
    b = a.clone()
    b.add_(1)
    b.relu_()
    return b.exp_()


def split_and_joined(w):
    p, q = w.clone().split(4, 1)
    return torch.cat([p, q], 1).exp() + (p * q).sum()


def chained_views(a):
    b = a.clone()
    return b.view(2, 5).t()[1:].sin()


def twice_the_same(a):
    b = a.sin()
    return b.sin(), b.cos(), b.tan()


# tensors, storages, naive, unique, activation, held
BY_HAND = {
    "one linear": (nn.Linear(8, 3), (torch.randn(4, 8),), (1, 1, 128, 128, 0, 0)),
    "an input that requires grad": (nn.Linear(8, 3), (leaf(4, 8),), (2, 2, 224, 224, 0, 0)),
    "linear, relu, linear": (mlp(), (torch.randn(4, 8),), (4, 3, 768, 512, 256, 256)),
    "a leaf times itself": (lambda a: a * a, (leaf(10),), (2, 1, 80, 40, 0, 0)),
    "a square": (square, (leaf(10),), (2, 1, 80, 40, 40, 40)),
    "two halves": (halves, (leaf(10),), (2, 1, 40, 40, 40, 40)),
    "a small slice": (lambda a: a.clone()[:3].sin(), (leaf(10),), (1, 1, 12, 40, 40, 40)),
    "an expanded number": (expanded, (leaf(10),), (2, 1, 80, 4, 4, 4)),
    "views of views": (chained_views, (leaf(10),), (1, 1, 32, 40, 40, 40)),
    "in place": (in_place, (leaf(10),), (2, 1, 80, 40, 40, 40)),
    "split and joined": (split_and_joined, (leaf(4, 8),), (3, 2, 256, 256, 256, 256)),
    # sin's input is the leaf; three nodes show its output, and tan its own
    "several users": (twice_the_same, (leaf(10),), (4, 3, 160, 120, 80, 80)),
    "embedding": (nn.Embedding(10, 4), (torch.tensor([1, 2, 3]),), (1, 1, 24, 24, 0, 0)),
    "gather": (lambda w, i: w.gather(1, i), (leaf(4, 8), torch.zeros(4, 2, dtype=int)), (2, 2, 192, 192, 0, 0)),
    "tied weights": (Tied(), (torch.tensor([1, 2, 3]),), (3, 3, 232, 232, 48, 48)),
    "complex": (lambda z: z.clone() * z.exp(), (leaf(4, dtype=torch.complex64),), (3, 2, 96, 64, 64, 64)),
    "double precision": (lambda z: z.exp(), (leaf(4, dtype=torch.float64),), (1, 1, 32, 32, 32, 32)),
    "no elements": (lambda a: a.clone()[:0].sin(), (leaf(10),), (1, 1, 0, 40, 40, 40)),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_totals_are_those_made_by_hand(name):
    function, args, expected = BY_HAND[name]
    report = saved(function, *args)
    assert totals(report) == expected
    assert report.resident_bytes == report.held_bytes
    assert report.totals()["naive_bytes"] == report.naive_bytes
    assert report.measured_bytes is None
    assert report.peak_bytes is None


@pytest.mark.parametrize(("training", "expected"), [(True, (6, 6, 288, 288, 64, 64)), (False, (6, 6, 224, 224, 0, 0))])
def test_batch_norm_keeps_its_input_its_statistics_and_its_buffers(training, expected):
    report = saved(nn.BatchNorm1d(8).train(training), torch.randn(4, 8))
    assert totals(report) == expected
    assert {row.alias for row in report.rows} == {
        *("input", "buffer running_mean", "buffer running_var", "parameter weight", None),
    }


def test_a_frozen_layer_keeps_its_weight_alone():
    layer = nn.Linear(8, 3).requires_grad_(False)
    report = saved(layer, leaf(4, 8))
    assert totals(report) == (1, 1, 96, 96, 0, 0)
    (row,) = report.rows
    assert (row.alias, row.relation) == ("parameter weight", "view of parameter weight, transposed")
    assert (row.shape, row.strides, row.marginal_bytes) == ((8, 3), (1, 8), 0)
    assert not saved(layer, torch.randn(4, 8)).rows


def test_the_output_of_relu_is_the_input_of_the_next_layer():
    row = row_of(saved(mlp(), torch.randn(4, 8)), "ReluBackward0.result")
    assert row.slots == ("ReluBackward0.result", "AddmmBackward0.mat1")
    assert (row.nbytes, row.slots_bytes, row.storage_bytes) == (256, 512, 256)
    assert (row.marginal_bytes, row.held_bytes) == (0, 256)
    assert (row.alias, row.relation, row.residence) == (None, "shared by 2 slots", "cpu")


def test_a_slot_alone_frees_what_it_holds():
    (row,) = saved(lambda a: a.clone().sin(), leaf(10)).rows
    assert (row.marginal_bytes, row.held_bytes, row.relation) == (40, 40, None)


def test_what_the_caller_gets_is_not_freed_by_a_slot():
    (row,) = saved(lambda a: a.exp(), leaf(10)).rows
    assert (row.marginal_bytes, row.held_bytes, row.relation) == (0, 40, "an output shows it, too")


@pytest.mark.parametrize(
    ("function", "relation"),
    [
        (halves, "view of 50% of its storage; shared by 2 slots"),
        (expanded, "expanded view of 4 bytes; shared by 2 slots"),
        (lambda a: a.clone()[:3].sin(), "view of 30% of its storage"),
        (lambda a: a[:3].sin(), "view of input"),
        (lambda a: a.view(2, 5).t().sin(), "view of input"),
    ],
)
def test_relations_of_views(function, relation):
    (row,) = saved(function, leaf(10)).rows
    assert row.relation == relation


def test_a_write_into_a_view_is_noted_because_it_hides_what_it_saves():
    def write(a):
        b = a.clone()
        b[:5].mul_(b[5:].exp())
        return b.exp()

    report = saved(write, leaf(10))
    assert [row.slots_bytes for row in report.rows] == [20, 40]
    (note,) = report.notes
    assert note == "in-place writes into views (CopySlices), which do not show what they save: 1"
    assert note in str(report)


def test_tied_weights_are_one_parameter():
    report = saved(Tied(), torch.tensor([1, 2, 3]))
    assert row_of(report, "MmBackward0.mat2").alias == "parameter embedding.weight"
    assert row_of(report, "EmbeddingBackward0.indices").alias == "input"


class Checkpointed(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.stem, self.block, self.options = nn.Linear(8, 8), mlp(), options

    def forward(self, x):
        return checkpoint(self.block, self.stem(x), **self.options)


def test_a_checkpoint_without_reentry_recomputes():
    report = saved(Checkpointed(use_reentrant=False), torch.randn(4, 8))
    # stem's input; two of each linear and relu's result are computed again
    assert totals(report) == (6, 6, 128, 128, 0, 0)
    again = [row for row in report.rows if row.residence == "recomputed"]
    assert [(row.module, row.shape, row.tensor) for row in again] == [
        *([("block.0", None, "?")] * 2),
        ("block.1", None, "?"),
        *([("block.2", None, "?")] * 2),
    ]
    assert {row.remedy for row in again} == {"nothing: it is computed again in backward"}


def test_a_reentrant_checkpoint_keeps_its_input():
    report = saved(Checkpointed(use_reentrant=True, preserve_rng_state=False), torch.randn(4, 8))
    assert totals(report) == (2, 2, 256, 256, 128, 128)
    row = row_of(report, "CheckpointFunctionBackward.saved_tensors[0]")
    assert (row.module, row.held_bytes) == ("", 128)
    assert "checkpointed region" in row.why


def test_tensors_on_ctx_are_found_and_told_where_they_belong():
    report = saved(lambda a: Keeper.apply(a.clone(), torch.ones(10)), leaf(10))
    assert totals(report) == (4, 4, 130, 130, 130, 130)
    assert [row.slot for row in report.rows] == ["saved_tensors[0]", "saved_tensors[1]", "ctx.mask", "ctx.more"]
    for row in report.rows:
        assert ("save_for_backward" in row.remedy) == row.slot.startswith("ctx.")


def test_a_tensor_on_ctx_that_is_called_variable_makes_no_leaf_of_its_node():
    class Named(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.variable = x.clone()
            ctx.save_for_backward(x)
            return x + 1

        @staticmethod
        def backward(ctx, cotangent):
            return cotangent

    report = saved(lambda a: Named.apply(a.sin()), leaf(10))
    assert [row.slots[0] for row in report.rows] == [
        *("SinBackward0.self", "NamedBackward.saved_tensors[0]", "NamedBackward.ctx.variable"),
    ]


def test_a_fused_linear_keeps_what_its_activation_reads():
    layers = [torchadx.nn.Linear(8, 32, activation=act) for act in ("relu", "gelu")]
    model = nn.Sequential(layers[0], torchadx.nn.Linear(32, 32, activation="gelu"), nn.Linear(32, 4))
    report = saved(model, torch.randn(16, 8))
    assert {row.node for row in report.rows} == {"RecordedBackward", "AddmmBackward0"}
    # relu's result; gelu's input, and its result, which the last layer reads
    assert report.activation_bytes == 3 * 16 * 32 * 4
    assert report.rows[0].slots == ("RecordedBackward.saved_tensors[0]",)
    assert report.rows[0].alias == "input"


def test_autocast_keeps_copies_of_half_the_size():
    model = mlp()

    def cast(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(x)

    report = saved(cast, torch.randn(4, 8))
    assert totals(report) == (4, 3, 384, 256, 256, 256)
    assert {row.dtype for row in report.rows} == {"bfloat16"}
    # neither of the copies is held by anybody else
    assert {row.alias for row in report.rows} == {None}
