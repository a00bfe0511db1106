"""The numbered facts about saved tensors, each shown with torch's own hooks where they go wrong, and then with ours."""

import contextlib

import pytest
import torch
import torch.autograd.forward_ad as fwAD
import torch.nn.functional as F
from helpers import EVERY, EXACT, equal, gradients, mlp, near, same_bits, small, survives, uneven
from torch import nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from torchadx.memory import ActivationManager


def bare(pack=lambda t: t.detach(), unpack=lambda t: t):
    return saved_tensors_hooks(pack, unpack)


def test_fact_01_linear_saves_a_view_of_its_weight():
    model = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(4)))
    x = torch.randn(16, 1024)
    seen = []
    with bare(lambda t: (seen.append(t), t.detach())[1]):
        model(x)
    assert not any(isinstance(t, nn.Parameter) for t in seen)
    assert sum(t.nbytes for t in seen) == 12_845_056
    for watched in (True, False):
        manager = ActivationManager("@disk")
        if watched:
            manager.watch(model)
        with manager:
            loss = model(x).sum()
        report = manager.report()
        assert report.tensor_bytes == 12_845_056
        assert report.owned_bytes == 12_582_912
        assert report.held_bytes == report.stores[0].bytes_peak == 4 * 16 * 1024 * 4
        assert {row.alias for row in report.rows if row.nbytes == 1024 * 1024 * 4} == {"parameter"}
        loss.backward()


@pytest.mark.parametrize("policy", EVERY)
def test_fact_02_unpacking_is_repeatable(policy):
    x = torch.randn(8, 8, requires_grad=True)
    with small(policy):
        sigmoid = x.sigmoid()
        y = (sigmoid * x).sum()
    result = sigmoid.grad_fn._saved_result.clone()
    first = torch.autograd.grad(y, x, retain_graph=True)
    assert same_bits(sigmoid.grad_fn._saved_result, result)
    (again,) = torch.autograd.grad(y, x, create_graph=True)
    equal(again, first[0])
    again.square().sum().backward(retain_graph=True)
    assert x.grad.isfinite().all()
    equal(torch.autograd.grad(y, x), first)


@pytest.mark.parametrize("policy", EVERY)
def test_fact_02_two_graphs_alive(policy):
    model, a, b = mlp(), torch.randn(8, 16), torch.randn(8, 16)
    alone = [gradients(model, x, context=small(policy))[1] for x in (a, b)]
    manager = small(policy)
    losses = []
    for x in (a, b):
        with manager:
            losses.append(uneven(model(x)))
    for loss, expected in zip(losses, alone, strict=True):
        equal(torch.autograd.grad(loss, list(model.parameters())), expected)


def test_fact_03_hooks_drop_the_check_of_in_place_changes():
    x = torch.randn(64, requires_grad=True)
    y = x.exp()
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    with bare():
        y = x.exp()
    y.add_(1)
    (wrong,) = torch.autograd.grad(y.sum(), x)
    equal(wrong, x.exp() + 1)


class Spoilt(nn.Module):
    def forward(self, x):
        return x.exp()


@pytest.mark.parametrize("policy", EVERY)
def test_fact_03_a_change_is_reported_or_harmless(policy):
    x = torch.randn(4096, requires_grad=True)
    model = nn.Sequential(Spoilt())
    with small(policy).watch(model) as manager:
        y = model(x)
    y.add_(1)
    (row,) = manager.report().rows
    if row.action == "keep":
        with pytest.raises(RuntimeError, match=r"modified by an inplace operation.*module '0'.*version 1"):
            y.sum().backward()
        return
    if policy == "@disk":
        # lent without a copy: either it was written by then, or that it was not is noticed
        with contextlib.suppress(RuntimeError):
            equal(torch.autograd.grad(y.sum(), x)[0], x.exp().detach())
        return
    (got,) = torch.autograd.grad(y.sum(), x)
    exact = x.exp().detach()
    equal(got, exact) if policy in EXACT else near([got], [exact], 0.5)
    assert not torch.equal(got, exact + 1)


def test_fact_03_weights_that_changed_before_backward():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with small("int8").watch(model):
        loss = model(torch.randn(8, 8)).sum()
    with torch.no_grad():
        model[1].weight.add_(1)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation.*\[8, 8\].*module '1'"):
        loss.backward()


def test_fact_04_returning_the_argument_leaks():
    assert survives(bare(pack=lambda t: t))
    assert not survives(bare())


@pytest.mark.parametrize("policy", EVERY)
def test_fact_04_the_graph_frees_its_own_results(policy):
    assert not survives(small(policy))


def test_fact_05_torch_checks_what_hooks_do():
    x = torch.randn(8, requires_grad=True)
    with bare(pack=lambda t: t.mul_(2)), pytest.raises(RuntimeError, match="modifying its input in place"):
        x.exp()
    with bare(unpack=lambda t: 1):
        y = x.exp().sum()
    with pytest.raises(TypeError, match="expected to be a Tensor but got result of type int"):
        y.backward()


@pytest.mark.parametrize("policy", EVERY)
def test_fact_05_packing_only_reads(policy):
    x = torch.randn(64, 64, requires_grad=True)
    with small(policy):
        y = x.exp()
    assert y._version == 0
    equal(y, x.exp())
    assert isinstance(y.grad_fn._saved_result, torch.Tensor)


@pytest.mark.parametrize("policy", EVERY)
def test_fact_06_shape_strides_offset_dtype_device(policy):
    source = torch.randn(6, 4)[1:].t()
    x = source.requires_grad_()
    assert (x.stride(), x.storage_offset()) == ((1, 4), 4)
    with save_on_cpu(pin_memory=True):
        y = x * x
    assert y.grad_fn._saved_self.stride() == (5, 1)
    with small(policy):
        y = x.detach() * x
    saved = y.grad_fn._saved_self
    assert saved is not x
    assert (saved.shape, saved.stride(), saved.storage_offset()) == (x.shape, (1, 4), 4)
    assert (saved.dtype, saved.device, saved.requires_grad) == (x.dtype, x.device, False)
    if policy in EXACT:
        assert same_bits(saved, x)


@pytest.mark.parametrize("policy", ["keep", "int8", "@disk"])
def test_fact_07_one_storage_once(policy):
    a = torch.randn(64, requires_grad=True) * 1
    packed = []
    with bare(lambda t: (packed.append(t), t.detach())[1]):
        a * a * a
    assert len(packed) == 4
    with small(policy) as manager:
        y = a * a * a
    report = manager.report()
    assert (report.tensors, report.storages, len(report.rows)) == (4, 2, 2)
    assert [row.tensors for row in report.rows] == [3, 1]
    del y


def test_fact_07_the_base_of_views_is_encoded_once():
    qkv = torch.randn(8, 3 * 64, requires_grad=True) * 1
    with small("int8") as manager:
        q, k, v = qkv.chunk(3, -1)
        y = q * k + k * v + v * q
    (row,) = manager.report().rows
    assert (row.tensors, row.storages, row.nbytes) == (6, 1, qkv.nbytes)
    assert row.held_bytes < 0.3 * qkv.nbytes
    del y


@pytest.mark.parametrize("policy", EXACT)
def test_fact_07_a_tensor_is_not_its_transpose(policy):
    leaf = torch.randn(8, 8, requires_grad=True)

    def loss():
        a, b = leaf * 2, leaf + 1
        return (a @ a.t() + b.t() * b).sum()

    with small(policy):
        value = loss()
    equal(torch.autograd.grad(value, leaf), torch.autograd.grad(loss(), leaf))


def test_fact_07_addresses_are_used_again():
    w = torch.randn(256, requires_grad=True)
    parts, addresses = [], set()
    with small("@disk") as manager:
        for step in range(20):
            x = torch.full((256,), float(step))
            addresses.add(x.untyped_storage().data_ptr())
            parts.append((w * x).sum())
            del x
            manager.flush()
    assert len(addresses) < 20
    equal(torch.autograd.grad(sum(parts), w)[0], torch.full((256,), float(sum(range(20)))))


@pytest.mark.parametrize("policy", EVERY)
def test_fact_08_what_is_no_floating_point_comes_back_exactly(policy):
    table = torch.randn(50, 16, requires_grad=True)
    tokens = torch.randint(50, (2, 33))
    weights = torch.randn(16, 50)

    def loss(table):
        x = F.embedding(tokens[:, :-1], table)
        x = torch.where(tokens[:, :-1, None] > 25, x, x * 2.5) * torch.tensor(0.5)
        x = x.index_select(0, torch.tensor([1, 0])).gather(2, torch.randint(16, (2, 32, 16)))
        return F.cross_entropy((x @ weights).flatten(0, 1), tokens[:, 1:].flatten())

    torch.manual_seed(3)
    expected = torch.autograd.grad(loss(table), table)
    torch.manual_seed(3)
    with small(policy, min_bytes=4) as manager:
        value = loss(table)
    got = torch.autograd.grad(value, table)
    if policy in EXACT:
        equal(got, expected)
    elif not policy.startswith(("int4", "int2")):
        near(got, expected, 0.2)
    assert got[0].isfinite().all()
    reasons = {row.reason for row in manager.report().rows if row.dtype == torch.int64}
    assert reasons == {"the policy is 'keep'" if policy == "keep" else "torch.int64: integers are left alone"}


TRANSFORMS = {
    "grad": lambda f, x: torch.func.grad(f)(x),
    "vjp": lambda f, x: torch.func.vjp(f, x),
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "hessian": lambda f, x: torch.func.hessian(f)(x),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_fact_09_reverse_mode_transforms_refuse_hooks(transform):
    x = torch.randn(8)
    with bare(), pytest.raises(RuntimeError, match="don't yet support saved tensor hooks"):
        TRANSFORMS[transform](lambda x: x.exp().sum(), x)
    alternative = r"torch\.autograd\.grad or backward\(\) under a manager, or leave the manager out"
    manager = small("int8")

    def inside(x):
        with manager:
            return x.exp().sum()

    with pytest.raises(RuntimeError, match=f"(?s)entered inside a transform.*{alternative}"):
        TRANSFORMS[transform](inside, x)
    with pytest.raises(RuntimeError, match=f"(?s)transform .* entered inside a manager.*{alternative}"), manager:
        TRANSFORMS[transform](lambda x: x.exp().sum(), x)
    # and nothing is left behind
    TRANSFORMS[transform](lambda x: x.exp().sum(), x)


@pytest.mark.parametrize("policy", EVERY)
def test_fact_09_forward_mode_and_vmap_work(policy):
    x, t, w = torch.randn(8, 16), torch.randn(8, 16), torch.randn(16, 16, requires_grad=True)
    f = lambda x: ((x @ w).tanh() * x).sum(-1)  # noqa: E731
    expected = torch.func.jvp(f, (x,), (t,)), torch.func.vmap(f)(x), torch.func.jacfwd(f)(x)
    with small(policy):
        got = torch.func.jvp(f, (x,), (t,)), torch.func.vmap(f)(x), torch.func.jacfwd(f)(x)
        with fwAD.dual_level():
            y = fwAD.unpack_dual(f(fwAD.make_dual(x, t)))
    equal(got, expected)
    equal(tuple(y), expected[0])


def test_fact_10_inference_tensors_cannot_be_repaired():
    with torch.inference_mode():
        frozen = torch.ones(8)
    x = torch.randn(8, requires_grad=True)
    for context in (bare(pack=lambda t: t.clone()), small("int8")):
        with context, pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
            x * frozen
    with small("int8") as manager:
        (x * frozen.clone()).sum().backward()
    assert manager.report().tensors == 1


def test_fact_11_the_innermost_manager_acts_and_says_so():
    x = torch.randn(64, requires_grad=True)
    with small("keep") as outer:
        a = x.exp()
        with small("int8") as inner:
            b = a.exp()
        c = b.exp()
    assert (outer.report().tensors, inner.report().tensors) == (2, 1)
    assert any("inside another manager" in note for note in inner.report().notes)
    assert "inside another manager" in str(inner.report())
    assert outer.report().notes == ()
    c.sum().backward()


@pytest.mark.parametrize("policy", EVERY)
def test_fact_12_backward_outside_of_the_context(policy):
    model, x = mlp(), torch.randn(8, 16)
    outside = gradients(model, x, context=small(policy))
    inside = gradients(model, x, context=small(policy), around_backward=True)
    equal(outside, inside)
    if policy in EXACT:
        equal(outside, gradients(model, x))


def test_fact_13_checkpoint():
    linear = nn.Linear(16, 16)

    def block(a, b=None):
        return linear(a).tanh() * b.sin()

    a, b = torch.randn(8, 16, requires_grad=True) * 1, torch.randn(8, 16, requires_grad=True) * 1
    with small("int8", measure_error=True) as manager:
        y = checkpoint(block, a, b=b, use_reentrant=False)
        forward = manager.report()
        assert [(row.shape, row.action) for row in forward.rows] == [((8, 16), "int8")]
        y.sum().backward()
    # recomputation does not come by, and keyword inputs never do
    assert manager.report().tensors == forward.tensors == 1


def test_fact_14_hooks_run_at_the_boundary_of_compiled_code():
    model, x = mlp(), torch.randn(8, 16)
    expected = gradients(model, x)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    equal(gradients(compiled, x, context=small("@disk")), expected)

    def enters(x):
        with small("int8"):
            return model(x)

    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(enters, backend="aot_eager", fullgraph=True)(x)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs streams")
@pytest.mark.parametrize("policy", ["@host", "lossless@host", "@disk"])
def test_fact_15_streams(policy):
    model, x, manager = mlp().cuda(), torch.randn(4096, 16, device="cuda"), small(policy)
    expected = gradients(model, x)
    for _ in range(20):
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
            equal(gradients(model, x, context=manager), expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_fact_16_nothing_is_saved_without_grad_mode(mode):
    with mode(), small("int8") as manager:
        mlp()(torch.randn(8, 16))
    report = manager.report()
    assert (report.tensors, report.rows, report.ratio) == (0, (), 1.0)
    assert any("grad mode off" in note for note in report.notes)
    assert "autograd saved nothing" in str(report)
    with small("int8") as manager, mode():
        mlp()(torch.randn(8, 16))
    assert "autograd saved nothing" in str(manager.report())


def test_fact_17_a_small_mlp_counted_by_storages():
    model = nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.LayerNorm(128), nn.GELU(), nn.Linear(128, 8)
    )
    with ActivationManager("keep").watch(model) as manager:
        loss = model(torch.randn(32, 64)).sum()
    report = manager.report()
    assert (report.tensors, report.tensor_bytes) == (12, 161_024)
    assert (report.storage_bytes, report.activation_bytes) == (144_640, 73_984)
    assert report.held_bytes == report.resident_bytes == report.peak_bytes == 73_984
    assert report.storages == 11
    assert report.ratio == 1
    del loss
    assert manager.report().resident_bytes == 0
