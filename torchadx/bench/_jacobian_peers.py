"""Everyone who computes the Jacobians: torch.func, torch.autograd.functional, both compiled, and torchadx."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jacfwd, jacrev, vmap

from torchadx import autodiff
from torchadx.bench._jacobian_cases import Problem
from torchadx.bench._jacobian_first_call import FirstCall

Step = Callable[[Tensor], Tensor]

#: of which the faster one takes part
CHUNKS = (64, 256)
JAX = ("jax:jacrev", "jax:jacfwd")
EAGER = ("jacrev", "jacfwd", "jacrev-chunked", "autograd-reverse", "autograd-forward")
NAMES = (*EAGER, *(f"compile:{name}" for name in EAGER), *JAX)
#: what stands before a colon
GROUPS = ("compile", "jax")


@dataclasses.dataclass(frozen=True)
class Peer:
    """One way to compute the Jacobian of a problem.

    Attributes:
        name: Shown in tables.
        group: As in :class:`~torchadx.bench._jacobian_results.Row`.
        run: Computes it.
        detail: What was chosen.
        prepared: Seconds that it took to prepare ``run``, if that was before its first call.
        counted: Whether its allocations can be seen.
    """

    name: str
    group: str
    run: Callable[[], Tensor]
    detail: str = ""
    prepared: float | None = None
    counted: bool = True

    @property
    def is_rival(self) -> bool:
        """Whether it is not torchadx's."""
        return self.group in ("eager", "compiled")

    @property
    def prepared_in(self) -> float | None:
        """Seconds that it took to prepare ``run``, wherever that was."""
        return self.run.seconds if isinstance(self.run, FirstCall) else self.prepared


def reference(problem: Problem, f: nn.Module, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the Jacobian in a dtype, by reverse mode in small chunks."""
    kept = {name: parameter.to(dtype) for name, parameter in f.state_dict().items()}

    def in_dtype(x: Tensor) -> Tensor:
        return torch.func.functional_call(f, kept, (x,))

    return _maybe_batched(problem, jacrev(in_dtype, chunk_size=CHUNKS[0]))(x.to(dtype))


def eager(problem: Problem, f: nn.Module, x: Tensor) -> Iterator[Peer]:
    """Yield what PyTorch offers."""
    steps = {name: (step, "") for name, step in _steps(problem, f, f(x).dim()).items()}
    outputs = f(x).numel() // (len(x) if problem.batched else 1)
    chunks = [chunk for chunk in CHUNKS if chunk < outputs]
    if chunks:
        chunked = {chunk: _maybe_batched(problem, jacrev(f, chunk_size=chunk)) for chunk in chunks}
        best = min(chunked, key=lambda chunk: _seconds(chunked[chunk], x))
        steps["jacrev-chunked"] = (chunked[best], f"{best} at once")
    for name in EAGER:
        if name in steps:
            step, detail = steps[name]
            yield Peer(name, "eager", functools.partial(step, x), detail)


def compiled(peers: list[Peer], limit: float) -> Iterator[Peer]:
    """Yield each of ``peers`` under torch.compile, which begins with its first call and may take ``limit`` seconds."""
    for peer in peers:
        step = torch.compile(_without_arguments(peer.run), fullgraph=True, dynamic=False)
        yield Peer(f"compile:{peer.name}", "compiled", FirstCall(step, limit), peer.detail)


def jitted(problem: Problem, f: nn.Module, x: Tensor, limit: float) -> Iterator[Peer]:
    """Yield JAX's; a first call raises when there is no JAX, or no way to say ``f`` in it."""
    for name in JAX:
        run = _Jitted(name.partition(":")[2], problem, f, x)
        yield Peer(name, "compiled", FirstCall(run, limit), counted=False)


class _Jitted:
    def __init__(self, how: str, problem: Problem, f: nn.Module, x: Tensor) -> None:
        self._given = (how, f, x, problem.batched)
        self._run: Callable[[], Tensor] | None = None

    def __call__(self) -> Tensor:
        if self._run is None:
            from torchadx.bench import _jacobian_jax  # only where it takes part: JAX is not needed otherwise

            self._run = _jacobian_jax.step(*self._given)
        return self._run()


def ours(problem: Problem, f: nn.Module, x: Tensor, memory: str | int | None = None) -> tuple[Peer, Any]:
    """Return torchadx and its plan, planned twice: the first one may be the first of the process."""
    plan(problem, f, x, memory)
    planned, seconds = plan(problem, f, x, memory)
    name, group = (f"torchadx in {memory}", "limited") if memory else ("torchadx", "torchadx")
    return Peer(name, group, functools.partial(planned, x), planned.mode, seconds), planned


def plan(problem: Problem, f: nn.Module, x: Tensor, memory: str | int | None = None) -> tuple[Any, float]:
    """Return a plan, and the seconds that it took from the trace to the plan."""
    start = time.perf_counter()
    planned = autodiff.plan_jacobian(f, x, batched=problem.batched, memory=memory)
    return planned, time.perf_counter() - start


def _steps(problem: Problem, f: nn.Module, dims: int) -> dict[str, Step]:
    return {
        "jacrev": _maybe_batched(problem, jacrev(f)),
        "jacfwd": _maybe_batched(problem, jacfwd(f)),
        "autograd-reverse": _functional(problem, f, "reverse-mode", dims),
        "autograd-forward": _functional(problem, f, "forward-mode", dims),
    }


def _maybe_batched(problem: Problem, jacobian: Step) -> Step:
    return vmap(jacobian) if problem.batched else jacobian


def _functional(problem: Problem, f: nn.Module, strategy: str, dims: int) -> Step:
    jacobian = torch.autograd.functional.jacobian
    if not problem.batched:
        return lambda x: jacobian(f, x, vectorize=True, strategy=strategy)
    # samples do not mix: the Jacobian of the sum over them has theirs side by side
    return lambda x: jacobian(lambda x: f(x).sum(0), x, vectorize=True, strategy=strategy).movedim(dims - 1, 0)


def _seconds(step: Step, x: Tensor) -> float:
    step(x)
    start = time.perf_counter()
    step(x)
    return time.perf_counter() - start


def _without_arguments(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Return a function, which the compiler takes, where it does not take a partial one."""
    return lambda: run()
