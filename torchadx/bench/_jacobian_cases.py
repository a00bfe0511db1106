"""The functions whose Jacobians are compared, and how many times faster than the best peer each has to be."""

import dataclasses
import itertools
import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

from torchadx.bench import _arguments

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}
#: widths joined by a dash, then what stands between the layers
MLP_NAME = re.compile(rf"\d+(-\d+)+-({'|'.join(ACTIVATIONS)})")


@dataclasses.dataclass(frozen=True)
class Problem:
    """A function and where its Jacobian is taken.

    Attributes:
        name: Shown in tables.
        make: Builds the network.
        shape: Of its input.
        eager: Least times faster than the best eager peer; ``None``: not judged.
        compiled: Least times faster than the best compiled or jitted peer, more than that where it is 1.
        batched: Whether the leading dimension of the input is a batch, with one Jacobian a sample.
        memory: A limit under which torchadx runs once more.
    """

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    eager: float | None = None
    compiled: float | None = None
    batched: bool = False
    memory: str | None = None

    def build(self, device: torch.device) -> tuple[nn.Module, Tensor]:
        """Return the network in fp32, in eval mode and without gradients of parameters, and its input."""
        torch.manual_seed(0)
        f = self.make().eval().requires_grad_(False).to(device)
        return f, torch.randn(self.shape, device=device)


def mlp(widths: tuple[int, ...], activation: str) -> nn.Sequential:
    """Return linears with an activation between any two."""
    layers: list[nn.Module] = []
    for width, out in itertools.pairwise(widths):
        layers += [nn.Linear(width, out), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


def mlp_problem(name: str, eager: float | None = None, compiled: float | None = None) -> Problem:
    """Return the problem that a name such as ``784-256-16-256-784-relu`` describes, at one input vector."""
    *numbers, activation = name.split("-")
    widths = tuple(map(int, numbers))
    return Problem(name, lambda: mlp(widths, activation), widths[:1], eager, compiled)


class UNet(nn.Module):
    """Two strided convolutions down, two transposed ones up, and a skip at both of the finer sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.down = nn.ModuleList([nn.Conv2d(8, 16, 4, 2, 1), nn.Conv2d(16, 32, 4, 2, 1)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ConvTranspose2d(32, 8, 4, 2, 1)])
        self.last = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.first(x).relu()
        middle = self.down[0](fine).relu()
        coarse = self.down[1](middle).relu()
        middle = torch.cat([self.up[0](coarse).relu(), middle], -3)
        fine = torch.cat([self.up[1](middle).relu(), fine], -3)
        return self.last(fine)


def conv_autoencoder() -> nn.Sequential:
    """Return 3x32x32 -> 32 -> 3x32x32 for one image without a batch dimension."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(0)),
        *(nn.Linear(32 * 8 * 8, 32), nn.Tanh(), nn.Linear(32, 32 * 8 * 8), nn.ReLU(), nn.Unflatten(0, (32, 8, 8))),
        *(nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 3, 4, 2, 1)),
    )


def transformer_layer() -> nn.Module:
    """Return one encoder layer for a sequence without a batch dimension."""
    return nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)


#: equal, of which 0.95 is noise
NEVER_SLOWER = 0.95

PROBLEMS = (
    mlp_problem("784-256-16-256-784-relu", 10, 5),
    mlp_problem("2048-512-32-512-2048-relu", 8, 5),
    mlp_problem("1024-256-16-256-1024-256-16-256-1024-tanh", 10, 5),
    Problem("conv-autoencoder", conv_autoencoder, (3, 32, 32), 10, 1, memory="64 MiB"),
    Problem("784-per-sample", lambda: mlp((784, 256, 16, 256, 784), "relu"), (16, 784), 10, 1, batched=True),
    mlp_problem("4096-512-64-10-relu", NEVER_SLOWER),
    mlp_problem("10-64-512-4096-relu", NEVER_SLOWER),
    mlp_problem("16-1024-1024-16-tanh", NEVER_SLOWER),
    Problem("square-8x256-tanh", lambda: mlp((256,) * 9, "tanh"), (256,), NEVER_SLOWER),
    Problem("transformer-layer", transformer_layer, (16, 32), NEVER_SLOWER),
    Problem("u-net", UNet, (3, 16, 16), NEVER_SLOWER),
)


def parse(text: str) -> list[Problem]:
    """Read comma-separated names of cases, or of any other MLP.

    Raises:
        argparse.ArgumentTypeError: A name is neither.
    """
    known = {problem.name: problem for problem in PROBLEMS}
    others = {word for word in _arguments.words(text) if word not in known and MLP_NAME.fullmatch(word)}
    names = _arguments.some_of([*known, *others] if others else [*known, "WIDTH-...-WIDTH-relu"])(text)
    return [known.get(name) or mlp_problem(name) for name in names]
