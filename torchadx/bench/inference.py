"""The cases of ``python -m torchadx.bench inference``: whole modules in inference mode, as they are and wrapped."""

import copy
import gc
import math
import random
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from torchadx.bench import _inference_contenders
from torchadx.bench._harness import Contender, Timing, WrongResultError, admit, race, summarize
from torchadx.bench._inference_cases import Problem
from torchadx.bench._inference_contenders import Entrant
from torchadx.bench._inference_results import Case, Row

#: most relative error of those that compute in bfloat16
BOUND = 0.01
#: calls before anything is timed: routes are measured, weights are prepared, traces are specialized
WARM_UP = 5


def measure(problem: Problem, device: torch.device, rounds: int, without: Collection[str] = ()) -> Case:
    """Check, then time one case. Everyone runs inside inference mode.

    Args:
        problem: What to serve, in fp32.
        device: Where to run.
        rounds: Interleaved rounds.
        without: Groups of contenders to leave out.

    Raises:
        WrongResultError: torchadx is further from the float64 reference than the house rule allows, or than
            ``BOUND`` in bfloat16.
    """
    torch.compiler.reset()  # every case begins without the compiled graphs of the ones before it
    module, x = problem.build(device)
    exact = copy.deepcopy(module).double()
    no_bfloat16 = _inference_contenders.no_bfloat16(device)
    everyone = [entrant for entrant in _inference_contenders.entrants(module, x) if entrant.group not in without]
    entered = [entrant for entrant in everyone if not (entrant.lowered and no_bfloat16)]
    with torch.inference_mode():
        admitted, errors, left_out = check(entered, exact(x.double()))
        for contender in admitted:
            for _ in range(WARM_UP):
                contender.run()
        timings = race_warm(admitted, rounds, device)
    left_out |= {entrant.name: no_bfloat16 for entrant in everyone if entrant.lowered and no_bfloat16}
    rows = tuple(_row(entrant, timings, errors, left_out) for entrant in everyone)
    return Case(problem.name, tuple(x.shape), sum(weight.nbytes for weight in module.parameters()), rows)


def check(entered: Sequence[Entrant], reference: Tensor) -> tuple[list[Contender], dict[str, float], dict[str, str]]:
    """Compare everyone with float64: by the house rule in fp32, by the norm of the difference in bfloat16.

    Args:
        entered: Eager PyTorch first.
        reference: What the module computes in float64.

    Returns:
        The contenders to time, the relative error of each, and the reason for each one left out.

    Raises:
        WrongResultError: torchadx is wrong.
    """
    exact = [entrant.contender for entrant in entered if not entrant.lowered]
    admitted, _, left_out = admit(exact, exact[0], reference)
    admitted += [entrant.contender for entrant in entered if entrant.lowered]
    errors = {contender.name: relative_error(contender.run(), reference) for contender in admitted}
    for entrant in entered:
        if entrant.lowered and errors[entrant.name] > BOUND:
            raise WrongResultError(
                f"{entrant.name}: relative error {errors[entrant.name]:.1e}, allowed {BOUND}; nothing was timed"
            )
    return admitted, errors, left_out


def race_warm(contenders: Sequence[Contender], rounds: int, device: torch.device) -> dict[str, Timing]:
    """Time the contenders in interleaved rounds, each of which begins with calls that are not counted.

    A server calls one module over and over, and finds what its caches hold of the weights. Here the others came in
    between, and where a call takes longer than a sample there is no second one to meet them warm.
    """
    order = random.Random(0)
    taken: dict[str, list[Timing]] = {contender.name: [] for contender in contenders}
    gc.freeze()  # every round collects garbage, and need not look through all of torch for it
    try:
        for _ in range(rounds):
            for contender in order.sample(contenders, len(contenders)):
                taken[contender.name].append(race([contender], 1, device)[contender.name])
    finally:
        gc.unfreeze()
    return {
        name: summarize([timing.median for timing in timings], timings[0].calls_per_round)
        for name, timings in taken.items()
    }


def relative_error(output: Tensor, reference: Tensor) -> float:
    """Return the norm of the difference over the norm of the reference; infinite for shapes that differ, and NaN."""
    if output.shape != reference.shape:
        return math.inf
    error = ((output.double() - reference).norm() / reference.norm()).item()
    return math.inf if math.isnan(error) else error


def _row(entrant: Entrant, timings: dict[str, Timing], errors: dict[str, float], left_out: dict[str, str]) -> Row:
    name, wrapper = entrant.name, entrant.wrapper
    prepared, explanation = None, None
    if wrapper is not None and name in timings:
        prepared, explanation = wrapper.prepared_bytes, str(wrapper.explain())
    return Row(name, timings.get(name), errors.get(name), prepared, explanation, left_out.get(name))
