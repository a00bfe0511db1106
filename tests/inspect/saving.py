"""What the tests of saved tensors share: models, and a count of what is saved that knows nothing of the library."""

import contextlib

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

TOTALS = ("tensors", "storages", "naive_bytes", "unique_bytes", "activation_bytes", "held_bytes")


def totals(report):
    """The totals as a tuple, to compare with numbers made by hand."""
    return tuple(getattr(report, name) for name in TOTALS)


def row_of(report, slot, module=...):
    """The only row whose slots include this one."""
    (row,) = [row for row in report.rows if slot in row.slots and module in (..., row.module)]
    return row


def mlp(width=16):
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 2))


class Nested(nn.Module):
    """Blocks in blocks, one of which is called twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(8, 8)
        self.body = nn.Sequential(nn.Sequential(nn.Linear(8, 16), nn.GELU()), nn.Linear(16, 8))
        self.twice = nn.Tanh()

    def forward(self, x):
        return self.twice(self.body(self.twice(self.stem(x))))


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 16, 3), nn.SiLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 4)),
        )

    def forward(self, x):
        return self.layers(x)


class Attention(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1))
        return x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, indices):
        return self.head(self.embedding(indices))


class Keeper(torch.autograd.Function):
    """Saves two tensors as it should, and two by itself."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.save_for_backward(x, factor)
        ctx.mask = x > 0
        ctx.more = [x.clone(), "no tensor"]
        return x * factor

    @staticmethod
    def backward(ctx, cotangent):
        x, factor = ctx.saved_tensors
        return cotangent * factor, None


def first(output):
    """A tensor of what a model returns."""
    return output[0] if isinstance(output, tuple) else output


ZOO = {
    "mlp": lambda: (mlp(), torch.randn(4, 8)),
    "nested": lambda: (Nested(), torch.randn(4, 8)),
    "convolutions": lambda: (Convolutions(), torch.randn(2, 3, 10, 10)),
    "attention": lambda: (Attention(), torch.randn(2, 5, 16)),
    "transformer layer": lambda: (nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), torch.randn(2, 5, 16)),
    "lstm": lambda: (nn.LSTM(8, 16), torch.randn(5, 2, 8)),
    "gru": lambda: (nn.GRU(8, 16), torch.randn(5, 2, 8)),
    "tied": lambda: (Tied(), torch.tensor([1, 2, 3])),
    "group norm": lambda: (nn.Sequential(nn.Conv1d(4, 8, 3), nn.GroupNorm(2, 8), nn.ELU()), torch.randn(2, 4, 9)),
    "softmax": lambda: (nn.Sequential(nn.Linear(8, 4), nn.LogSoftmax(-1), nn.Dropout(0.5)), torch.randn(4, 8)),
    "bilinear": lambda: (nn.Sequential(nn.Linear(8, 6), nn.PReLU(), nn.Softplus()), torch.randn(4, 8).mT.clone().mT),
}


def is_number(row):
    """Whether a row is a number of Python's in a tensor, which no hook is shown."""
    return row.shape == () and row.dtype in ("int64", "float64")


def seen_by_hooks(run):
    """Run under hooks on saved tensors; return the sizes of all tensors, and those of their storages, each once."""
    sizes, storages, alive = [], {}, []

    def pack(tensor):
        sizes.append(tensor.nbytes)
        storages[tensor.untyped_storage().data_ptr(), tensor.device] = tensor.untyped_storage().nbytes()
        alive.append(tensor.detach())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sizes, sorted(storages.values())


def gradients(model, x, context=None, look=None):
    """Run one step with the same random numbers each time, look at the loss in between, and return all gradients."""
    torch.manual_seed(1)
    with contextlib.nullcontext() if context is None else context:
        loss = first(model(x)).square().mean()
    if look is not None:
        look(loss)
    return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)


def same_bits(got, expected):
    """Whether gradients are the same bit for bit."""
    pairs = zip(got, expected, strict=True)
    return all((g is None and e is None) or torch.equal(g.view(torch.uint8), e.view(torch.uint8)) for g, e in pairs)
