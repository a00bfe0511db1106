"""Modules whose forward does what a wrapper could trip over, each as small as shows it."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


class BasicBlock(nn.Module):
    """The residual block of torchvision's ResNets."""

    def __init__(self, width_in, width, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1 or width_in != width:
            self.downsample = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + identity)


def resnet():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        BasicBlock(8, 8), BasicBlock(8, 256, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(256, 512), nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Linear(512, 10),
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics that do something in eval mode
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return model


class Tied(nn.Module):
    """Layers that see one memory: as one parameter, transposed, and as a part of it."""

    def __init__(self):
        super().__init__()
        self.first, self.same = nn.Linear(512, 512), nn.Linear(512, 512)
        self.same.weight = self.first.weight
        self.transposed, self.part = nn.Linear(512, 512), nn.Linear(512, 256)
        self.transposed.weight = nn.Parameter(self.first.weight.data.t())
        self.part.weight = nn.Parameter(self.first.weight.data[:256])

    def forward(self, x):
        return self.part(self.transposed(self.same(self.first(x)).relu()).relu())


class Language(nn.Module):
    """Tokens in, logits out: one matrix embeds and unembeds."""

    def __init__(self):
        super().__init__()
        self.embed, self.body, self.out = nn.Embedding(512, 256), nn.Linear(256, 256), nn.Linear(256, 512, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens):
        return self.out(torch.tanh(self.body(self.embed(tokens))))


class Loop(nn.Module):
    """As many steps as the values ask for."""

    def __init__(self):
        super().__init__()
        self.step = nn.Sequential(nn.Linear(256, 256), nn.Tanh())

    def forward(self, x):
        steps = 0
        while x.norm() > 1.0 and steps < 20:
            x, steps = 0.7 * self.step(x), steps + 1
        return x, steps


class EarlyExit(nn.Module):
    def __init__(self, threshold):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(256, 256), nn.GELU()) for _ in range(3))
        self.heads = nn.ModuleDict({str(i): nn.Linear(256, 10) for i in range(3)})
        self.threshold = threshold

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            x = layer(x)
            logits = self.heads[str(i)](x)
            if logits.softmax(-1).max() > self.threshold:
                return {"logits": logits, "exit": i}
        return {"logits": logits, "exit": None}


class Trees(nn.Module):
    """Nested containers in and out."""

    def __init__(self):
        super().__init__()
        self.image, self.others = nn.Linear(256, 512), nn.ModuleList([nn.Linear(256, 512), nn.Linear(256, 512)])

    def forward(self, batch, *, scale=1.0):
        image = self.image(batch["image"]) * scale
        others = [layer(x) for layer, x in zip(self.others, batch["others"], strict=True)]
        return {"sum": image + sum(others), "parts": (image, others), "name": batch.get("name"), "count": len(others)}


class Changing(nn.Module):
    """Each call changes what the module is: a count, a buffer, a kept result, an activation, a new attribute."""

    def __init__(self):
        super().__init__()
        self.linear, self.act, self.calls = nn.Linear(256, 256), nn.ReLU(), 0
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.seen = self.seen + x.shape[0]
        y = self.act(self.linear(x)) * self.calls
        self.act = nn.Tanh() if self.calls % 2 else nn.SiLU()
        self.noted = f"call {self.calls}"
        return y, self.calls


class Recursive(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(256, 256)

    def forward(self, x, depth=3):
        return x if depth == 0 else self(torch.relu(self.linear(x)), depth - 1) + x


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 256))

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=False) + x


class Force(nn.Module):
    """Differentiates inside, whatever mode is on outside: by the graph, or by a transform."""

    def __init__(self, by_transform):
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(256, 512), nn.Tanh(), nn.Linear(512, 256))
        self.by_transform = by_transform

    def forward(self, x):
        if self.by_transform:
            return -torch.func.grad(lambda x: self.energy(x).square().sum())(x)
        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone() if x.requires_grad else x.clone().requires_grad_()
            return -torch.autograd.grad(self.energy(x).square().sum(), x, create_graph=True)[0]


class Mapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 256))

    def forward(self, x):
        return torch.func.vmap(self.inner)(x) + self.inner(x)


class Shifted(nn.ReLU):
    """An activation in name."""

    def forward(self, x):
        return super().forward(x) + 1


class OwnForward(nn.Sequential):
    """A Sequential in name: it returns every intermediate result, last first."""

    def forward(self, x):
        results = []
        for module in self:
            x = module(x)
            results.append(x)
        return results[::-1]


class FakeQuantized(nn.Linear):
    """What quantisation-aware training makes of a linear layer."""

    def forward(self, x):
        scale = self.weight.detach().abs().amax() / 127
        return F.linear(x, torch.fake_quantize_per_tensor_affine(self.weight, scale.item(), 0, -127, 127), self.bias)


class LowRank(nn.Linear):
    """A linear layer with an adapter."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.down, self.up = nn.Linear(sizes[0], 4, bias=False), nn.Linear(4, sizes[1], bias=False)

    def forward(self, x):
        return super().forward(x) + self.up(self.down(x))


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, weight):
        return weight * 2 + 0.1
