"""What a manager costs a saved tensor, where the tensors are so small that nothing else counts."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from torchadx.bench._harness import Contender, race
from torchadx.bench._memory_results import Overhead
from torchadx.memory import ActivationManager

#: operations in a row, each of which saves a storage of its own
LINKS = 200

NO_HOOKS, IDENTITY, KEEP = "no hooks", "identity hooks", "keep"


def measure(rounds: int, device: torch.device) -> Overhead:
    """Race a policy that keeps everything against hooks that do nothing, and against none."""
    x = torch.randn(16, device=device, requires_grad=True)
    manager = ActivationManager("keep")

    def plain() -> Tensor:
        y = x
        for _ in range(LINKS):
            y = y.tanh()
        return y.sum()

    def identity() -> Tensor:
        with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
            return plain()

    def keep() -> Tensor:
        with manager:
            return plain()

    def forward_and_backward(forward: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return lambda: torch.autograd.grad(forward(), x)[0]

    runs = {NO_HOOKS: plain, IDENTITY: identity, KEEP: keep}
    contenders = [Contender(name, forward_and_backward(run)) for name, run in runs.items()]
    timings = race(contenders, rounds, device)
    return Overhead(manager.report().tensors, timings)
