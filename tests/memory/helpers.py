"""What the tests of the activation manager share: policies by what they promise, models, and gradients to compare."""

import contextlib
import gc
import weakref

import torch
import torch.nn.functional as F
from torch import nn

from torchadx.memory import ActivationManager

# backward gets the very same bits
EXACT = ("keep", "@host", "@disk", "lossless", "lossless@host", "lossless@disk", "sparse", "mask")
LOSSY = ("bf16", "fp16", "fp8", "fp8:e5m2", "int8", "int4", "int2", "bf16@host", "int8@disk")
EVERY = EXACT + LOSSY


class Mixer(nn.Module):
    """A transformer block in small: norms, attention with chunked projections, dropout, residuals, an MLP."""

    def __init__(self, width=32, heads=2):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(-2))
        return x + self.mlp(x)


def mlp():
    """Three layers, of which each saves something else."""
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 4), nn.Tanh())


def uneven(y):
    """A loss that no normalization makes constant."""
    return (y * torch.linspace(0.5, 2, y.numel(), dtype=y.dtype, device=y.device).reshape(y.shape)).square().mean()


def gradients(model, *inputs, context=None, loss=uneven, around_backward=False):
    """Run one step with the same random numbers each time; return the loss and the gradients, inputs' first."""
    torch.manual_seed(1)
    leaves = [leaf for leaf in (*inputs, *model.parameters()) if leaf.requires_grad]
    with contextlib.nullcontext() if context is None else context:
        value = loss(model(*inputs))
        if around_backward:
            return value.detach(), torch.autograd.grad(value, leaves, allow_unused=True)
    return value.detach(), torch.autograd.grad(value, leaves, allow_unused=True)


def equal(got, expected):
    """Compare (nested) results bit for bit."""
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def near(got, expected, share):
    """Compare gradients, all of them together, by the share of the norm that is off: what a lossy codec may cost."""
    kept = [index for index, e in enumerate(expected) if e is not None]
    got, expected = (torch.cat([some[index].flatten() for index in kept]) for some in (got, expected))
    assert (got - expected).norm() <= share * expected.norm()


def same_bits(got, expected):
    """Whether two tensors are equal bit for bit, NaN payloads and signs of zero included."""
    if got.dtype != expected.dtype or got.shape != expected.shape:
        return False
    a, b = (torch.empty(t.shape, dtype=t.dtype).copy_(t).reshape(-1).view(torch.uint8) for t in (got, expected))
    return torch.equal(a, b)


def small(policy, **options):
    """Make a manager that does not mind small tensors."""
    return ActivationManager(policy, **({"min_bytes": 0} | options))


def hand_computed(policy="bf16", **options):
    """A case small enough to count: x is saved once, relu's result twice, one weight, the result."""
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    manager = small(policy, **options).watch(model)
    with manager:
        loss = model(torch.randn(8, 16)).square().mean()
    return manager, loss


def through(policy, tensor, **options):
    """Send a tensor through what the graph holds of it; return what backward gets, and the manager."""
    got = []

    class Save(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, saved):
            ctx.save_for_backward(saved)
            return x.clone()

        @staticmethod
        def backward(ctx, cotangent):
            got.extend(ctx.saved_tensors)
            return cotangent, None

    with small(policy, **options) as manager:
        y = Save.apply(torch.zeros((), requires_grad=True), tensor)
    y.backward()
    return got[0], manager


class Token:
    """Something to hang onto a graph, to see when the graph dies."""


@contextlib.contextmanager
def no_cycles():
    """Run without the cycle collector: what dies here, dies by reference counts alone."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def survives(context):
    """Whether a graph whose node saves its own result outlives the result."""
    token = Token()
    reference = weakref.ref(token)
    x = torch.randn(8, requires_grad=True)
    with no_cycles():
        with context:
            y = x.exp()
        y.grad_fn.metadata["token"] = token
        del y, token
        return reference() is not None
