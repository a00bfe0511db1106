"""Time contenders against each other in one run, after checking that they compute the same thing.

Rounds are interleaved (every contender once per round, in a fresh order) so that a machine that slows down slows all
of them down; medians of the rounds are compared. Caches are warm: every contender reads the same tensors each time.
"""

import contextlib
import dataclasses
import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

SECONDS_PER_SAMPLE = 2e-3
WARM_UP_SECONDS = 50e-3


class WrongResultError(AssertionError):
    """A contender's result is further from the float64 reference than the house rule allows."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to compute a case.

    Attributes:
        name: Shown in tables.
        run: Computes the case once; returns tensors, nested in tuples if several.
        check: ``"must"`` ends the benchmark when the result is wrong, ``"may"`` leaves the contender out and reports
            why, ``"none"`` is for bare references that compute less than the case.
    """

    name: str
    run: Callable[[], Any]
    check: Literal["must", "may", "none"] = "must"


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds per call of one contender over all rounds: quartiles, and how they were sampled."""

    q1: float
    median: float
    q3: float
    rounds: int
    calls_per_round: int


def errors(outputs: Any, reference: Any) -> list[float]:
    """Return the largest error of each output against its float64 reference, relative where that exceeds 1."""
    pairs = zip(tree_leaves(outputs), tree_leaves(reference), strict=True)
    return [_error(output, expected) for output, expected in pairs]


def _error(output: Tensor, expected: Tensor) -> float:
    if output.shape != expected.shape:
        return math.inf
    if expected.numel() == 0:
        return 0.0
    scale = expected.abs().max().clamp_min(1.0)
    error = ((output.double() - expected).abs().max() / scale).item()
    return math.inf if math.isnan(error) else error


def admit(
    contenders: Sequence[Contender], baseline: Contender, reference: Any
) -> tuple[list[Contender], dict[str, float], dict[str, str]]:
    """Check every contender by the house rule: error at most twice that of the plain PyTorch route, plus 1e-6.

    Args:
        contenders: Those to check, ``baseline`` among them.
        baseline: The plain PyTorch route in the dtype under test.
        reference: What it should compute, from float64 inputs.

    Returns:
        The contenders to time, the largest error of each that was checked, and the reason for each one left out.

    Raises:
        WrongResultError: A contender with ``check="must"`` is wrong.
    """
    allowed = [2 * error + 1e-6 for error in errors(baseline.run(), reference)]
    admitted, found, left_out = [], {}, {}
    for contender in contenders:
        if contender.check == "none":
            admitted.append(contender)
            continue
        try:
            got = errors(contender.run(), reference)
        except Exception as error:
            if contender.check == "must":
                raise
            left_out[contender.name] = _first_line(error)
            continue
        found[contender.name] = max(got)
        if all(e <= a for e, a in zip(got, allowed, strict=True)):
            admitted.append(contender)
            continue
        complaint = f"wrong result: errors {_list(got)}, allowed {_list(allowed)}"
        if contender.check == "must":
            raise WrongResultError(f"{contender.name}: {complaint}; nothing was timed")
        left_out[contender.name] = complaint
    return admitted, found, left_out


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _list(values: Iterable[float]) -> str:
    return "[" + ", ".join(f"{value:.1e}" for value in values) + "]"


def race(contenders: Sequence[Contender], rounds: int, device: torch.device) -> dict[str, Timing]:
    """Time the contenders in ``rounds`` interleaved rounds, after a warm-up that also sizes the inner loops."""
    order = random.Random(0)
    with _no_garbage_collection():
        calls = {contender.name: _calls_per_sample(contender.run, device) for contender in contenders}
        samples: dict[str, list[float]] = {contender.name: [] for contender in contenders}
        for _ in range(rounds):
            for contender in order.sample(contenders, len(contenders)):
                samples[contender.name].append(_sample(contender.run, calls[contender.name], device))
    return {name: summarize(taken, calls[name]) for name, taken in samples.items()}


def summarize(samples: list[float], calls: int = 1) -> Timing:
    """Return the quartiles of seconds per call, one sample a round."""
    q1, median, q3 = statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else samples * 3
    return Timing(q1, median, q3, len(samples), calls)


def _calls_per_sample(run: Callable[[], Any], device: torch.device) -> int:
    _sample(run, 2, device)
    calls, spent = 1, 0.0
    while spent < WARM_UP_SECONDS:
        seconds = _sample(run, calls, device)
        spent += max(seconds * calls, 1e-3)
        calls = max(1, math.ceil(SECONDS_PER_SAMPLE / max(seconds, 1e-7)))
    return calls


def _sample(run: Callable[[], Any], calls: int, device: torch.device) -> float:
    if device.type == "cuda":
        return _sample_cuda(run, calls)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def _sample_cuda(run: Callable[[], Any], calls: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) * 1e-3 / calls


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def saved_bytes(
    run: Callable[[], Any], inputs: Iterable[Tensor], instead: Callable[[Tensor], Tensor] = lambda tensor: tensor
) -> int:
    """Count the bytes autograd keeps while ``run`` goes forward: each storage once, those of ``inputs`` left out.

    Args:
        run: Goes forward.
        inputs: What others hold anyway.
        instead: Makes of a saved tensor what would be held in its place.
    """
    held: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = instead(tensor).untyped_storage()
        held[storage.data_ptr()] = storage  # kept alive, so that its address is not handed out twice
        return tensor.detach()  # the tensor itself may hold the graph that is to hold it, for ever

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    given = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    return sum(storage.nbytes() for address, storage in held.items() if address not in given)
