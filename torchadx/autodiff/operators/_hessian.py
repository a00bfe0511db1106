"""The Hessian of a scalar function at a point, by its products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from torchadx.autodiff._arguments import require_scalar
from torchadx.autodiff.operators._base import LinearOperator
from torchadx.autodiff.operators._point import Point
from torchadx.autodiff.operators._sides import Chunk, Sides, require_chunk


class SymmetricOperator(LinearOperator):
    """One that is its own transpose."""

    def _rmatmat(self, U: torch.Tensor) -> torch.Tensor:
        return self._matmat(U)

    @property
    def T(self) -> LinearOperator:
        return self


class HessianOperator(SymmetricOperator):
    """See :func:`hessian_operator`."""

    def __init__(self, point: Point, chunk: Chunk) -> None:
        require_scalar(point.output())
        length = point.x.numel()
        super().__init__((length, length), point.x.dtype, point.x.device)
        gradient = torch.func.grad(lambda x: point(x).squeeze(0))
        self._sides = Sides(gradient, point, length, chunk=chunk, symmetric=True)

    def _matmat(self, V: torch.Tensor) -> torch.Tensor:
        return self._sides.push(V)

    @property
    def notes(self) -> tuple[str, ...]:
        return self._sides.notes


def hessian_operator(
    f: Callable[..., Any], x: Any, *, args: Sequence[Any] = (), chunk: Chunk = "auto"
) -> LinearOperator:
    """The Hessian of scalar ``f`` at ``x`` without its matrix.

    Products are forward over reverse, ``torch.func.linearize`` of the gradient under ``vmap``; reverse over reverse
    where forward mode has a hole or ``f`` draws random numbers. That is made at the first product and kept. What
    :func:`jacobian_operator` says of copies, random numbers, graphs, modes and attention holds here too. The operator
    is symmetric: its transpose is itself.

    Args:
        f: ``f(x, *args)``: one tensor of shape ``()``.
        x: Where; a tree of tensors, flattened in leaf order.
        args: Further arguments of ``f``, constant.
        chunk: Columns at once. ``"auto"`` takes as many as hold at most 64 MiB on both sides together.

    Returns:
        Operator of shape ``(n, n)``, of the dtype and on the device of ``x``.

    Raises:
        TypeError: ``x`` is not made of real floating point tensors of one dtype, ``f`` returns something else than a
            tensor of it, or ``chunk`` is no number.
        ValueError: ``f`` returns more than one number, no tensor in ``x``, several devices, or ``chunk`` below 1.
        DerivativeError: As for :func:`jacobian_operator`.

    >>> H = hessian_operator(lambda x: x.prod(), torch.tensor([1.0, 2.0, 3.0]))
    >>> H @ torch.tensor([1.0, 0.0, 0.0])
    tensor([0., 3., 2.])
    >>> H.T is H
    True
    """
    require_chunk(chunk)
    return HessianOperator(Point(f, x, args), chunk)
