"""Check Jacobians by the house rule, on the scale of their largest entry."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from torchadx.bench import _jacobian_peers
from torchadx.bench._harness import Contender, admit
from torchadx.bench._jacobian_cases import Problem
from torchadx.bench._jacobian_peers import Peer


def check(
    entered: Sequence[Peer], problem: Problem, f: nn.Module, x: Tensor
) -> tuple[list[Contender], dict[str, float], dict[str, str]]:
    """Compare everyone with the Jacobian in float64.

    Returns:
        The contenders to time, the largest error of each over the largest entry of the Jacobian, and the reason for
        each one left out.

    Raises:
        WrongResultError: torchadx is wrong.
    """
    reference = _jacobian_peers.reference(problem, f, x, torch.float64)
    # entries of deep networks are so small that anything would be right next to 1, to which the house rule compares
    scale = reference.abs().max().item() or 1.0

    def scaled(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return lambda: run().double() / scale

    plain = Contender("plain", scaled(lambda: _jacobian_peers.reference(problem, f, x, torch.float32)))
    contenders = [Contender(peer.name, scaled(peer.run), "may" if peer.is_rival else "must") for peer in entered]
    admitted, found, left_out = admit(contenders, plain, reference / scale)
    names = {contender.name for contender in admitted}
    return [Contender(peer.name, peer.run) for peer in entered if peer.name in names], found, left_out
