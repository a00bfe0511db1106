"""Functions and modules to differentiate, from one operation to whole networks, each small and in float64.

``CASES`` holds what can be traced, ``UNTRACEABLE`` what decides or sizes itself by the values of its input. The seeds
are fixed per case, so a case is the same whatever was drawn before it.
"""

import dataclasses
import functools
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils._pytree
import torch.utils.checkpoint
from torch import Tensor
from zoo_networks import NETWORKS

import torchadx


@dataclasses.dataclass(frozen=True)
class Case:
    """One function and a point to differentiate it at.

    Attributes:
        name: A word for test ids.
        f: Function or module of one tensor.
        x: The point; float64.
        traceable: Whether f does the same operations whatever the values of x.
        batched_ok: Whether f treats the rows of x (dimension 0) apart from each other.
        functional: Whether ``torch.func.jacrev`` can differentiate f; otherwise ``expected`` asks plain autograd.
    """

    name: str
    f: Callable[[Tensor], Any]
    x: Tensor
    traceable: bool = True
    batched_ok: bool = False
    functional: bool = True

    def __str__(self):
        return self.name

    def expected(self):
        """Return the Jacobian from PyTorch's own transforms; it has a graph if x or a parameter asks for it."""
        if not self.functional:
            return torch.autograd.functional.jacobian(self.f, self.x, create_graph=self.x.requires_grad)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")
            return torch.func.jacrev(self.f)(self.x)

    def expected_batched(self):
        """Return the stacked Jacobians of ``x_i -> f(x_i[None])[0]``."""

        def one(row):
            return torch.utils._pytree.tree_map(lambda y: y[0], self.f(row[None]))

        rows = [dataclasses.replace(self, f=one, x=row).expected() for row in self.x]
        return torch.utils._pytree.tree_map(lambda *leaves: torch.stack(leaves), *rows)


def seeded(name, build):
    """Call build with a generator state of the name's own and leave the global one as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(name.encode()))
        return build()


@functools.cache
def drawn(*shape):
    """A constant: the same tensor for the same shape, made when its case is registered and not while it is traced."""
    return seeded(str(shape), lambda: torch.randn(shape, dtype=torch.float64))


def agree(got, expected, tolerance=1e-10):
    """Compare trees of tensors: structure, shapes, dtypes, and values within the tolerance."""
    got_leaves, got_tree = torch.utils._pytree.tree_flatten(got)
    leaves, tree = torch.utils._pytree.tree_flatten(expected)
    assert got_tree == tree
    torch.testing.assert_close(got_leaves, leaves, rtol=tolerance, atol=tolerance)


CASES: list[Case] = []
UNTRACEABLE: list[Case] = []


def add(name, f, shape, batched_ok=False, traceable=True, functional=True):
    x = seeded(name, lambda: torch.randn(shape, dtype=torch.float64))
    f(x)  # f's constants exist from now on: a Jacobian sees no random numbers
    (CASES if traceable else UNTRACEABLE).append(Case(name, f, x, traceable, batched_ok, functional))


def case(*shape, **options):
    """Register the decorated function of a tensor of that shape."""

    def register(f):
        add(f.__name__, f, shape, **options)
        return f

    return register


def cases(table):
    """Register rows of name -> (function, shape of x, whether rows are apart)."""
    for name, row in table.items():
        add(name, *row)


for _name, (_build, _shape, _batched) in NETWORKS.items():
    _module = seeded(_name, lambda build=_build: build().double().eval())
    cases({_name: (_module, _shape, _batched)})

INDEX = torch.tensor([[2, 0, 1, 1], [0, 0, 3, 2]])

cases(
    {
        "identity": (lambda x: x, (2, 3), True),
        "constant_plus": (lambda x: 3 + x, (2, 3), True),
        "scaled": (lambda x: -2.5 * x, (5,), True),
        "zero_dim": (lambda x: x.sin() * x, (), False),
        "elementwise": (lambda x: torch.sin(x) * torch.exp(-x.square()) + torch.atan(x) / (2 + x.cos()), (3, 4), True),
        "pow": (lambda x: x**3 + x.abs() ** 1.5 + 2**x, (3, 4), True),
        "abs": (lambda x: x.abs() - x.relu(), (3, 4), True),
        "clamp": (lambda x: x.clamp(-0.5, 0.7) + x.clamp(min=0), (3, 4), True),
        "where": (lambda x: torch.where(x > 0, x.square(), x.exp()), (3, 4), True),
        "maximum": (lambda x: torch.maximum(x, x.square()) + torch.minimum(x, drawn(4)), (3, 4), True),
        "softmax": (lambda x: x.softmax(-1), (3, 4), True),
        "log_softmax": (lambda x: x.log_softmax(-1), (3, 4), True),
        "softmax_over_rows": (lambda x: x.softmax(0), (3, 4), False),
        "logsumexp": (lambda x: x.logsumexp(1), (3, 4), True),
        "sum": (lambda x: x.square().sum(1), (3, 4), True),
        "sum_all": (lambda x: x.sin().sum(), (3, 4), False),
        "mean_keepdim": (lambda x: x - x.mean(1, keepdim=True), (3, 4), True),
        "var": (lambda x: x.var(1), (3, 4), True),
        "std": (lambda x: x.std(1, correction=0), (3, 4), True),
        "prod": (lambda x: x.prod(1), (3, 4), True),
        "max_dim": (lambda x: x.max(1).values, (3, 4), True),
        "amax": (lambda x: x.amax(1) - x.amin(1), (3, 4), True),
        "norm": (lambda x: x.norm(dim=1), (3, 4), True),
        "norm_p": (lambda x: torch.linalg.vector_norm(x, 3, dim=1), (3, 4), True),
        "fft_magnitude": (lambda x: torch.fft.rfft(x).abs(), (3, 8), True),
        "fft_filter": (lambda x: torch.fft.irfft(torch.fft.rfft(x) * drawn(5), n=8), (3, 8), True),
        "cumsum": (lambda x: x.cumsum(1).sin(), (3, 4), True),
        "cumprod": (lambda x: x.cumprod(1), (3, 4), True),
        "sort": (lambda x: x.sort(1).values * drawn(6), (3, 6), True),
        "topk": (lambda x: x.topk(2, dim=1).values, (3, 6), True),
        "einsum": (lambda x: torch.einsum("bi,ij,bj->bj", x, drawn(4, 4), x), (3, 4), True),
        "einsum_trace": (lambda x: torch.einsum("ij,jk,ki->", x, x, x), (4, 4), False),
        "matmul_with_itself": (lambda x: x @ x.T, (4, 3), False),
        "bmm": (lambda x: torch.bmm(x, x.transpose(1, 2) @ drawn(3, 3)), (2, 3, 3), True),
        "outer": (lambda x: torch.outer(x, x.sin()), (5,), False),
        "bilinear": (lambda x: F.bilinear(x, x.tanh(), drawn(3, 4, 4), drawn(3)), (3, 4), True),
        "solve": (lambda x: torch.linalg.solve(x @ x.T + 2 * torch.eye(4, dtype=x.dtype), drawn(4, 2)), (4, 4), False),
        "inverse": (lambda x: torch.linalg.inv(x + 5 * torch.eye(4, dtype=x.dtype)), (4, 4), False),
        "det": (lambda x: torch.linalg.det(x), (3, 4, 4), True),
        "advanced_indexing": (lambda x: x[:, [2, 0, 0]] * x[[[1], [2]], [0, 3]].sum(), (3, 4), False),
        "basic_indexing": (lambda x: x[:, 1:, None] * x[:, None, ::2], (3, 5), True),
        "gather": (lambda x: x.gather(1, INDEX).sin(), (2, 4), False),
        "scatter": (lambda x: torch.zeros_like(x).scatter_add(1, INDEX, x.exp()), (2, 4), False),
        "index_select": (lambda x: x.index_select(1, torch.tensor([3, 0, 0])), (2, 4), True),
        "masked_fill": (lambda x: x.masked_fill(torch.eye(4, dtype=torch.bool), 0).cos(), (4, 4), False),
        "embedding_row": (lambda x: x * F.embedding(torch.tensor([1, 0, 1]), drawn(2, 4)), (3, 4), False),
        "embedding_table": (lambda x: F.embedding(torch.tensor([[1, 0], [3, 1]]), x).tanh(), (4, 3), False),
        "broadcasting": (lambda x: x[:, :, None] * drawn(3) + x[:, None, :1] / (2 + drawn(3).abs()), (3, 4), True),
        "expand": (lambda x: x.sum(1, keepdim=True).expand(-1, 3) * drawn(3), (3, 4), True),
        "stack_cat": (lambda x: torch.cat([torch.stack([x, x.sin()], 1), x[:, None].exp()], 1), (2, 3), True),
        "split_chunk": (lambda x: x.split([1, 3], 1)[1] * x.chunk(4, 1)[0] + x.unbind(1)[2][:, None], (3, 4), True),
        "transposes": (lambda x: x.permute(0, 2, 1).flatten(1).unflatten(1, (3, 2)).mT.sin(), (2, 2, 3), True),
        "tril_triu": (lambda x: x.tril() @ x.triu(1), (4, 4), False),
        "diagonal": (lambda x: x.diagonal(dim1=1, dim2=2).square(), (2, 3, 3), True),
        "roll_flip": (lambda x: x.roll(1, 1) * x.flip(1), (3, 4), True),
        "repeat": (lambda x: x.repeat(1, 2).sin() + x.repeat_interleave(2, 1), (2, 3), True),
        "pad_reflect": (lambda x: F.pad(x, (2, 1), mode="reflect"), (2, 3, 5), True),
        "pad_constant": (lambda x: F.pad(x, (1, 0, 0, 2), value=0.5).sin(), (2, 3, 4), True),
        "unfold": (lambda x: F.unfold(x, 2), (2, 2, 4, 4), True),
        "unfold_windows": (lambda x: x.unfold(1, 3, 2).square(), (2, 7), True),
        "conv1d": (lambda x: F.conv1d(x, drawn(4, 3, 3), drawn(4), padding=1), (2, 3, 6), True),
        "conv2d_groups": (lambda x: F.conv2d(x, drawn(6, 2, 3, 3), None, 1, 2, 2, groups=2), (2, 4, 3, 3), True),
        "avg_pool": (lambda x: F.avg_pool2d(x, 2), (2, 3, 4, 4), True),
        "adaptive_pool": (lambda x: F.adaptive_avg_pool2d(x, (2, 3)), (2, 2, 5, 4), True),
        "max_pool": (lambda x: F.max_pool2d(x, 2), (2, 3, 4, 4), True),
        "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), (2, 4, 3, 3), True),
        "interpolate": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), (2, 2, 3, 3), True),
        "cosine_similarity": (lambda x: F.cosine_similarity(x[:, None], drawn(5, 4)[None], dim=-1), (3, 4), True),
        "normalize": (lambda x: F.normalize(x, dim=1), (3, 4), True),
        "layer_norm": (lambda x: F.layer_norm(x, (6,), drawn(6), drawn(6)), (3, 6), True),
        "rms_norm": (lambda x: F.rms_norm(x, (6,), drawn(6)), (3, 6), True),
        "group_norm": (lambda x: F.group_norm(x, 2, drawn(4), drawn(4)), (2, 4, 3, 3), True),
        "instance_norm": (lambda x: F.instance_norm(x, weight=drawn(3), bias=drawn(3)), (2, 3, 4, 4), True),
        "batch_norm_train": (lambda x: F.batch_norm(x, None, None, drawn(3), drawn(3), training=True), (6, 3), False),
        "attention": (lambda x: F.scaled_dot_product_attention(x, x.sin(), x @ drawn(4, 4)), (2, 2, 5, 4), True),
        "attention_causal": (lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), (2, 2, 5, 4), True),
        "functional_linear": (lambda x: torchadx.functional.linear(x, drawn(5, 4), drawn(5), "gelu"), (3, 4), True),
        "cross_entropy": (lambda x: F.cross_entropy(x, torch.tensor([1, 0, 3]), reduction="none"), (3, 4), False),
        "detach": (lambda x: x * x.sin().detach(), (3, 4), True),
    }
)  # fmt: skip


@case(3, 4, batched_ok=True)
def multi_output(x):
    hidden = (x @ drawn(4, 6)).tanh()
    return {"mean": hidden[:, :3], "rest": (hidden.square().sum(1), [x.exp()])}


@case(3, 4, batched_ok=True)
def residual_chain(x):
    for step in range(6):
        x = x + 0.3 * torch.tanh(x @ drawn(4, 4) * (step + 1))
    return x


@case(3, 4, batched_ok=True)
def dense_connections(x):
    first = x.sin()
    second = torch.cat([x, first], 1) @ drawn(8, 4)
    return torch.cat([x, first, second.tanh()], 1) @ drawn(12, 3)


@case(3, 4, batched_ok=True)
def inplace_on_intermediates(x):
    h = x * 2
    h += 1
    h.relu_()
    h = h.square()
    h.neg_().add_(x, alpha=3)
    return h.mul_(x.cos())


@case(3, 4)
def slice_assignment(x):
    h = x.sin()
    h[0] = x[1] * x[2]
    h[:, 1] *= 2
    return h.cumsum(0)


@case(3, 4, batched_ok=True)
def inplace_through_a_view(x):
    h = x.sin()
    h[:, :2].mul_(3)
    h.T[3].add_(x[:, 0])
    return h.square()


@case(3, 4)
def filled_buffer(x):
    out = x.new_zeros(2, 4)
    out[0] = x[0] * x[1]
    out[1, 1:3] = x[2, :2].exp()
    return out


@case(4, batched_ok=True)
def newton_iterations(x):
    root = torch.ones_like(x)
    for _ in range(4):
        root = root - (root**3 - x) / (3 * root.square() + 1)
    return root


@case(3, 4, batched_ok=True)
def reused_hidden(x):
    h = (x @ drawn(4, 6)).sigmoid()
    return (h @ drawn(6, 5)).tanh() * (h @ drawn(6, 5)) + h.sum(1, keepdim=True)


@case(4, 2, batched_ok=True)
def pinn_residual(x):
    weight, out = drawn(2, 6), drawn(6)

    def u(point):
        return (torch.tanh(point @ weight) @ out).sin()

    def residual(point):
        gradient = torch.func.grad(u)(point)
        return gradient[0] + u(point) * gradient[1]

    return torch.func.vmap(residual)(x)


@case(5)
def gradient_inside(x):
    return torch.func.grad(lambda p: (p.sin().square().sum() * p.prod()).tanh())(x)


@case(3, 4, batched_ok=True)
def jvp_inside(x):
    weight = drawn(4, 5)
    value, tangent = torch.func.jvp(lambda p: torch.tanh(p @ weight), (x,), (x.cos(),))
    return value * tangent


@case(3, 4, batched_ok=True, functional=False)
def checkpointed(x):
    def block(h):
        return torch.tanh(h @ drawn(4, 4)) * h

    return torch.utils.checkpoint.checkpoint(block, block(x), use_reentrant=False)


@case(6, traceable=False)
def branch_on_the_sum(x):
    if x.sum() > 0:
        return x.sin()
    return x.cos()


@case(6, traceable=False)
def boolean_mask(x):
    return x[x > 0].square().sum() * x


@case(6, traceable=False)
def item_as_a_factor(x):
    return x.square() * (1 + round(abs(x[0].item())))


@case(6, traceable=False)
def loop_until_small(x):
    while x.norm() > 0.5:
        x = x * 0.6 + 0.1 * x.sin()
    return x


@case(6, traceable=False)
def nonzero_positions(x):
    return x[torch.nonzero(x > 0).flatten()].exp().sum() + x
