"""Carry out a schedule: evaluate the function once, differentiate each operation there, move directions, multiply."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torchadx import dispatch
from torchadx.autodiff._chain import Chain, Link
from torchadx.autodiff._evaluate import Evaluator
from torchadx.autodiff._pages import Pages
from torchadx.autodiff._schedule import Move

Tick = Callable[[int], object]


class Runner:
    """Computes the Jacobian between the two ends of a chain, at any point.

    Args:
        chain: What to differentiate.
        places: Nodes before which the chain is cut: segment i is nodes ``places[i]`` to ``places[i + 1] - 1``.
        moves: What to do.
        recompute: Evaluate each stretch anew when its turn comes, holding values at its ends only in between.
    """

    def __init__(self, chain: Chain, places: Sequence[int], moves: Sequence[Move], recompute: bool) -> None:
        self._chain = chain
        self._places = tuple(places)
        self._moves = tuple(moves)
        self._recompute = recompute
        self._evaluator = Evaluator(chain)
        self._pages = Pages()

    @property
    def ends_with_product(self) -> bool:
        """Whether the last move multiplies."""
        return self._moves[-1].action == "multiply"

    def __call__(
        self, arguments: Sequence[Tensor], tracked: bool, tick: Tick, last_product: bool = True
    ) -> tuple[list[Tensor], list[float]]:
        """Compute the factors of the Jacobian at a point.

        Args:
            arguments: All inputs of the program.
            tracked: Whether somebody differentiates the result, or transforms it: nothing is written in place.
            tick: Called with how many directions were moved.
            last_product: Whether to do a product that comes last; its factors stay on the stack if not.

        Returns:
            What is on the stack in the end, the leftmost factor last, each ``(rows, columns)``; and the seconds of
            each move, preceded by those of the evaluation.
        """
        begin = time.perf_counter()
        tape = _Tape(self._evaluator, arguments, self._recompute)
        stack: list[Tensor] = []
        seconds = [self._since(begin, arguments)]
        for move in self._moves if last_product or not self.ends_with_product else self._moves[:-1]:
            begin = time.perf_counter()
            self._make(move, stack, tape, tracked, tick)
            seconds.append(self._since(begin, arguments))
        return stack, seconds

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        """Multiply the two factors of a result, or batches of them, that nobody differentiates."""
        out = self._pages.empty((*left.shape[:-1], right.shape[-1]), left.dtype, left.device)
        return torch.matmul(left, right, out=out)

    @staticmethod
    def _since(begin: float, arguments: Sequence[Tensor]) -> float:
        if arguments:
            dispatch.synchronize(arguments[0].device)
        return time.perf_counter() - begin

    def _make(self, move: Move, stack: list[Tensor], tape: "_Tape", tracked: bool, tick: Tick) -> None:
        if move.action == "multiply":
            left, right = alike(stack.pop(), stack.pop())
            is_result = move is self._moves[-1]
            stack.append(self.product(left, right) if is_result and not tracked else left @ right)
            return
        first, last = self._places[move.first], self._places[move.last]
        if move.action == "known":
            stack.append(_known(tape.links(first, last)))
            return
        sweep = _Sweep(self._chain, first, last, move, tape, tracked, tick)
        stack.append(sweep.run(stack.pop() if move.action in ("push", "pull") else None))


def alike(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Bring two Jacobians to one dtype, where the function changes it on the way."""
    dtype = torch.promote_types(left.dtype, right.dtype)
    return left.to(dtype), right.to(dtype)


def _known(links: Sequence[Link]) -> Tensor:
    (matrix,) = (link.parts[0].matrix for link in links if link.parts[0].kind != "reshape")
    assert matrix is not None
    return matrix()


class _Tape:
    """Derivatives of every operation at one point, made at once or when they are asked for."""

    def __init__(self, evaluator: Evaluator, arguments: Sequence[Tensor], recompute: bool) -> None:
        self._evaluator = evaluator
        self._arguments = arguments
        self._links = None if recompute else evaluator.links(arguments)

    def links(self, first: int, last: int) -> Sequence[Link]:
        """Return the derivatives of nodes first..last-1."""
        if self._links is None:
            return self._evaluator.links(self._arguments, first, last)
        return self._links[first:last]


def identity_rows(start: int, end: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return rows start..end-1 of the identity, and zeros for rows that it does not have; nothing is set in place."""
    if (start, end) == (0, size):
        return torch.eye(size, dtype=dtype, device=device)
    rows, columns = torch.arange(start, end, device=device), torch.arange(size, device=device)
    return (rows[:, None] == columns).to(dtype)


class _Sweep:
    """Moves directions through nodes first..last-1, in chunks."""

    def __init__(self, chain: Chain, first: int, last: int, move: Move, tape: _Tape, tracked: bool, tick: Tick) -> None:
        self._adjoint = move.action in ("reverse", "pull")
        self._chunk = max(move.chunk, 1)
        self._tracked = tracked
        self._tick = tick
        self._links = list(tape.links(first, last))
        self._first = first
        self._chain = chain
        self._metas = chain.program.metas
        ends = chain.frontiers[first], chain.frontiers[last]
        self._begin, self._end = reversed(ends) if self._adjoint else ends

    def run(self, block: Tensor | None) -> Tensor:
        """Return the Jacobian, ``(rows, columns)``; ``block`` is that to go on from, or none for the identity."""
        rows = self._rows(block)
        count = self._width(self._begin) if rows is None else rows.shape[0]
        if self._chunk >= count:
            out = self._flat(self._move(self._seeds(rows, 0, count)), count)
        elif self._tracked:
            out = torch.cat([self._part(rows, start, count) for start in range(0, count, self._chunk)])
        else:
            out = self._in_place(rows, count)
        return out if self._adjoint else out.mT

    def _rows(self, block: Tensor | None) -> Tensor | None:
        """Directions as rows, where they are at hand: of a Jacobian, or of the known matrix that comes first."""
        if block is not None:
            return block if self._adjoint else block.mT
        numbers = range(len(self._links))
        for number in reversed(numbers) if self._adjoint else numbers:
            link = self._links[number]
            if not self._chain.alone(self._first + number, link):
                return None
            (part,) = link.parts
            if part.matrix is not None:
                (edge,) = link.node.edges
                self._begin = (edge.source if self._adjoint else edge.target,)
                if self._adjoint:
                    self._links = self._links[:number]
                else:
                    self._links, self._first = self._links[number + 1 :], self._first + number + 1
                return part.matrix() if self._adjoint else part.matrix().mT
            if part.kind != "reshape":
                return None
        return None

    def _in_place(self, rows: Tensor | None, count: int) -> Tensor:
        out: Tensor | None = None
        for start in range(0, count, self._chunk):
            part = self._part(rows, start, count)
            if out is None:
                out = part.new_empty(count, part.shape[1])
            out[start : start + part.shape[0]] = part
        assert out is not None
        return out

    def _part(self, rows: Tensor | None, start: int, count: int) -> Tensor:
        end = min(start + self._chunk, count)
        return self._flat(self._move(self._seeds(rows, start, end)), end - start)

    def _seeds(self, rows: Tensor | None, start: int, end: int) -> dict[int, Tensor]:
        """Directions start..end-1 as one batch for every tensor where they begin."""
        if rows is None:
            return self._identity(start, end)
        whole = rows if (start, end) == (0, rows.shape[0]) else rows[start:end]
        seeds, offset = {}, 0
        for value in self._begin:
            shape = self._metas[value].shape
            piece = whole if len(self._begin) == 1 else whole.narrow(1, offset, shape.numel())
            seeds[value] = piece.reshape(end - start, *shape)
            offset += shape.numel()
        return seeds

    def _identity(self, start: int, end: int) -> dict[int, Tensor]:
        seeds, offset = {}, 0
        for value in self._begin:
            meta = self._metas[value]
            size = meta.shape.numel()
            if start < offset + size and offset < end:
                seed = identity_rows(start - offset, end - offset, size, meta.dtype, meta.device)
                seeds[value] = seed.reshape(end - start, *meta.shape)
            offset += size
        return seeds

    def _move(self, directions: dict[int, Tensor]) -> dict[int, Tensor]:
        if self._adjoint:
            for link in reversed(self._links):
                _pull(link, directions)
        else:
            for number, link in enumerate(self._links, self._first):
                _push(link, directions)
                for value in self._chain.ending[number]:
                    directions.pop(value, None)
        self._tick(next(iter(directions.values())).shape[0] if directions else 0)
        return directions

    def _flat(self, directions: dict[int, Tensor], count: int) -> Tensor:
        """Lay what arrived in one row a direction."""
        if len(self._end) == 1 and self._end[0] in directions:
            return directions[self._end[0]].reshape(count, -1)
        pieces = []
        for value in self._end:
            meta, moved = self._metas[value], directions.get(value)
            if moved is None:
                moved = torch.zeros(count, *meta.shape, dtype=meta.dtype, device=meta.device)
            pieces.append(moved.reshape(count, -1))
        return torch.cat(pieces, 1)

    def _width(self, frontier: Sequence[int]) -> int:
        return sum(self._metas[value].shape.numel() for value in frontier)


def _push(link: Link, tangents: dict[int, Tensor]) -> None:
    if link.join is not None:
        found = {edge.wrt: tangents[edge.source] for edge in link.node.edges if edge.source in tangents}
        if found:
            tangents[link.node.edges[0].target] = link.join(found)
        return
    for edge, part in zip(link.node.edges, link.parts, strict=True):
        tangent = tangents.get(edge.source)
        if tangent is not None:
            _add(tangents, edge.target, part.push(tangent))


def _pull(link: Link, cotangents: dict[int, Tensor]) -> None:
    for edge, part in zip(link.node.edges, link.parts, strict=True):
        cotangent = cotangents.get(edge.target)
        if cotangent is not None:
            _add(cotangents, edge.source, part.pull(cotangent))
    for edge in link.node.edges:
        cotangents.pop(edge.target, None)


def _add(directions: dict[int, Tensor], value: int, more: Tensor) -> None:
    known = directions.get(value)
    directions[value] = more if known is None else known + more
