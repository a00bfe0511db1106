"""Random networks, on which a plan should not lose to the better of the pure modes, nor take more than it was given."""

import random
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from torchadx import autodiff
from torchadx.bench import _jacobian_peers
from torchadx.bench._harness import race, summarize
from torchadx.bench._jacobian_cases import ACTIVATIONS, Problem, mlp
from torchadx.bench._jacobian_check import check
from torchadx.bench._jacobian_memory import peak_besides_result
from torchadx.bench._jacobian_peers import Peer
from torchadx.bench._jacobian_results import Planning, Sample

DEPTHS, WIDTHS, RESIDUALS = (1, 12), (1, 512), 0.25
ROUNDS = 5
#: layers and width of the network whose planning is timed, and how often
DEEP = (50, 64)
PLANS = 7


class Residual(nn.Module):
    """``x + f(x)``."""

    def __init__(self, f: nn.Module) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x)


def problem(number: int) -> Problem:
    """Return a random MLP: 1 to 12 layers of widths up to 512, as often small as large, some of them residual."""
    choice = random.Random(number)
    depth = choice.randint(*DEPTHS)
    widths = [_width(choice) for _ in range(depth + 1)]
    residual = [choice.random() < RESIDUALS for _ in range(depth)]
    for i, skips in enumerate(residual):
        widths[i + 1] = widths[i] if skips else widths[i + 1]
    activation = choice.choice(list(ACTIVATIONS))

    def make() -> nn.Module:
        layers: list[nn.Module] = []
        for width, out, skips in zip(widths, widths[1:], residual, strict=False):
            layers += [Residual(mlp((width, 2 * width, out), activation))] if skips else [nn.Linear(width, out)]
            layers.append(ACTIVATIONS[activation]())
        return nn.Sequential(*layers[:-1])

    marks = ["", *("+" if skips else "" for skips in residual)]
    name = "-".join(f"{width}{mark}" for width, mark in zip(widths, marks, strict=True))
    return Problem(f"{name}-{activation}", make, tuple(widths[:1]))


def _width(choice: random.Random) -> int:
    least, most = WIDTHS
    return min(most, int(least * ((most + 1) / least) ** choice.random()))


def measure(count: int, device: torch.device, begin: Callable[[str], None]) -> Iterator[Sample]:
    """Check and time a plan of each network against jacrev and jacfwd, then make one with half of its memory.

    Raises:
        WrongResultError: A result is wrong.
    """
    for number in range(count):
        network = problem(number)
        begin(f"random {number + 1}: {network.name}")
        with torch.no_grad():
            yield _measure(network, device)


def _measure(network: Problem, device: torch.device) -> Sample:
    f, x = network.build(device)
    mine, _ = _jacobian_peers.ours(network, f, x)
    peers = [peer for peer in _jacobian_peers.eager(network, f, x) if peer.name in ("jacrev", "jacfwd")]
    timings = race(check([*peers, mine], network, f, x)[0], ROUNDS, device)
    limit = peak_besides_result(mine.run, device) // 2
    limited = _limited(network, f, x, limit)
    if limited:
        check([limited], network, f, x)
    peak = peak_besides_result(limited.run, device) if limited else None
    return Sample(network.name, {name: timing.median for name, timing in timings.items()}, limit, peak)


def _limited(network: Problem, f: nn.Module, x: Tensor, limit: int) -> Peer | None:
    try:
        return _jacobian_peers.ours(network, f, x, limit)[0]
    except autodiff.DerivativeError:  # which is how it says that the limit cannot be met
        return None


def plan_deep(device: torch.device) -> Planning:
    """Time planning, from the trace to the plan, of a deep network; the first one warms up."""
    layers, width = DEEP
    deep = Problem("deep", lambda: mlp((width,) * (layers + 1), "tanh"), (width,))
    f, x = deep.build(device)
    samples = [_jacobian_peers.plan(deep, f, x)[1] for _ in range(PLANS + 1)]
    return Planning(layers, summarize(samples[1:]))
