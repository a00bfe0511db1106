"""Look at a function before its derivative is planned: record it, check it, or settle for differentiating it whole."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from torchadx.autodiff._chain import Chain, blocked, chain
from torchadx.autodiff._errors import DerivativeError
from torchadx.autodiff._planner import Mode
from torchadx.autodiff._problem import Problem, check_independent
from torchadx.autodiff._program import Program
from torchadx.autodiff._pure import Pure, largest_chunk
from torchadx.autodiff._rates import Rates
from torchadx.autodiff._record import UntraceableError, record, replay
from torchadx.ops import outside_transforms

RANDOM = (
    "f draws random numbers (dropout in train mode, noise), so that its derivative is one of a draw: call .eval() on "
    'the module, draw outside and pass the numbers in, or ask for one draw for all directions with randomness="same"'
)


@dataclasses.dataclass(frozen=True)
class Options:
    """What the caller may choose; see :func:`torchadx.autodiff.jacobian`."""

    mode: Mode = "auto"
    chunk: int | None = None
    limit: float = math.inf
    randomness: str = "error"
    rates: Rates | None = None


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A function that is ready to be planned: as a chain, or whole.

    Attributes:
        chain: Its operations; ``None`` if it cannot be recorded.
        pure: What differentiates it whole, if it cannot.
        mode: ``"forward"`` or ``"reverse"``, if it cannot.
        notes: What is worth knowing.
    """

    chain: Chain | None
    pure: Pure | None
    mode: str
    notes: tuple[str, ...]


def prepare(problem: Problem, tensors: Sequence[Tensor], options: Options) -> Prepared:
    """Record a function and check that its derivative is well defined.

    Args:
        problem: What is asked for.
        tensors: Flat tensors to look at it with, all samples.
        options: What the caller chose.

    Raises:
        DerivativeError: It is not, or ``options.mode`` needs a recording that cannot be had.
    """
    sample = one_sample(tensors, problem)
    try:
        if not outside_transforms():
            raise UntraceableError(
                "it is called inside a transform of torch.func or a forward level, whose tensors no recording sees"
            )
        program = _program(problem, sample)
        if program.random and options.randomness != "same":
            raise DerivativeError(RANDOM)
        notes = _stops(program, problem)
        _check_elsewhere(problem, program, sample)
    except UntraceableError as why:
        return _whole(problem, sample, options, str(why))
    if problem.batched:
        _check_mixing(problem, tensors, program)
    if problem.gradient:
        values = program
        gradient = functools.partial(problem.gradient_of, lambda *given: replay(values, given))
        program = record(gradient, sample, problem.module)
    found = chain(program, [program.inputs[position] for position in problem.wrt])
    return Prepared(found, None, "forward", (*notes, *_independent(found)))


def one_sample(tensors: Sequence[Tensor], problem: Problem) -> list[Tensor]:
    """Return the tensors of the first sample, and what all share."""
    count = problem.split(tensors)
    return [tensor[0] if position < count else tensor for position, tensor in enumerate(tensors)]


def _program(problem: Problem, sample: Sequence[Tensor]) -> Program:
    try:
        return record(problem.outputs, sample, problem.module)
    except NotImplementedError as error:
        raise UntraceableError(f"it does what no recording sees ({str(error).splitlines()[0]})") from error
    except (ValueError, RuntimeError) as error:
        if not problem.batched or isinstance(error, DerivativeError):
            raise
        raise DerivativeError(
            f"batched=True: f fails on a single sample, so that per-sample Jacobians are not defined ({error}). Batch "
            "norm in train mode mixes samples: call .eval(). Tensors that differ by sample must be arguments."
        ) from error


def _stops(program: Program, problem: Problem) -> list[str]:
    """Say what stops derivatives on purpose.

    Raises:
        DerivativeError: Modes disagree about what is stopped.
    """
    notes = []
    for call in blocked(program, [program.inputs[position] for position in problem.wrt]):
        if call.blocked != "detach":
            raise DerivativeError(
                f"f computes under {call.blocked} at {call.line} what depends on its input and reaches its output: "
                "reverse mode would take it for a constant, forward mode would not. Leave the context, or write "
                ".detach() where a stop-gradient is meant."
            )
        notes.append(f"detach at {call.line} stops derivatives")
    return notes


def _check_elsewhere(problem: Problem, program: Program, sample: Sequence[Tensor]) -> None:
    """Compare function and recording at a second point: values that left unseen would have stayed what they were.

    Raises:
        UntraceableError: They differ.
    """
    if program.random:
        return
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        moved = [
            x + 0.01 * x * torch.rand(x.shape, generator=generator).to(x) if x.is_floating_point() else x.clone()
            for x in sample
        ]
        recorded = program.run(*moved)
        for expected, got in zip(problem.outputs(*moved), recorded, strict=True):
            scale = got.abs().max().nan_to_num(0.0, 0.0, 0.0).item() if got.numel() else 0.0
            tolerance = 1e-2 if got.dtype.itemsize < 4 else 1e-3 if got.dtype.itemsize < 8 else 1e-8
            if not torch.allclose(expected, got, tolerance, tolerance * scale, equal_nan=True):
                raise UntraceableError("what was recorded computes something else at another point")


def _check_mixing(problem: Problem, tensors: Sequence[Tensor], program: Program) -> None:
    with torch.no_grad():
        apart = torch.func.vmap(program.run, problem.dims(tensors), randomness="same")(*tensors)
        if not program.random:
            check_independent(problem.whole(*tensors), apart)


def _independent(found: Chain) -> list[str]:
    """Say which outputs the inputs do not reach."""
    live, outputs = set(found.frontiers[-1]), found.program.outputs
    dead = [number for number, output in enumerate(outputs) if output not in live]
    if not dead:
        return []
    if len(outputs) == 1:
        return ["the output does not depend on the inputs: zeros"]
    return [f"outputs that do not depend on the inputs ({', '.join(map(str, dead))}): zeros"]


def _whole(problem: Problem, sample: Sequence[Tensor], options: Options, why: str) -> Prepared:
    """Settle for a pure mode of torch.func over the whole function."""
    if options.mode == "mixed":
        raise DerivativeError(f'mode="mixed" needs f to be recorded, and it cannot be: {why}')
    outputs = sum(output.numel() for output in _values(problem, sample, options))
    inputs = sum(sample[position].numel() for position in problem.wrt)
    outputs *= inputs if problem.gradient else 1
    adjoint = options.mode == "reverse" or (options.mode == "auto" and outputs <= 2 * inputs)
    chunk = options.chunk or max(inputs, outputs, 1)
    if options.limit < math.inf:
        itemsize = max(tensor.dtype.itemsize for tensor in sample)
        chunk = min(chunk, largest_chunk(options.limit, inputs, outputs, itemsize))
    flat = functools.partial(problem.gradient_of, problem.outputs) if problem.gradient else problem.outputs
    split = range(problem.split(sample)) if problem.batched else None
    notes = []
    if not adjoint:
        hole = Pure(flat, problem.wrt, False, chunk, None).hole(sample)
        if hole and options.mode == "forward":
            raise DerivativeError(f'mode="forward" is not to be had: {hole}. Take mode="reverse" or "auto".')
        adjoint = bool(hole)
        notes = [f"reverse mode, because {hole}"] if hole else []
    mode = "reverse" if adjoint else "forward"
    notes.insert(0, f"f is not taken apart: {why}. {mode.capitalize()} mode of torch.func differentiates it whole")
    return Prepared(None, Pure(flat, problem.wrt, adjoint, chunk, split), mode, tuple(notes))


def _values(problem: Problem, sample: Sequence[Tensor], options: Options) -> list[Tensor]:
    before = torch.get_rng_state()
    with torch.random.fork_rng([]), torch.no_grad():
        values = problem.outputs(*(tensor.clone() for tensor in sample))
        if options.randomness != "same" and not torch.equal(before, torch.get_rng_state()):
            raise DerivativeError(RANDOM)
    return values
