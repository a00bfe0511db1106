"""Every mode of differentiation, every kind of tensor, every way for a step to fail, and copies of models."""

import copy
import pickle

import pytest
import torch
import torch.autograd.forward_ad as fwAD
import torch.nn.functional as F
from helpers import EVERY, EXACT, Mixer, equal, gradients, mlp, same_bits, small, uneven
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

from torchadx.memory import BudgetError, DiskFullError, DiskStore, managed
from torchadx.memory.policy import Planner

MOVED = ("keep", "@disk", "lossless", "sparse")


def f(x, w):
    return ((x @ w).tanh() * x.exp()).sum()


def arguments():
    return torch.randn(8, 8, dtype=torch.float64), torch.randn(8, 8, dtype=torch.float64)


def with_and_without(policy, run):
    expected = run()
    with small(policy):
        return run(), expected


def double(x, w):
    first = torch.autograd.grad(f(x, w), (x, w), create_graph=True)
    return torch.autograd.grad(sum(g.square().sum() for g in first), (x, w))


def forward_over_reverse(x, w):
    with fwAD.dual_level():
        dual = fwAD.make_dual(x, torch.ones_like(x))
        gradient = torch.autograd.grad(f(dual, w), (x, w), create_graph=True)
        return [tuple(fwAD.unpack_dual(g)) for g in gradient]


def reverse_over_forward(x, w):
    with fwAD.dual_level():
        tangent = fwAD.unpack_dual(f(fwAD.make_dual(x, torch.ones_like(x)), w)).tangent
        return torch.autograd.grad(tangent, (x, w))


def batched(x, w):
    y = (x @ w).tanh() * x.exp()
    return torch.autograd.grad(y, (x, w), torch.stack([torch.ones_like(y), y.detach()]), is_grads_batched=True)


MODES = {
    "double backward": double,
    "forward over reverse": forward_over_reverse,
    "reverse over forward": reverse_over_forward,
    "batched gradients": batched,
    "hessian": lambda x, w: torch.autograd.functional.hessian(lambda x: f(x, w), x),
    "vectorized hessian": lambda x, w: torch.autograd.functional.hessian(lambda x: f(x, w), x, vectorize=True),
    "forward hessian": lambda x, w: torch.autograd.functional.hessian(
        lambda x: f(x, w), x, vectorize=True, outer_jacobian_strategy="forward-mode"
    ),
    "hvp": lambda x, w: torch.autograd.functional.hvp(lambda x: f(x, w), x, x.detach()),
    "vmap": lambda x, w: torch.autograd.grad(torch.vmap(lambda row: (row @ w).tanh() * row.exp())(x).sum(), (x, w)),
    "jvp": lambda x, w: torch.autograd.grad(sum(torch.func.jvp(lambda x: f(x, w), (x,), (x.sin(),))), (x, w)),
    "jacfwd": lambda x, w: torch.autograd.grad(torch.func.jacfwd(lambda x: f(x, w))(x).sum(), (x, w)),
    "jvp of jvp": lambda x, w: torch.func.jvp(
        lambda x: torch.func.jvp(lambda x: f(x, w), (x,), (x.sin(),))[1], (x,), (x.cos(),)
    ),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("policy", [*MOVED, "bf16", "int8", "int2@disk"])
def test_modes_of_differentiation(mode, policy):
    x, w = (t.requires_grad_() for t in arguments())
    got, expected = with_and_without(policy, lambda: MODES[mode](x, w))
    got, expected = (torch.utils._pytree.tree_leaves(some) for some in (got, expected))
    if policy in EXACT:
        equal(got, expected)
    else:
        assert all(g.isfinite().all() for g in got)


@pytest.mark.parametrize("policy", MOVED)
def test_gradcheck(policy):
    x, w = (t[:3, :3].clone().requires_grad_() for t in arguments())

    def under(x, w):
        with small(policy):
            return f(x, w[:3])

    assert torch.autograd.gradcheck(under, (x, w), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(under, (x, w), check_fwd_over_rev=True)


@pytest.mark.parametrize("policy", EVERY)
def test_graphs_in_any_order_any_number_of_times(policy):
    model, manager = mlp(), small(policy)
    inputs = [torch.randn(8, 16) for _ in range(4)]
    alone = [gradients(model, x, context=small(policy))[1] for x in inputs]
    losses = []
    for x in inputs:
        with manager:
            losses.append(uneven(model(x)))
    parameters = list(model.parameters())
    for index in (2, 0, 2, 3, 0):
        equal(torch.autograd.grad(losses[index], parameters, retain_graph=True), alone[index])
    del losses[1]  # never
    equal(torch.autograd.grad(losses[2], parameters), alone[3])
    with pytest.raises(RuntimeError, match="a second time"):
        torch.autograd.grad(losses[2], parameters)
    assert manager.report().resident_bytes >= 0
    losses.clear()
    manager.flush()
    assert manager.report().resident_bytes == 0
    assert all(store.bytes_now == 0 for store in manager.report().stores)


@pytest.mark.parametrize("policy", MOVED)
def test_what_was_unpacked_may_be_written_to(policy):
    leaf = torch.randn(2048, requires_grad=True)
    with small(policy) as manager:
        a = leaf.relu().round()
        y = a.sin() * a
    expected = torch.autograd.grad(y.sum(), leaf, retain_graph=True)
    y.grad_fn._saved_other.zero_()
    if manager.report().rows[-1].action == "keep":
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(y.sum(), leaf)
    else:
        equal(torch.autograd.grad(y.sum(), leaf, retain_graph=True), expected)
        equal(torch.autograd.grad(y.sum(), leaf), expected)


# tensors of every kind


def test_tensor_subclasses_are_left_alone():
    leaf, pair = torch.randn(64, requires_grad=True), TwoTensor(torch.randn(64), torch.randn(64))
    with small("int8") as manager:
        loss = (leaf * pair).sum()
    equal(torch.autograd.grad(loss, leaf)[0].a, pair.a)
    (row,) = manager.report().rows
    assert "tensor subclass (TwoTensor)" in row.reason


def test_layouts_are_left_alone():
    dense = torch.randn(16, 4, requires_grad=True)
    matrix = torch.randn(8, 16).relu()
    for sparse in (matrix.to_sparse(), matrix.to_sparse_csr()):
        expected = torch.autograd.grad((sparse @ dense).square().sum(), dense)
        with small("int8", min_bytes=10_000) as manager:
            loss = (sparse @ dense).square().sum()
        equal(torch.autograd.grad(loss, dense), expected)
        assert any(f"its layout is {sparse.layout}" in row.reason for row in manager.report().rows)


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_left_alone(layout):
    parts, linear = [torch.randn(3, 16), torch.randn(5, 16)], nn.Linear(16, 16)

    def loss():
        nested = torch.nested.nested_tensor(parts, layout=layout, requires_grad=True)
        return torch.nested.to_padded_tensor(linear(nested).relu(), 0.0).square().sum()

    expected = torch.autograd.grad(loss(), list(linear.parameters()))
    with small("@disk").watch(linear) as manager:
        value = loss()
    equal(torch.autograd.grad(value, list(linear.parameters())), expected)
    assert str(manager.report())
    assert manager.report().to_dict()


def test_custom_functions():
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            y, inner = x.exp(), x.sin()
            ctx.save_for_backward(x, y, inner, None)
            return y, x

        @staticmethod
        def backward(ctx, gy, gx):
            x, y, inner, nothing = ctx.saved_tensors
            assert nothing is None
            return gy * y * inner * x + gx

    def loss(leaf):
        y, x = Twice.apply(leaf * 1)
        return (y * x).sum()

    leaf = torch.randn(64, requires_grad=True)
    for policy in EXACT:
        got, expected = with_and_without(policy, lambda: torch.autograd.grad(loss(leaf), leaf))
        equal(got, expected)


# failures


class Fails(nn.Module):
    def __init__(self, error=ValueError, backward=False):
        super().__init__()
        self.error, self.backward, self.armed = error, backward, True

    def forward(self, x):
        if self.armed and not self.backward:
            raise self.error("forward")
        y = x * 1
        if self.armed and y.requires_grad:
            y.register_hook(self._raise)
        return y

    def _raise(self, gradient):
        raise self.error("backward")


@pytest.mark.parametrize("policy", MOVED)
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_a_failure_the_next_step_works(policy, backward, error):
    fails = Fails(error, backward)
    model, x = nn.Sequential(mlp(), nn.Sequential(fails), nn.Linear(4, 4)), torch.randn(8, 16)
    manager = small(policy).watch(model)
    for _ in range(2):
        with pytest.raises(error):
            gradients(model, x, context=manager)
    # the frames of the exception hold the graph until they are gone
    manager.flush()
    assert manager.report().resident_bytes == 0
    assert all(store.bytes_now == 0 for store in manager.report().stores)
    with manager:
        torch.randn(8, requires_grad=True).exp()
    assert [row.module for row in manager.report().rows] == [None], "the failed module still seems to run"
    fails.armed = False
    got = gradients(model, x, context=manager)
    equal(got, gradients(model, x))
    assert {row.module for row in manager.report().rows} >= {"0.0", "2"}


def test_a_codec_or_policy_that_fails_leaves_no_hooks():
    def wrong(meta):
        raise LookupError("policy")

    x = torch.randn(64, requires_grad=True)
    for policy, error in ((wrong, LookupError), (lambda meta: 3, TypeError), (lambda meta: "int9", ValueError)):
        with pytest.raises(error), small(policy):
            x.exp()
        x.exp().sum().backward()


def test_a_full_disk(tmp_path):
    model, x = mlp(), torch.randn(8, 16)
    manager = small("@disk", stores=[DiskStore(directory=tmp_path, capacity_bytes=1500)])
    with pytest.raises(DiskFullError, match="capacity_bytes is 1500"):
        gradients(model, x, context=manager)
    manager.flush()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert manager.report().resident_bytes == 0
    equal(gradients(model, x[:1], context=manager), gradients(model, x[:1]))


class Refuses(Planner):
    window_bytes = 1 << 20

    def begin(self, stores):
        raise BudgetError("no")

    def choose(self, meta, flat, resident):
        raise AssertionError("asked although begin failed")

    def released(self, ordinal):
        """Nothing was chosen."""


def test_a_plan_that_cannot_begin_leaves_no_hooks():
    manager = small(Refuses())
    for _ in range(2):
        with pytest.raises(BudgetError), manager:
            raise AssertionError("entered")
    x = torch.randn(64, requires_grad=True)
    x.exp().sum().backward()
    with small("bf16") as after:
        x.exp()
    assert (after.report().tensors, after.report().notes) == (1, ())


# copies


WAYS = {"deepcopy": copy.deepcopy, "pickle": lambda model: pickle.loads(pickle.dumps(model))}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("policy", ["int8@disk", "lossless", "keep"])
def test_copies_of_managed_models(way, policy):
    model, x = managed(Mixer(), policy, min_bytes=0, measure_error=True), torch.randn(2, 8, 32)
    expected = gradients(model, x)
    before = model.activation_manager.report()
    twin = WAYS[way](model)
    assert type(twin) is type(model)
    assert isinstance(twin, Mixer)
    assert twin.activation_manager is not model.activation_manager
    assert repr(twin.activation_manager) == repr(model.activation_manager)
    equal(gradients(twin, x), expected)
    assert model.activation_manager.report() == before
    after = twin.activation_manager.report()
    assert [(row.module, row.action, row.alias) for row in after.rows] == [
        (row.module, row.action, row.alias) for row in before.rows
    ]
    equal(twin.state_dict(), model.state_dict())


@pytest.mark.parametrize("way", WAYS)
def test_copies_of_watched_models(way):
    model, x, manager = Mixer(), torch.randn(2, 8, 32), small("int8")
    manager.watch(model, "encoder")
    twin = WAYS[way](model)
    equal(gradients(twin, x), gradients(model, x))
    got = gradients(model, x, context=manager)
    names = {row.module for row in manager.report().rows}
    assert names == {"encoder", "encoder.norm", "encoder.qkv", "encoder.out", "encoder.mlp.0", "encoder.mlp.1"} | names
    del twin, got


def test_managed_leaves_state_and_class_as_they_are():
    plain = Mixer()
    keys, text = list(plain.state_dict()), [name for name, _ in plain.named_modules()]
    model = managed(plain, "int8")
    assert model is plain
    assert isinstance(model, Mixer)
    assert list(model.state_dict()) == keys
    assert [name for name, _ in model.named_modules()] == text
    Mixer().load_state_dict(model.state_dict())
    again = managed(model, "bf16")
    again(torch.randn(2, 64, 32)).sum().backward()
    actions = {row.action for row in again.activation_manager.report().rows}
    assert "bf16" in actions
    assert "int8" not in actions


def test_nested_managed_modules():
    model = managed(nn.Sequential(nn.Linear(16, 16), managed(mlp(), "int8", min_bytes=0, name="inner")), "@disk")
    manager, inner = model.activation_manager, model[1].activation_manager
    model(torch.randn(8, 16)).sum().backward()
    assert {row.module for row in inner.report().rows} == {f"inner.{index}" for index in range(6)}
    assert {row.module for row in manager.report().rows} == {"0"}


def test_a_graph_outlives_its_manager_and_a_model_its_watch():
    x = torch.randn(64, requires_grad=True)
    with small("@disk"):
        y = x.exp().sum()
    assert same_bits(torch.autograd.grad(y, x)[0], x.exp().detach())
    model = mlp()
    manager = small("int8").watch(model)
    manager.unwatch(model)
    with manager:
        y = model(torch.randn(8, 16))
    assert {row.module for row in manager.report().rows} == {None}
    assert F.linear(y, torch.ones(1, 4)).requires_grad
