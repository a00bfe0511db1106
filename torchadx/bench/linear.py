"""The cases of ``python -m torchadx.bench linear``: ``activation(x @ weight.T + bias)`` in every mode users run it."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import torchadx
from torchadx.activations import Activation, resolve
from torchadx.bench._harness import Contender, admit, race, saved_bytes
from torchadx.bench._modes import MODES, Problem, Shape
from torchadx.bench._results import Case, Row

SHAPES: tuple[Shape, ...] = ((2048, 512, 2048), (256, 1024, 4096), (64, 1024, 4096), (64, 256, 256), (4, 8, 8))
OVERHEAD_SHAPE: Shape = (4, 8, 8)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


def contenders(mode: str, problem: Problem, activation: Activation) -> Iterator[Contender]:
    """Yield everything that is timed in one case; the first is the plain PyTorch route."""
    how = MODES[mode]

    def eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return activation.forward(F.linear(x, weight, bias))

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torchadx.functional.linear(x, weight, bias, activation.name)

    def driven(step: Callable[..., Any]) -> Callable[[], Any]:
        return lambda: how.drive(step, problem)

    yield Contender("eager", driven(how.step(eager)))
    yield Contender("compile", driven(torch.compile(how.step(eager), fullgraph=True, dynamic=False)), check="may")
    yield Contender("torchadx", driven(how.step(ours)))
    for name, by_hand in _BY_HAND.get(mode, {}).items():
        run = by_hand(problem, activation)
        if run is not None:
            yield Contender(name, run, check="may")
    yield Contender("bare GEMM", lambda: how.bare(problem), check="none")


def _addmm_activation(p: Problem, activation: Activation) -> Callable[[], Any] | None:
    """The epilogue of cuBLASLt. Which GELU it computes depends on the device; the check decides whether it counts."""
    if activation.name not in ("relu", "gelu", "gelu_tanh"):
        return None
    use_gelu = activation.name != "relu"

    def run() -> Tensor:
        with torch.no_grad():
            return torch._addmm_activation(p.bias, p.x, p.weight.t(), use_gelu=use_gelu)

    return run


def _stacked_gemm(p: Problem, activation: Activation) -> Callable[[], Any]:
    """What a careful user writes by hand: one GEMM for primal and tangent, then elementwise operations."""
    rows = p.x.shape[0]

    def run() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            z, z_tangent = F.linear(torch.cat([p.x, p.tangent]), p.weight).split(rows)
            z = z + p.bias
            y = activation.forward(z)
            kept = activation.kept(y, z)
            return y, z_tangent if kept is None else activation.backward(z_tangent, kept)

    return run


_BY_HAND: dict[str, dict[str, Callable[[Problem, Activation], Callable[[], Any] | None]]] = {
    "forward": {"_addmm_activation": _addmm_activation},
    "jvp": {"stacked GEMM": _stacked_gemm},
}


def measure(
    mode: str,
    shape: Shape,
    dtype: str,
    activation: str,
    device: torch.device,
    rounds: int,
    without: Sequence[str] = (),
) -> Case:
    """Check, then time one case.

    Args:
        mode: A key of :data:`MODES`.
        shape: ``(M, K, N)``.
        dtype: A key of :data:`DTYPES`.
        activation: Name of a registered activation.
        device: Where to run.
        rounds: Interleaved rounds.
        without: Names of contenders to leave out.

    Raises:
        WrongResultError: torchadx disagrees with the float64 reference.
    """
    torch.compiler.reset()  # the compiled step of every case shares one code object, and with it one recompile limit
    how, row = MODES[mode], resolve(activation)
    problem = Problem.random(shape, DTYPES[dtype], device).requiring_grad(*how.needs_grad)
    reference = next(contenders(mode, problem.double().requiring_grad(*how.needs_grad), row)).run()
    entered = [c for c in contenders(mode, problem, row) if c.name == "eager" or c.name not in without]
    admitted, found, left_out = admit(entered, entered[0], reference)
    timings = race(admitted, rounds, device)
    given = list(problem.tensors().values())
    saved = {c.name: saved_bytes(c.run, given) for c in admitted if how.needs_grad and c.check != "none"}
    rows = (Row(c.name, timings.get(c.name), found.get(c.name), saved.get(c.name), left_out.get(c.name))
            for c in entered)  # fmt: skip
    return Case(mode, shape, dtype, 2 * how.gemms * math.prod(shape), tuple(rows))


def saved_by_two_layers(activation: str, shape: Shape, device: torch.device) -> int:
    """Return the bytes kept for backward by a fused layer that feeds a linear: what a hidden layer costs."""
    p = Problem.random(shape, torch.float32, device).requiring_grad("x", "weight", "bias")
    head = torch.zeros(8, shape[2], device=device, requires_grad=True)

    def run() -> Tensor:
        hidden = torchadx.functional.linear(p.x, p.weight, p.bias, activation)
        return torchadx.functional.linear(hidden, head)

    return saved_bytes(run, [*p.tensors().values(), head])
