"""The cases of ``python -m torchadx.bench jacobian``: whole Jacobians, planned and by every road of PyTorch and JAX."""

import contextlib
from collections.abc import Collection, Iterator

import torch

from torchadx.bench import _jacobian_peers
from torchadx.bench._harness import race
from torchadx.bench._jacobian_cases import Problem
from torchadx.bench._jacobian_check import check
from torchadx.bench._jacobian_memory import peak_besides_result
from torchadx.bench._jacobian_peers import Peer
from torchadx.bench._jacobian_results import Case, Row


def measure(
    problem: Problem, device: torch.device, rounds: int, without: Collection[str] = (), limit: float = 120.0
) -> Case:
    """Check, then time one case, then count the memory of every contender.

    Args:
        problem: What to differentiate, in fp32.
        device: Where to run.
        rounds: Interleaved rounds.
        without: Names of peers to leave out, or what stands before their colon.
        limit: Most seconds that a peer may take to compile.

    Raises:
        WrongResultError: torchadx disagrees with the float64 reference.
    """
    torch.compiler.reset()  # the compiled peers of every case share one code object, and with it one recompile limit
    f, x = problem.build(device)
    # nobody is asked for a gradient through the Jacobian, and nobody gets a kernel that has no derivative
    with torch.no_grad(), _no_fused_encoder_layer():
        mine, plan = _jacobian_peers.ours(problem, f, x)
        limited = [_jacobian_peers.ours(problem, f, x, problem.memory)[0]] if problem.memory else []
        peers = list(_jacobian_peers.eager(problem, f, x))
        peers += [*_jacobian_peers.compiled(peers, limit), *_jacobian_peers.jitted(problem, f, x, limit)]
        entered = [mine, *limited, *(peer for peer in peers if not _named(peer, without))]
        rows = _rows(entered, problem, f, x, rounds, device)
        outputs = tuple(f(x).shape)
        return Case(problem.name, tuple(x.shape), outputs, problem.memory, str(plan.explain()), plan.seconds, rows)


def _rows(
    entered: list[Peer], problem: Problem, f: torch.nn.Module, x: torch.Tensor, rounds: int, device: torch.device
) -> tuple[Row, ...]:
    admitted, found, left_out = check(entered, problem, f, x)
    timings = race(admitted, rounds, device)
    counted = [peer for peer in entered if peer.name in timings and peer.counted]
    peaks = {peer.name: peak_besides_result(peer.run, device) for peer in counted}
    return tuple(
        Row(
            peer.name,
            peer.group,
            peer.detail,
            timings.get(peer.name),
            found.get(peer.name),
            peaks.get(peer.name),
            peer.prepared_in,
            left_out.get(peer.name),
        )
        for peer in entered
    )


def _named(peer: Peer, names: Collection[str]) -> bool:
    return peer.name in names or peer.name.partition(":")[0] in {*names} & {*_jacobian_peers.GROUPS}


@contextlib.contextmanager
def _no_fused_encoder_layer() -> Iterator[None]:
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
