"""A plan: how one Jacobian is computed, why so, and the means to do it."""

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torchadx.autodiff import _explain, _planner
from torchadx.autodiff._blocks import split
from torchadx.autodiff._chain import Chain
from torchadx.autodiff._errors import DerivativeError
from torchadx.autodiff._evaluate import Evaluator
from torchadx.autodiff._prepare import Options, one_sample, prepare
from torchadx.autodiff._problem import Problem
from torchadx.autodiff._progress import bar
from torchadx.autodiff._pure import Pure
from torchadx.autodiff._rates import rates
from torchadx.autodiff._run import Runner, alike
from torchadx.autodiff._schedule import Move
from torchadx.autodiff._watch import differentiating, looping_quietly
from torchadx.autodiff.operators import FactoredOperator
from torchadx.ops import outside_transforms

Signature = tuple[tuple[torch.Size, torch.dtype, torch.device], ...]


class JacobianPlan:
    """How a Jacobian or a Hessian is computed: made by :func:`plan_jacobian` or :func:`plan_hessian`, called to do it.

    A plan holds for arguments of the shapes, dtypes and devices that it was made with. Like a compiled function it is
    of the operations that ``f`` did then: parameters and buffers of a module are read anew at every call, other
    captured tensors are held by reference, and what ``f`` decides in Python stays as it was (``module.training`` is
    checked).

    A plan can be pickled; what comes back has no function until :meth:`bind` gives it one.

    Attributes:
        mode: ``"forward"``, ``"reverse"`` or ``"mixed"``.
        notes: What is worth knowing, such as operations that are swept or outputs that do not depend on the input.
        traced: Whether the function could be recorded; if not it is differentiated whole.
    """

    def __init__(self, problem: Problem, options: Options, signature: Signature) -> None:
        self.notes: tuple[str, ...] = ()
        self.traced = False
        self.mode = "reverse"
        self.decision: _planner.Decision | None = None
        self.measured: tuple[float, ...] = ()
        self._options = options
        self._signature = signature
        self._problem: Problem | None = problem
        self._statement: Problem | None = None
        self._chain: Chain | None = None
        self._pure: Pure | None = None
        self._runners: dict[bool, Runner] = {}
        self._modules = _modules(problem)
        self._training = [module.training for module in self._modules]

    @property
    def seconds(self) -> float:
        """Predicted seconds; not a number for a function that could not be recorded."""
        return math.nan if self.decision is None else self.decision.seconds

    @property
    def peak_bytes(self) -> float:
        """Bytes predicted to be alive at once beside arguments and result; see :attr:`seconds`."""
        return math.nan if self.decision is None else self.decision.peak

    def __call__(self, *args: Any, factored: bool = False, progress: bool = False) -> Any:
        """Compute the derivative at new values.

        Args:
            args: Arguments of ``f``, of the shapes, dtypes and devices of the plan.
            factored: Return a :class:`FactoredOperator` in place of a dense tensor.
            progress: Show a bar over the directions that are moved.

        Returns:
            What :func:`jacobian` or :func:`hessian` returns.

        Raises:
            DerivativeError: The plan has no function, see :meth:`bind`; or it cannot be factored.
            ValueError: Arguments of another structure, shape, dtype or device.
        """
        problem = self._bound()
        tensors = problem.tensors(args)
        self._check(tensors)
        with differentiating(), _without_autocast(tensors[0].device.type if tensors else "cpu"):
            tensors = [tensor.clone() if tensor.is_inference() else tensor for tensor in tensors]
            with bar(self._directions() if progress else 0) as tick:
                if factored:
                    return self._factored(tensors, tick)
                if self._pure is not None:
                    return problem.assemble(self._pure(tensors, tick))
                return problem.assemble(self._blocks(tensors, tick))

    def bind(self, f: Callable[..., Any]) -> "JacobianPlan":
        """Return the same plan for ``f``, whose operations must be those that the plan was made for.

        Raises:
            ValueError: They are not.
        """
        statement = self._problem or self._statement
        assert statement is not None
        problem = dataclasses.replace(statement, f=f)
        generator = torch.Generator().manual_seed(0)
        tensors = [
            torch.rand(shape, generator=generator).to(device, dtype)
            if dtype.is_floating_point
            else torch.zeros(shape, dtype=dtype, device=device)
            for shape, dtype, device in self._signature
        ]
        bound = JacobianPlan(problem, self._options, self._signature)
        with differentiating():
            prepared = prepare(problem, tensors, self._options)
        if (prepared.chain is not None) != self.traced or not _same_chain(prepared.chain, self.decision):
            raise ValueError("bind: the operations of this function are not those that the plan was made for")
        bound._chain, bound._pure, bound.traced = prepared.chain, prepared.pure, self.traced
        bound.mode, bound.notes, bound.decision, bound.measured = self.mode, self.notes, self.decision, self.measured
        return bound

    def explain(self) -> _explain.Explanation:
        """Return a table of segments and what is done with each, costs, alternatives and reasons; print it."""
        return _explain.explain(self)

    def draw(self, path: str | os.PathLike[str] | None = None) -> str | None:
        """Draw the chain: widths, cuts, and what is done where.

        Args:
            path: A file to write, ``.svg`` or ``.png`` (which needs matplotlib); ``None`` returns SVG text.

        Raises:
            ValueError: Another suffix.
        """
        from torchadx.autodiff import _draw

        return _draw.draw(self, path)

    def __repr__(self) -> str:
        """Say the mode and what is predicted."""
        return f"JacobianPlan(mode={self.mode!r}, traced={self.traced}, bound={self._problem is not None})"

    def __getstate__(self) -> dict[str, Any]:
        """Leave the function behind, and what belongs to it."""
        problem = self._problem
        statement = None if problem is None else dataclasses.replace(problem, f=_nothing)
        without: dict[str, Any] = {"_modules": (), "_problem": None, "_chain": None, "_pure": None, "_runners": {}}
        return self.__dict__ | without | {"_statement": statement or self._statement}

    def _bound(self) -> Problem:
        if self._problem is None:
            raise DerivativeError("this plan has no function, because it was pickled without: call plan.bind(f) first")
        return self._problem

    def _check(self, tensors: Sequence[Tensor]) -> None:
        found = signature(tensors)
        for position, (got, expected) in enumerate(zip(found, self._signature, strict=True)):
            if got != expected:
                names = " and ".join(f"{tuple(shape)} {dtype} on {device}" for shape, dtype, device in (got, expected))
                raise ValueError(
                    f"tensor {position} of the arguments differs from what the plan was made for: got and expected "
                    f"{names}. Make another plan, or use jacfn(f), which keeps one for each."
                )
        if [module.training for module in self._modules] != self._training:
            raise ValueError(
                "the module was switched between train() and eval() since the plan was made: make another plan"
            )

    def _directions(self) -> int:
        if self.decision is None:
            return 0
        layout, total = self.decision.layout, 0
        for move in self.decision.moves:
            if move.action in ("forward", "push"):
                total += layout.widths[move.start]
            elif move.action in ("reverse", "pull"):
                total += layout.widths[move.end]
        return total

    def _blocks(self, tensors: Sequence[Tensor], tick: Callable[[int], object]) -> list[list[Tensor]]:
        chain = self._chain
        assert chain is not None
        matrix: Tensor | None = None
        if self.decision is not None:
            (matrix,) = self._stack(tensors, self.decision.moves, tick)
        return split(chain, matrix, tensors, self._bound())

    def _stack(self, tensors: Sequence[Tensor], moves: Sequence[Move], tick: Callable[[int], object]) -> list[Tensor]:
        chain, problem = self._chain, self._bound()
        assert chain is not None
        run, tracked = self._runner(moves), _tracked(tensors, chain)
        if problem.batched:
            return self._each(tensors, run, tracked, tick)
        stack, seconds = run(tensors, tracked, tick)
        self.measured = tuple(seconds)
        return stack

    def _each(
        self, tensors: Sequence[Tensor], run: Runner, tracked: bool, tick: Callable[[int], object]
    ) -> list[Tensor]:
        """Compute the factors for every sample; a last product is one of batches, which no transform has to see."""
        measured: list[float] = []

        def one(*sample: Tensor) -> list[Tensor]:
            stack, seconds = run(sample, True, tick, last_product=False)
            measured.extend(seconds)
            return stack

        with looping_quietly():
            stack = list(torch.func.vmap(one, self._bound().dims(tensors), randomness="same")(*tensors))
        begin = time.perf_counter()
        if run.ends_with_product:
            left, right = alike(stack.pop(), stack.pop())
            stack.append(left @ right if tracked else run.product(left, right))
            measured.append(time.perf_counter() - begin)
        self.measured = tuple(measured)
        return stack

    def _runner(self, moves: Sequence[Move]) -> Runner:
        decision, chain = self.decision, self._chain
        assert decision is not None
        assert chain is not None
        factored = moves is not decision.moves
        if factored not in self._runners:
            self._runners[factored] = Runner(chain, decision.layout.places, moves, decision.recompute)
        return self._runners[factored]

    def _factored(self, tensors: Sequence[Tensor], tick: Callable[[int], object]) -> FactoredOperator:
        problem = self._bound()
        if not self.traced or problem.batched:
            why = "samples are batched" if problem.batched else "f could not be recorded; see plan.explain()"
            raise DerivativeError(f"factored=True is not to be had here: {why}. Use jacobian_operator(f, x) instead.")
        chain, decision = self._chain, self.decision
        assert chain is not None
        if len(problem.wrt) != 1 or len(chain.program.outputs) != 1:
            raise DerivativeError(
                f"factored=True is for one input and one output: got {len(problem.wrt)} and "
                f"{len(chain.program.outputs)}. Use jacobian_operator(f, x) instead."
            )
        if decision is None or not decision.factors:
            ((block,),) = self._blocks(tensors, tick)
            size = tensors[problem.wrt[0]].numel()
            return FactoredOperator([block.reshape(-1, size)])
        return FactoredOperator(self._stack(tensors, decision.factors, tick)[::-1])


def _same_chain(found: Chain | None, decision: _planner.Decision | None) -> bool:
    if found is None or decision is None:
        return True
    layout = decision.layout
    return len(found.nodes) == layout.places[-1] and layout.widths == tuple(map(found.width, layout.places))


def signature(tensors: Sequence[Tensor]) -> Signature:
    """Return what a plan depends on."""
    return tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in tensors)


def _without_autocast(device: str) -> contextlib.AbstractContextManager[Any]:
    """Casts that autocast made were recorded; made again they would be others."""
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


def _nothing(*args: Any) -> None:
    raise AssertionError("a plan without a function was called")


def _modules(problem: Problem) -> tuple[torch.nn.Module, ...]:
    return () if problem.module is None else tuple(problem.module.modules())


def _tracked(tensors: Sequence[Tensor], chain: Chain) -> bool:
    """Whether the result will be differentiated, or is part of a transform."""
    if not outside_transforms():
        return True
    if not torch.is_grad_enabled():
        return False
    constants = (constant.read() for constant in chain.program.constants.values())
    return any(tensor.requires_grad for tensor in (*tensors, *constants))


def make(problem: Problem, args: Sequence[Any], options: Options) -> JacobianPlan:
    """Plan a derivative; see :func:`torchadx.autodiff.plan_jacobian`."""
    with differentiating():
        tensors = [t.clone() if t.is_inference() else t for t in problem.tensors(args)]
        plan = JacobianPlan(problem, options, signature(tensors))
        prepared = prepare(problem, tensors, options)
        plan._chain, plan._pure = prepared.chain, prepared.pure
        plan.traced, plan.mode, plan.notes = prepared.chain is not None, prepared.mode, prepared.notes
        if prepared.chain is not None and _has_numbers(prepared.chain):
            _decide(plan, prepared.chain, tensors)
    return plan


def _has_numbers(found: Chain) -> bool:
    """Whether anything moves between its ends."""
    return bool(found.nodes) and found.width(0) > 0 and found.width(len(found.nodes)) > 0


def _decide(plan: JacobianPlan, found: Chain, tensors: Sequence[Tensor]) -> None:
    problem, options = plan._bound(), plan._options
    sample = one_sample(tensors, problem)
    with torch.no_grad():
        links = Evaluator(found).links(sample)
    plan.notes += tuple(dict.fromkeys(part.note for link in links for part in link.parts if part.note))
    inputs = [sample[position] for position in problem.wrt]
    dtype = max((x.dtype for x in inputs), key=lambda dtype: dtype.itemsize)
    speeds = options.rates or rates(inputs[0].device, dtype)
    layout = _planner.lay_out(found, links, speeds, dtype.itemsize)
    samples = tensors[0].shape[0] if problem.batched else 1
    plan.decision = _planner.decide(layout, speeds, dtype.itemsize, options.mode, options.chunk, options.limit, samples)
    plan.mode = plan.decision.mode
