"""The Jacobian of a function at a point, by its products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from torchadx.autodiff.operators._base import LinearOperator
from torchadx.autodiff.operators._point import Point
from torchadx.autodiff.operators._sides import Chunk, Sides, require_chunk


class JacobianOperator(LinearOperator):
    """See :func:`jacobian_operator`."""

    def __init__(self, point: Point, chunk: Chunk) -> None:
        super().__init__((point.y.numel(), point.x.numel()), point.x.dtype, point.x.device)
        self._sides = Sides(point, point, point.y.numel(), chunk=chunk, checked=True)

    def _matmat(self, V: torch.Tensor) -> torch.Tensor:
        return self._sides.push(V)

    def _rmatmat(self, U: torch.Tensor) -> torch.Tensor:
        return self._sides.pull(U)

    @property
    def notes(self) -> tuple[str, ...]:
        return self._sides.notes


def jacobian_operator(
    f: Callable[..., Any], x: Any, *, args: Sequence[Any] = (), chunk: Chunk = "auto"
) -> LinearOperator:
    """The Jacobian of ``f`` at ``x`` without its matrix.

    ``matmat`` is ``torch.func.linearize`` under ``vmap``, ``rmatmat`` is ``torch.func.vjp`` under ``vmap``. Each is
    made at its first use and kept: later products do not evaluate ``f``. ``f`` is evaluated here once, for its shapes,
    once more at the first ``rmatmat`` and twice at the first ``matmat``. All evaluations draw the same random
    numbers from PyTorch's default generators: with dropout in train mode all products are those of one draw.

    Where forward mode has a hole (or with such random numbers) ``matmat`` differentiates ``u -> J^T u``, linear in
    ``u``, once more: two backward passes made once, then one pass over them a product. Where ``vmap`` has a hole,
    columns are taken one at a time. ``notes`` of the operator says so. Fused attention kernels have no forward
    mode: ``matmat`` evaluates scaled dot-product attention in plain operations.

    Products carry no graph, and ``x`` may require grad or not; grad mode and inference mode around the call do not
    matter. ``x`` is copied; a tensor that ``f`` uses otherwise and that is changed in place later is an error.

    Args:
        f: ``f(x, *args)``; x and what it returns are trees (dicts, tuples, lists) of tensors.
        x: Where. Its tensors, flattened in leaf order, are the ``n`` columns; those of ``f(x, *args)`` the ``m`` rows.
        args: Further arguments of ``f``, constant.
        chunk: Columns at once. ``"auto"`` takes as many as hold at most 64 MiB on both sides together.

    Returns:
        Operator of shape ``(m, n)``, of the dtype and on the device of ``x``.

    Raises:
        TypeError: ``x`` or the output is not made of real floating point tensors of one dtype, or ``chunk`` no number.
        ValueError: No tensor in ``x``, several devices, or ``chunk`` below 1.
        DerivativeError: ``no_grad`` or ``inference_mode`` inside ``f``; ``f`` returns something else each time; at a
            product: a tensor that ``f`` uses has changed, or there is no formula for a derivative.

    >>> model = torch.nn.Linear(3, 2)
    >>> data = torch.ones(4, 3)
    >>> def predict(parameters):
    ...     return torch.func.functional_call(model, parameters, (data,))
    >>> J = jacobian_operator(predict, dict(model.named_parameters()))
    >>> J.shape
    (8, 8)
    >>> J @ torch.ones(8)
    tensor([4., 4., 4., 4., 4., 4., 4., 4.])
    >>> J.T @ torch.ones(8)
    tensor([4., 4., 4., 4., 4., 4., 4., 4.])
    """
    require_chunk(chunk)
    return JacobianOperator(Point(f, x, args), chunk)
