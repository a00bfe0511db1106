"""Training programs of many kinds: each is a step, and what modules and tensors there were before it."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

WIDTH, HIDDEN, ROWS = 16, 32, 8
FLOAT = 4


def network(inputs=WIDTH, outputs=WIDTH):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, outputs))


def nbytes_of(*things):
    """Bytes of the different storages of tensors and of modules' parameters and buffers."""
    tensors = []
    for thing in things:
        tensors += [*thing.parameters(), *thing.buffers()] if isinstance(thing, nn.Module) else [thing]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def accumulation():
    model, batches = network(), torch.randn(4, ROWS, WIDTH)
    optimizer = torch.optim.Adam(model.parameters())

    def step():
        optimizer.zero_grad()
        for batch in batches:
            (model(batch).square().mean() / 4).backward()
        optimizer.step()

    return step, (model, batches)


def adversaries():
    generator, critic, real = network(), network(outputs=1), torch.randn(ROWS, WIDTH)
    first, second = torch.optim.Adam(critic.parameters()), torch.optim.Adam(generator.parameters())

    def step():
        first.zero_grad()
        fake = generator(torch.randn(ROWS, WIDTH))
        functional.softplus(-critic(real)).mean().backward()
        functional.softplus(critic(fake.detach())).mean().backward()
        first.step()
        second.zero_grad()
        functional.softplus(-critic(fake)).mean().backward()
        second.step()

    return step, (generator, critic, real)


def derivatives():
    model = network(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step():
        optimizer.zero_grad()
        points = torch.rand(ROWS, 2, requires_grad=True)
        (slope,) = torch.autograd.grad(model(points).sum(), points, create_graph=True)
        (bend,) = torch.autograd.grad(slope[:, 0].sum(), points, create_graph=True)
        (bend[:, 0] - slope[:, 1]).square().mean().backward()
        optimizer.step()

    return step, (model,)


def forward_mode():
    model = network()

    def step():
        model.zero_grad()
        x = torch.randn(ROWS, WIDTH)
        y, slope = torch.func.jvp(model, (x,), (torch.ones_like(x),))
        (y - slope.detach()).square().mean().backward()

    return step, (model,)


def mixed():
    model, x = network(), torch.randn(ROWS, WIDTH)
    optimizer, scaler = torch.optim.AdamW(model.parameters(), foreach=True), torch.amp.GradScaler("cpu")

    def step():
        optimizer.zero_grad(set_to_none=False)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(x).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step, (model, x)


def nested_checkpoints(reentrant):
    model = nn.Sequential(network(), network())

    def inner(x):
        return checkpoint(model[1], checkpoint(model[0], x, use_reentrant=reentrant), use_reentrant=reentrant)

    def step():
        model.zero_grad()
        checkpoint(inner, torch.randn(ROWS, WIDTH, requires_grad=True), use_reentrant=reentrant).sum().backward()

    return step, (model,)


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, WIDTH, sparse=True)
        self.layers = nn.LSTM(WIDTH, WIDTH, 2, batch_first=True)

    def forward(self, words):
        return self.layers(self.embedding(words))[0]


def recurrent():
    model, words = Words(), torch.randint(50, (2, 5))
    optimizer = torch.optim.SparseAdam([model.embedding.weight])

    def step():
        model.zero_grad()
        model(words).square().mean().backward()
        optimizer.step()

    return step, (model, words)


def images():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True), nn.Flatten(), nn.LazyLinear(5))
    x, y = torch.randn(2, 3, 8, 8), torch.randint(5, (2,))
    model(x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)

    def step():
        optimizer.zero_grad()
        nn.CrossEntropyLoss()(model(x), y).backward()
        optimizer.step()

    return step, (model, x, y)


def interrupted():
    model, x = network(), torch.randn(ROWS, WIDTH)

    def step():
        model.zero_grad()
        loss = model(x).sum()
        handle = loss.register_hook(lambda gradient: gradient.no_such_attribute)
        with pytest.raises(AttributeError):
            loss.backward()
        handle.remove()
        with pytest.raises(RuntimeError):
            model(x[:, 1:])
        model(x).sum().backward(retain_graph=True)

    return step, (model, x)


def keywords():
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, *, x):
            return self.inner(x)

    model, x = Inner(), torch.randn(ROWS, WIDTH)
    return lambda: (model.zero_grad(), model(x=x).sum().backward()), (model, x)


def without_modules():
    weight, x = torch.randn(WIDTH, WIDTH, requires_grad=True), torch.randn(ROWS, WIDTH)

    def step():
        weight.grad = None
        (x @ weight).square().mean().backward()

    return step, (weight, x)


def made_anew():
    def step():
        model = network()
        nn.MSELoss()(model(torch.randn(ROWS, WIDTH)), torch.zeros(ROWS, WIDTH)).backward()

    return step, ()


PROGRAMS = {
    "accumulation": accumulation,
    "adversaries": adversaries,
    "derivatives": derivatives,
    "forward mode": forward_mode,
    "mixed": mixed,
    "checkpoints by hooks": lambda: nested_checkpoints(False),
    "reentrant checkpoints": lambda: nested_checkpoints(True),
    "recurrent": recurrent,
    "images": images,
    "interrupted": interrupted,
    "keywords": keywords,
    "without modules": without_modules,
    "made anew": made_anew,
}
