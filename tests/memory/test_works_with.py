"""The manager beside everything else that a training program uses: results as without it, and nothing left behind."""

import contextlib
import copy
import pickle
import threading
import warnings

import pytest
import torch
import workers
from helpers import EXACT, LOSSY, Mixer, equal, gradients, mlp, near, small
from torch import nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
)

import torchadx
from torchadx.memory import managed

MOVED = ("keep", "@disk", "lossless@host", "sparse")


MODELS = {
    "linear": lambda: nn.Linear(16, 16),
    "fused gelu": lambda: torchadx.nn.Linear(16, 16, activation="gelu"),
    "fused relu": lambda: torchadx.nn.Linear(16, 16, activation="relu"),
    "batch norm": lambda: nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 16), nn.BatchNorm1d(16)),
    "dropout": lambda: nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.3), nn.ReLU(inplace=True)),
    "mixer": lambda: nn.Sequential(nn.Unflatten(0, (2, -1)), Mixer(16)),
    "conv": lambda: nn.Sequential(nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 3, 3), nn.MaxPool2d(2), nn.Flatten()),
    "channels last": lambda: nn.Sequential(
        nn.Unflatten(1, (4, 2, 2)), nn.Conv2d(4, 8, 2, padding=1), nn.BatchNorm2d(8), nn.Flatten()
    ).to(memory_format=torch.channels_last),
    "complex": lambda: Spectral(),
    "gru": lambda: Item(nn.Sequential(nn.Unflatten(0, (2, -1)), nn.GRU(16, 8, batch_first=True))),
    "lstm": lambda: Item(nn.Sequential(nn.Unflatten(0, (2, -1)), nn.LSTM(16, 8, num_layers=2))),
    "attention": lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)),
    "embedding bag": lambda: Item(nn.EmbeddingBag(8, 16, mode="max"), lambda x: (x[:, :4] > 0).long()),
}


class Spectral(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(9, dtype=torch.complex64))

    def forward(self, x):
        z = torch.fft.rfft(x)
        return torch.fft.irfft(z * self.weight * z.conj(), n=16)


class Item(nn.Module):
    def __init__(self, inner, prepare=lambda x: x):
        super().__init__()
        self.inner, self.prepare = inner, prepare

    def forward(self, x):
        y = self.inner(self.prepare(x))
        return y[0] if isinstance(y, tuple) else y


@pytest.mark.parametrize("name", MODELS)
def test_modules_in_training(name):
    model = MODELS[name]()
    x = torch.randn(8, 16, requires_grad=name != "embedding bag")
    expected = gradients(model, x)
    for policy in EXACT:
        equal(gradients(model, x, context=small(policy).watch(model)), expected)
    for policy in LOSSY:
        loss, got = gradients(model, x, context=small(policy))
        equal(loss, expected[0])
        assert all(g is None or g.isfinite().all() for g in got)
        if policy == "bf16":
            near(got, expected[1], 0.05)


def test_eval_mode_and_buffers():
    model = MODELS["batch norm"]().eval()
    x = torch.randn(8, 16, requires_grad=True)
    with small("int8").watch(model) as manager:
        loss = model(x).sum()
    buffers = [row for row in manager.report().rows if row.alias == "buffer"]
    assert buffers
    assert {row.action for row in buffers} == {"keep"}
    assert sum(row.held_bytes for row in buffers) == 0
    loss.backward()


@pytest.mark.parametrize("activation", ["identity", "relu", "gelu", "silu", "tanh"])
def test_the_fused_linear_in_every_mode(activation):
    x, w, b = torch.randn(8, 16), torch.randn(12, 16), torch.randn(12)
    leaves = [t.clone().requires_grad_() for t in (x, w, b)]

    def run(policy):
        with contextlib.nullcontext() if policy is None else small(policy):
            y = torchadx.linear(*leaves, activation)
            first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
            second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
            tangent = torch.func.jvp(lambda x: torchadx.linear(x, w, b, activation), (x,), (x,))
            batched = torch.func.vmap(lambda x: torchadx.linear(x, w, b, activation))(x)
        return y.detach(), [g.detach() for g in first], second, tangent, batched

    expected = run(None)
    for policy in EXACT:
        equal(run(policy), expected)
    _, first, second, tangent, batched = run("int8")
    near(first, expected[1], 0.1)
    near(second, expected[2], 0.2)
    equal((tangent, batched), expected[3:])


@pytest.mark.parametrize("policy", [*MOVED, "int8"])
def test_checkpoint(policy):
    model, x = nn.Sequential(mlp(), nn.Linear(4, 16), mlp()), torch.randn(8, 16, requires_grad=True)
    expected = gradients(model, x)

    def selective():
        return create_selective_checkpoint_contexts(lambda ctx, op, *args, **kwargs: CheckpointPolicy.MUST_SAVE)

    ways = (
        lambda x: checkpoint(model, x, use_reentrant=False),
        lambda x: checkpoint(model, x, use_reentrant=False, context_fn=selective),
        lambda x: checkpoint_sequential(model, 2, x, use_reentrant=False),
        lambda x: model[2](checkpoint(lambda x: model[1](model[0](x)), x, use_reentrant=False)),
    )
    for way in ways:
        holder = nn.Module()
        holder.model, holder.forward = model, way
        for around in (False, True):
            manager = small(policy).watch(model)
            got = gradients(holder, x, context=manager, around_backward=around)
            equal(got, expected) if policy != "int8" else near(got[1], expected[1], 0.3)
        # recomputation stops early, by an exception: the names of modules must not be left behind
        with manager:
            y = torch.randn(8, requires_grad=True).exp()
        assert [row.module for row in manager.report().rows] == [None]
        del y


def test_managed_within_checkpoint():
    model, x = managed(mlp(), "@disk", min_bytes=0), torch.randn(8, 16)
    expected = gradients(mlp_like(model), x)
    holder = nn.Module()
    holder.model, holder.forward = model, lambda x: checkpoint(model, x, use_reentrant=False)
    equal(gradients(holder, x), expected)


def mlp_like(model):
    plain = mlp()
    plain.load_state_dict(model.state_dict())
    return plain


@pytest.mark.parametrize("policy", [*MOVED, "int8"])
def test_autocast(policy):
    model, x = nn.Sequential(Mixer(16), Mixer(16)), torch.randn(2, 8, 16)

    def loss(y):
        return y.float().square().mean()

    with torch.autocast("cpu", torch.bfloat16):
        expected = gradients(model, x, loss=loss)
    manager = small(policy)
    with torch.autocast("cpu", torch.bfloat16):
        got = gradients(model, x, loss=loss, context=manager)
    equal(got, expected) if policy in EXACT else near(got[1], expected[1], 0.1)
    casts = [row for row in manager.report().rows if row.alias == "parameter copy"]
    assert len(casts) == 8  # four linears in each block
    if policy not in EXACT:
        assert {row.action for row in casts} == {"keep"}
        assert all("a copy of a parameter" in row.reason for row in casts)


def test_grad_scaler_and_accumulation():
    def train(policy):
        torch.manual_seed(0)
        model = mlp()
        optimizer, scaler = torch.optim.AdamW(model.parameters(), 1e-2), torch.amp.GradScaler("cpu", 1024.0)
        manager = contextlib.nullcontext() if policy is None else small(policy)
        for _ in range(5):
            for _ in range(3):
                with manager, torch.autocast("cpu", torch.float16):
                    loss = model(torch.randn(8, 16)).square().mean()
                scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        return [p.detach() for p in model.parameters()], scaler.get_scale()

    expected = train(None)
    for policy in MOVED:
        equal(train(policy), expected)
    near(train("int8")[0], expected[0], 0.2)


def graphs():
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_manager_around_a_compiled_model(backend):
    torch._dynamo.reset()
    model, x = mlp(), torch.randn(8, 16)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    plain, before = gradients(compiled, x), graphs()
    torch.testing.assert_close(plain, gradients(model, x))
    for policy in MOVED:
        manager = small(policy).watch(model)
        for _ in range(2):
            equal(gradients(compiled, x, context=manager), plain)
        report = manager.report()
        assert report.tensors > 0
        assert report.owned_bytes > 0
    near(gradients(compiled, x, context=small("int8"))[1], plain[1], 0.1)
    assert graphs() <= before + 1, "each manager has the model compiled anew"


@pytest.mark.parametrize("in_place", [False, True])
def test_a_managed_compiled_model(in_place):
    torch._dynamo.reset()
    model, x = mlp(), torch.randn(8, 16)
    expected, before = gradients(model, x), graphs()
    if in_place:
        model.compile(backend="aot_eager", fullgraph=True)
    else:
        model = torch.compile(model, backend="aot_eager", fullgraph=True)
    keys = list(model.state_dict())
    managed(model, "@disk", min_bytes=0)
    equal(gradients(model, x), expected)
    assert graphs() == before + 1
    assert model.activation_manager.report().stores[0].bytes_peak > 0
    assert list(model.state_dict()) == keys
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        equal(gradients(twin, x), expected)
        assert twin.activation_manager.report().stores[0].bytes_peak > 0


class Sandwich(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(16, 16), mlp(), nn.Linear(4, 4)

    def forward(self, x):
        x = self.inner(self.first(x).tanh())
        return self.last(x).sin()


def test_a_compiled_model_with_a_managed_child():
    torch._dynamo.reset()
    model, x = Sandwich(), torch.randn(8, 16)
    expected, before = gradients(model, x), graphs()
    managed(model.inner, "@disk", min_bytes=0)
    compiled = torch.compile(model, backend="aot_eager")
    for _ in range(3):
        equal(gradients(compiled, x), expected)
        assert graphs() == before + 2  # what is before the child, and what is behind it
    assert model.inner.activation_manager.report().stores[0].bytes_peak > 0


def test_a_compiled_step_that_enters_a_manager():
    torch._dynamo.reset()
    holder, model, x, manager = nn.Module(), mlp(), torch.randn(8, 16), small("@disk")
    expected = gradients(model, x)

    def step(x):
        with manager:
            return model(x) * 1

    holder.model, holder.forward = model, torch.compile(step, backend="aot_eager")
    for _ in range(2):
        equal(gradients(holder, x), expected)
        assert manager.report().stores[0].bytes_peak > 0


def in_threads(count, work):
    """Run ``work(index)`` in threads that start together; return the results, or raise the first error."""
    barrier, results = threading.Barrier(count), [None] * count

    def run(index):
        barrier.wait()
        try:
            results[index] = work(index)
        except BaseException as error:  # shown by the caller
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


@pytest.mark.parametrize("policy", [*MOVED, "int8", "int8@disk"])
def test_threads_share_a_managed_module(policy):
    model, plain = managed(mlp(), policy, min_bytes=0), mlp()
    inputs = [torch.randn(8, 16) for _ in range(4)]
    alone = [gradients_of(model, x) for x in inputs]
    if policy in EXACT:
        plain.load_state_dict(model.state_dict())
        equal(alone, [gradients_of(plain, x) for x in inputs])
    for index, got in enumerate(in_threads(4, lambda index: [gradients_of(model, inputs[index]) for _ in range(5)])):
        equal(got, [alone[index]] * 5)
    assert model.activation_manager.report().tensors > 0


def gradients_of(model, x):
    return torch.autograd.grad(model(x).square().mean(), list(model.parameters()))


@pytest.mark.parametrize("policy", [*MOVED, "int8"])
def test_threads_enter_one_manager(policy):
    model, manager = mlp(), small(policy)
    manager.watch(model)
    inputs = [torch.randn(8, 16) for _ in range(4)]

    def step(index):
        with manager:
            loss = model(inputs[index]).square().mean()
        return torch.autograd.grad(loss, list(model.parameters()))

    alone = [step(index) for index in range(4)]
    graphs = in_threads(4, lambda index: [step(index) for _ in range(10)])
    equal(graphs, [[expected] * 10 for expected in alone])
    assert manager.report().resident_bytes == 0


def test_forwards_and_backwards_in_different_threads():
    model, manager = mlp(), small("@disk")
    inputs = [torch.randn(8, 16) for _ in range(8)]
    expected = [gradients_of(model, x) for x in inputs]
    losses = []
    for x in inputs:
        with manager:
            losses.append(model(x).square().mean())
    got = in_threads(8, lambda index: torch.autograd.grad(losses[index], list(model.parameters())))
    equal(got, expected)


def test_replicas_of_data_parallel():
    """What ``torch.nn.parallel.replicate`` makes: modules whose parameters are plain tensors with a graph."""
    model = managed(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)), "int8", min_bytes=0)
    inputs = [torch.randn(16, 64) for _ in range(2)]
    expected = [gradients_of(model, x) for x in inputs]
    replicas = [replica_of(model) for _ in inputs]
    losses = in_threads(2, lambda index: replicas[index](inputs[index]).square().mean())
    rows = model.activation_manager.report().rows
    assert {row.module for row in rows} <= {"0", "1", "2", ""}
    for loss, one in zip(losses, expected, strict=True):
        equal(torch.autograd.grad(loss, list(model.parameters())), one)
    weights = [row for row in rows if row.shape == (64, 64)]
    assert {row.action for row in weights} == {"keep"}, "weights of replicas are encoded"


class Broadcast(torch.autograd.Function):
    @staticmethod
    def forward(ctx, parameter):
        return parameter.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def replica_of(module):
    replica = module._replicate_for_data_parallel()
    replica._former_parameters = {}
    for name, child in module._modules.items():
        replica._modules[name] = replica_of(child)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            copy = Broadcast.apply(parameter)
            replica._former_parameters[name] = copy
            setattr(replica, name, copy)
    return replica


def test_ddp_and_fsdp_on_gloo(tmp_path):
    policies = ("keep", "@disk", "int8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.multiprocessing.spawn(workers.train, (str(tmp_path), policies), nprocs=2)
    both = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    equal(both[0], both[1])
    replicated, sharded = both[0]["plain"]
    for policy in policies:
        for got, plain in zip(both[0][policy], (replicated, replicated, replicated, sharded), strict=True):
            equal(got, plain) if policy in EXACT else near(got, plain, 0.1)
