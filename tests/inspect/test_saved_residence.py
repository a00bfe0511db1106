"""Where and in what form saved tensors wait: managers' codecs and stores, others' hooks; none is called or read."""

import contextlib

import pytest
import torch
from saving import gradients, mlp, row_of, same_bits
from torch import nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks

from torchadx.inspect import saved
from torchadx.memory import ActivationManager, DiskStore, Rule, managed

KEPT = ("keep", "@host")
MOVED = ("@disk", "bf16", "fp16", "int8", "int4", "int2", "bf16@host", "int8@host", "int8@disk", "copy")


def small(policy):
    return ActivationManager(policy, min_bytes=0)


def passed(policy, model=None):
    """A step under a manager up to its loss."""
    model = mlp(64) if model is None else model
    with small(policy).watch(model) as manager:
        loss = model(torch.randn(32, 8)).square().sum()
    return manager, model, loss


@pytest.mark.parametrize("policy", KEPT + MOVED)
def test_what_is_held_is_what_the_manager_says(policy):
    manager, model, loss = passed(policy)
    report = saved(loss, model=model)
    of_manager = manager.report()
    assert report.held_bytes == of_manager.held_bytes > 0
    forms = sorted((row.action.replace("keep", "cpu"), row.held_bytes) for row in of_manager.rows if row.held_bytes)
    assert sorted((row.residence, row.held_bytes) for row in report.rows if row.held_bytes) == forms
    assert sum(len(row.slots) for row in report.rows) == of_manager.tensors
    assert len(report.rows) == of_manager.storages
    assert report.unique_bytes == of_manager.storage_bytes
    # an input is the caller's, be it encoded or not
    encoded = sum(row.storage_bytes for row in report.rows if row.alias == "input" and row.held_bytes)
    assert report.activation_bytes == of_manager.activation_bytes - encoded
    manager.flush()


@pytest.mark.parametrize("policy", MOVED)
def test_nothing_is_decoded_brought_back_or_counted(policy):
    manager, model, loss = passed(policy)
    manager.flush()
    before = manager.report()
    for _ in range(3):
        saved(loss, model=model)
    after = manager.report()
    assert all(row.decodes == 0 for row in after.rows)
    assert all(store.reloads == 0 for store in after.stores)
    assert [store.bytes_now for store in after.stores] == [store.bytes_now for store in before.stores]
    assert after.resident_bytes == before.resident_bytes


@pytest.mark.parametrize("policy", [*KEPT, *MOVED, "lossless", "mask", "sparse", "fp8", "lossless@disk"])
def test_gradients_are_the_same_bits_after_a_look(policy):
    model, x = mlp(64), torch.randn(32, 8)
    expected = gradients(model, x, small(policy))
    looks = []

    def look(loss):
        looks.append(saved(loss, model=model))
        looks.append(saved(loss))

    assert same_bits(gradients(model, x, small(policy), look), expected)
    with saved(model=model) as seen:
        got = gradients(model, x, small(policy), lambda loss: looks.append(seen.report(loss)))
    assert same_bits(got, expected)
    assert len({report.naive_bytes for report in looks}) == 1
    assert len(looks) == 3


def test_gradients_of_a_plain_model_are_the_same_bits_after_a_look():
    model, x = mlp(64), torch.randn(32, 8)
    expected = gradients(model, x)
    assert same_bits(gradients(model, x, saved(), saved), expected)
    assert same_bits(gradients(model, x, contextlib.nullcontext(), saved), expected)


def test_rows_of_an_encoded_storage():
    _, model, loss = passed("int8")
    row = row_of(saved(loss, model=model), "ReluBackward0.result")
    assert row.slots == ("ReluBackward0.result", "AddmmBackward0.mat1")
    assert (row.shape, row.dtype, row.strides) == ((32, 64), "float32", (64, 1))
    assert (row.nbytes, row.storage_bytes, row.marginal_bytes) == (8192, 8192, 0)
    assert 32 * 64 <= row.held_bytes < 32 * 64 * 1.25
    assert (row.residence, row.resident, row.remedy) == ("int8", True, "nothing: it waits as int8")


def test_what_is_on_disk_is_not_resident():
    _, model, loss = passed("int8@disk")
    report = saved(loss, model=model)
    assert {row.residence for row in report.rows if row.alias is None} == {"int8@disk"}
    assert report.resident_bytes == 0 < report.held_bytes
    assert not any(row.resident for row in report.rows if row.alias is None)
    _, model, loss = passed("int8@host")
    # the tensors came from the host
    report = saved(loss, model=model)
    assert report.resident_bytes == report.held_bytes


def test_a_store_of_ones_own_shows_by_its_place(tmp_path):
    model = mlp(64)
    store = DiskStore(directory=tmp_path)
    with ActivationManager("@disk", min_bytes=0, stores=[store]):
        loss = model(torch.randn(32, 8)).square().sum()
    store.flush()
    report = saved(loss, model=model)
    assert report.held_bytes == store.bytes_now
    assert store.reloads == 0
    loss.backward()
    assert store.bytes_now == 0


def test_parameters_and_kept_tensors_are_what_they_are_without_a_manager():
    manager, model, loss = passed([Rule(ops="relu", then="int8")])
    report = saved(loss, model=model)
    weight = row_of(report, "AddmmBackward0.mat2")
    assert (weight.alias, weight.relation) == ("parameter 2.weight", "view of parameter 2.weight, transposed")
    assert weight.residence == "cpu"
    assert sorted(row.residence for row in report.rows) == ["cpu", "cpu", "cpu", "int8"]
    assert manager.report().held_bytes == report.held_bytes


def test_a_watched_step_knows_what_was_kept_of_its_inputs():
    model, x = mlp(64), torch.randn(32, 8)
    with saved(model=model) as seen, small("keep"):
        loss = model(x).sum()
    assert row_of(seen.report(loss), "AddmmBackward0.mat1", "0").alias == "input"


def test_a_managed_block_shows_beside_others():
    model = nn.Sequential(managed(nn.Sequential(nn.Linear(64, 64), nn.GELU()), "int8"), nn.Linear(64, 64), nn.Tanh())
    report = saved(model, torch.randn(64, 64))
    assert {row.residence for row in report.rows if row.module and row.module.startswith("0.")} == {"int8"}
    assert {row.residence for row in report.rows if row.module in ("1", "2")} == {"cpu"}


def test_views_of_one_encoded_storage_share_a_row():
    x = torch.randn(64, 96, requires_grad=True)
    with small("@disk"):
        q, k, v = (x.clone()).chunk(3, -1)
        loss = (q * k + k * v).sum()
    (row,) = saved(loss).rows
    assert len(row.slots) == 4
    assert (row.nbytes, row.slots_bytes, row.storage_bytes) == (64 * 32 * 4, 4 * 64 * 32 * 4, 64 * 96 * 4)
    assert row.held_bytes == 64 * 96 * 4


class Calls:
    """Hooks that count, and pack into whatever they are told to."""

    def __init__(self, into):
        self.into, self.unpacked = into, 0

    def pack(self, tensor):
        return self.into(tensor.detach().clone())

    def unpack(self, packed):
        self.unpacked += 1
        raise AssertionError("nobody asked for that")


def of_hooks(into):
    calls, x = Calls(into), torch.randn(10, requires_grad=True)
    with saved_tensors_hooks(calls.pack, calls.unpack):
        loss = x.exp().sin().sum()
    report = saved(loss)
    assert calls.unpacked == 0
    return report


def test_foreign_hooks_are_not_called_and_what_they_hold_is_unknown():
    report = of_hooks(lambda tensor: tensor.numpy())
    assert [row.residence for row in report.rows] == ["unknown (Calls)"] * 2
    assert [(row.shape, row.dtype, row.nbytes, row.held_bytes) for row in report.rows] == [(None, None, 0, 0)] * 2
    assert report.tensors == 2
    assert "unknown (Calls)" in str(report)
    assert "packed by hooks), which count 0: 2" in str(report)


def test_what_foreign_hooks_hold_in_tensors_is_counted():
    report = of_hooks(lambda tensor: (tensor, tensor[:5], tensor.half(), "more"))
    assert [(row.held_bytes, row.shape) for row in report.rows] == [(60, None)] * 2
    report = of_hooks(lambda tensor: {"only": tensor.half()})
    assert [(row.held_bytes, row.dtype, row.residence) for row in report.rows] == [(20, "float16", "cpu (Calls)")] * 2


def test_save_on_cpu_goes_by_its_name():
    x = torch.randn(10, requires_grad=True)
    with save_on_cpu():
        y = x.exp().sin()
    report = saved(y)
    assert {row.residence for row in report.rows} == {"cpu (save_on_cpu)"}
    assert report.held_bytes == report.resident_bytes > 0
    y.sum().backward()
    assert torch.equal(x.grad, x.detach().exp().cos() * x.detach().exp())


def test_what_came_from_another_device_is_not_resident():
    # as save_on_cpu packs it
    report = of_hooks(lambda tensor: (torch.device("cuda:0"), tensor))
    assert (report.held_bytes, report.resident_bytes) == (80, 0)
    assert of_hooks(lambda tensor: (torch.device("cpu"), tensor)).resident_bytes == 80
