"""Where a saved tensor waits, and as what: read off without decoding, reading or counting anything."""

import dataclasses

import pytest
import torch
from helpers import EVERY, hand_computed, same_bits, small
from torch.autograd.graph import saved_tensors_hooks

from torchadx.memory import Residence, residence


def packed_by(policy, x, **options):
    """What the graph holds of exp's result under a manager."""
    with small(policy, **options) as manager:
        y = x.exp()
    return manager, y, y.grad_fn._raw_saved_result.data


@pytest.mark.parametrize("policy", EVERY)
def test_every_policy_says_what_it_did(policy):
    x = torch.randn(64, 64, requires_grad=True)
    manager, y, packed = packed_by(policy, x)
    (row,) = manager.report().rows
    known = residence(packed)
    if row.action == "keep":
        assert isinstance(known, torch.Tensor)
        assert known.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()
        return
    assert isinstance(known, Residence)
    assert (known.action, known.nbytes, known.held_bytes) == (row.action, row.nbytes, row.held_bytes)
    assert (known.shape, known.dtype, known.stride) == (y.shape, y.dtype, y.stride())
    assert known.device == y.device
    assert known.resident == ("@disk" not in policy)
    if known.resident:
        assert sum(part.nbytes for part in known.parts) == known.held_bytes
    manager.flush()


@pytest.mark.parametrize("policy", ["int8", "bf16@host", "@disk", "int8@disk"])
def test_looking_decodes_nothing_and_counts_nothing(policy):
    x = torch.randn(64, 64, requires_grad=True)
    manager, y, packed = packed_by(policy, x)
    manager.flush()
    before = manager.report()
    looks = {residence(packed).identity for _ in range(5)}
    after = manager.report()
    assert len(looks) == 1
    assert [row.decodes for row in after.rows] == [0]
    assert after.resident_bytes == before.resident_bytes
    assert after.peak_bytes == before.peak_bytes
    assert all(store.reloads == 0 for store in after.stores)
    y.sum().backward()
    assert [row.decodes for row in manager.report().rows] == [1]


def test_parts_are_those_that_will_be_decoded():
    x = torch.randn(64, 64, requires_grad=True)
    _, y, packed = packed_by("bf16", x)
    (part,) = residence(packed).parts
    assert same_bits(part.view(64, 64), y.detach().bfloat16().view(part.dtype))
    manager, y, on_disk = packed_by("@disk", x)
    # until it is written, it is in memory
    manager.flush()
    assert residence(on_disk).parts == ()


def test_a_kept_tensor_is_shown_though_it_changed():
    x = torch.randn(64, requires_grad=True)
    _, y, packed = packed_by("keep", x)
    with torch.no_grad():
        y.add_(1)
    assert same_bits(residence(packed), y.detach())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_views_of_one_piece_have_one_identity_and_shapes_of_their_own():
    x = torch.randn(64, 96, requires_grad=True)
    with small("bf16"):
        a, b, _ = x.clone().chunk(3, -1)
        product = a * b
        other = x.sin().exp()
    node = product.grad_fn
    one, two = residence(node._raw_saved_self.data), residence(node._raw_saved_other.data)
    assert one.identity == two.identity != residence(other.grad_fn._raw_saved_result.data).identity
    assert one.shape == two.shape == (64, 32)
    assert one.stride == (96, 1)
    assert (one.nbytes, one.held_bytes) == (64 * 96 * 4, 64 * 96 * 2)


def test_a_stretch_of_a_storage_counts_as_what_was_encoded():
    x = torch.randn(1000, 64, requires_grad=True)
    with small("@disk"):
        y = x.clone()[10:20].sin()
    known = residence(y.grad_fn._raw_saved_self.data)
    assert known.nbytes == known.held_bytes == 10 * 64 * 4


def test_what_no_manager_packed_is_unknown():
    assert residence(None) is None
    assert residence(torch.ones(2)) is None
    assert residence((torch.ones(2), "a")) is None
    x = torch.randn(8, requires_grad=True)
    with saved_tensors_hooks(lambda tensor: tensor.detach().numpy(), torch.from_numpy):
        y = x.exp()
    assert residence(y.grad_fn._raw_saved_result.data) is None


def test_a_residence_is_frozen():
    _, _, packed = packed_by("bf16", torch.randn(64, 64, requires_grad=True))
    with pytest.raises(dataclasses.FrozenInstanceError):
        residence(packed).held_bytes = 0


def test_sums_over_a_graph_are_the_reports():
    manager, loss = hand_computed("int8")
    pending, seen, held = [loss.grad_fn], set(), {}
    while pending:
        node = pending.pop()
        pending += [following for following, _ in node.next_functions if following is not None]
        for name in dir(node):
            data = getattr(getattr(node, name), "data", None) if name.startswith("_raw_saved_") else None
            known = residence(data)
            if isinstance(known, Residence):
                held[known.identity] = known.held_bytes
                seen.add(known.action)
    assert seen == {"int8"}
    assert sum(held.values()) == sum(row.held_bytes for row in manager.report().rows if row.action == "int8")
