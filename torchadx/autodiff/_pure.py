"""Jacobians of functions that cannot be recorded: forward or reverse mode of torch.func over the whole function."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

from torchadx.autodiff._errors import DerivativeError
from torchadx.autodiff._problem import of_inputs
from torchadx.autodiff._run import identity_rows
from torchadx.autodiff._watch import first_line, is_forward_hole, looping_quietly, translated, watched

Blocks = list[list[Tensor]]


class Pure:
    """Computes a Jacobian by moving the whole identity through a function.

    Args:
        flat: Takes tensors, returns a list of tensors.
        wrt: Positions of the inputs to differentiate by.
        adjoint: Reverse mode, rather than forward mode.
        chunk: Directions at once; 1 does without vmap.
        split: Positions of the tensors whose leading dimension is that of independent samples; ``None`` if there are
            none.
    """

    def __init__(
        self,
        flat: Callable[..., list[Tensor]],
        wrt: Sequence[int],
        adjoint: bool,
        chunk: int,
        split: Sequence[int] | None,
    ) -> None:
        self._flat = watched(flat)
        self._wrt = tuple(wrt)
        self._adjoint = adjoint
        self._chunk = chunk
        self._split = split

    def hole(self, tensors: Sequence[Tensor]) -> str:
        """Say why forward mode cannot differentiate the function; empty if it can."""
        inputs = tuple(tensors[position] for position in self._wrt)
        try:
            with translated(), torch.no_grad():
                jvp(of_inputs(self._flat, tensors, self._wrt), inputs, tuple(map(torch.zeros_like, inputs)))
        except NotImplementedError as error:
            if is_forward_hole(error):
                return first_line(error)
            raise
        return ""

    def __call__(self, tensors: Sequence[Tensor], tick: Callable[[int], object]) -> Blocks:
        """Return the blocks of the Jacobian by output and input."""
        with translated():
            if self._split is None:
                return self._one(tensors, tick)
            count = tensors[self._split[0]].shape[0]
            samples = [
                self._one([t[n] if k in self._split else t for k, t in enumerate(tensors)], tick) for n in range(count)
            ]
        return [
            [torch.stack([sample[row][column] for sample in samples]) for column in range(len(self._wrt))]
            for row in range(len(samples[0]))
        ]

    def _one(self, tensors: Sequence[Tensor], tick: Callable[[int], object]) -> Blocks:
        inputs = tuple(tensors[position] for position in self._wrt)
        move = self._reverse if self._adjoint else self._forward
        return move(of_inputs(self._flat, tensors, self._wrt), inputs, tick)

    def _reverse(self, f: Callable[..., tuple[Tensor, ...]], inputs: tuple[Tensor, ...], tick: Callable) -> Blocks:
        outputs, pull = vjp(f, *inputs)  # type: ignore[misc]
        rows = _moved(lambda *c: pull(tuple(c)), outputs, self._chunk, tick)
        return [
            [part.reshape((*output.shape, *x.shape)) for part, x in zip(row, inputs, strict=True)]
            for row, output in zip(rows, outputs, strict=True)
        ]

    def _forward(self, f: Callable[..., tuple[Tensor, ...]], inputs: tuple[Tensor, ...], tick: Callable) -> Blocks:
        columns = _moved(lambda *t: jvp(f, inputs, tuple(t))[1], inputs, self._chunk, tick)
        return [
            [
                part.reshape(x.numel(), -1).mT.reshape((*part.shape[1:], *x.shape))
                for part, x in zip(parts, inputs, strict=True)
            ]
            for parts in zip(*columns, strict=True)
        ]


def _moved(
    move: Callable[..., tuple[Tensor, ...]], ends: Sequence[Tensor], chunk: int, tick: Callable[[int], object]
) -> list[list[Tensor]]:
    """Move the identity of each tensor in ``ends``, zeros for the others; what arrives, directions leading."""
    found = []
    for position, end in enumerate(ends):
        parts = []
        for start in range(0, end.numel(), chunk):
            size = min(chunk, end.numel() - start)
            seeds = [torch.zeros(size, *other.shape, dtype=other.dtype, device=other.device) for other in ends]
            rows = identity_rows(start, start + size, end.numel(), end.dtype, end.device)
            seeds[position] = rows.reshape(size, *end.shape)
            parts.append(_batch(move, seeds))
            tick(size)
        found.append([torch.cat(pieces) for pieces in zip(*parts, strict=True)])
    return found


def _batch(move: Callable[..., tuple[Tensor, ...]], seeds: Sequence[Tensor]) -> tuple[Tensor, ...]:
    if seeds[0].shape[0] > 1:
        with looping_quietly():
            return vmap(move, randomness="same")(*seeds)
    return tuple(result[None] for result in move(*(seed[0] for seed in seeds)))


def largest_chunk(limit: float, inputs: int, outputs: int, itemsize: int) -> int:
    """Return how many directions fit into a limit, by what stands at both ends of the function.

    Raises:
        DerivativeError: Not even one.
    """
    each = 8 * itemsize * (inputs + outputs)
    if limit < each:
        raise DerivativeError(f"memory= is too little for one direction of this function: {each} bytes are needed")
    return int(min(limit / each, 1 << 30))
