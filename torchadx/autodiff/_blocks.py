"""From one matrix between the two ends of a chain to a block for every output and input."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchadx.autodiff._chain import Chain
from torchadx.autodiff._problem import Problem


def split(chain: Chain, matrix: Tensor | None, tensors: Sequence[Tensor], problem: Problem) -> list[list[Tensor]]:
    """Cut the Jacobian between the two ends of the chain into a block for every output and input."""
    metas, program = chain.program.metas, chain.program
    rows, columns = _offsets(chain, chain.frontiers[-1]), _offsets(chain, chain.frontiers[0])
    samples = (tensors[0].shape[0],) if problem.batched else ()
    blocks = []
    for output in program.outputs:
        row = []
        for number in (program.inputs[position] for position in problem.wrt):
            y, x = metas[output], metas[number]
            shape = (*samples, *y.shape, *x.shape)
            if output not in rows or number not in columns:
                block = torch.zeros(shape, dtype=x.dtype, device=x.device)
            elif matrix is None:
                block = _identity_block(output == number, y.shape.numel(), x)
                block = block.expand(*samples, *block.shape).reshape(shape)
            else:
                piece = matrix
                if len(rows) > 1:
                    piece = piece.narrow(-2, rows[output], y.shape.numel())
                if len(columns) > 1:
                    piece = piece.narrow(-1, columns[number], x.shape.numel())
                block = piece.reshape(shape).to(x.dtype)
            row.append(block)
        blocks.append(row)
    return blocks


def _identity_block(same: bool, size: int, x: Any) -> Tensor:
    if same:
        return torch.eye(size, dtype=x.dtype, device=x.device)
    return torch.zeros(size, x.shape.numel(), dtype=x.dtype, device=x.device)


def _offsets(chain: Chain, frontier: Sequence[int]) -> dict[int, int]:
    offsets, offset = {}, 0
    for value in frontier:
        offsets[value] = offset
        offset += chain.program.metas[value].shape.numel()
    return offsets
