"""The generalized Gauss-Newton matrix of a loss of a model, by its products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from torchadx.autodiff.operators._base import LinearOperator
from torchadx.autodiff.operators._hessian import HessianOperator, SymmetricOperator
from torchadx.autodiff.operators._jacobian import JacobianOperator
from torchadx.autodiff.operators._point import Point
from torchadx.autodiff.operators._sides import Chunk, require_chunk


class GGNOperator(SymmetricOperator):
    """See :func:`ggn_operator`."""

    def __init__(self, jacobian: LinearOperator, curvature: LinearOperator) -> None:
        super().__init__((jacobian.shape[1], jacobian.shape[1]), jacobian.dtype, jacobian.device)
        self._jacobian, self._curvature = jacobian, curvature

    def _matmat(self, V: torch.Tensor) -> torch.Tensor:
        return self._jacobian._rmatmat(self._curvature._matmat(self._jacobian._matmat(V)))

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._jacobian.notes + self._curvature.notes))


def ggn_operator(
    f: Callable[..., Any],
    loss: Callable[[Any], torch.Tensor],
    x: Any,
    *,
    args: Sequence[Any] = (),
    chunk: Chunk = "auto",
) -> LinearOperator:
    """The generalized Gauss-Newton matrix ``J^T H J`` of ``loss(f(x))`` without its matrix.

    ``J`` is the Jacobian of ``f`` at ``x``, ``H`` the Hessian of ``loss`` at ``f(x)`` (Schraudolph 2002, "Fast
    curvature matrix-vector products for second-order gradient descent"). It leaves out the curvature of ``f`` from
    the Hessian of the whole, and is positive semidefinite where ``loss`` is convex. For a loss that
    is a negative log-likelihood of an exponential family in its natural parameters, it is the Fisher matrix. It is
    symmetric: its transpose is itself.

    Args:
        f: ``f(x, *args)``: a tree of tensors, the predictions.
        loss: ``loss(f(x, *args))``: one tensor of shape ``()``; targets are captured.
        x: Where; a tree of tensors, flattened in leaf order; of a model its parameters.
        args: Further arguments of ``f``, constant.
        chunk: Columns at once, as for :func:`jacobian_operator`.

    Returns:
        Operator of shape ``(n, n)``, of the dtype and on the device of ``x``.

    Raises:
        TypeError: As for :func:`jacobian_operator` and :func:`hessian_operator`.
        ValueError: As for them: ``loss`` returns more than one number, above all.
        DerivativeError: As for :func:`jacobian_operator`.

    >>> model = torch.nn.Linear(3, 2)
    >>> data, labels = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    >>> G = ggn_operator(
    ...     lambda parameters: torch.func.functional_call(model, parameters, (data,)),
    ...     lambda logits: torch.nn.functional.cross_entropy(logits, labels),
    ...     dict(model.named_parameters()),
    ... )
    >>> G.shape
    (8, 8)
    >>> v = torch.ones(8)
    >>> bool(v @ (G @ v) > -1e-6)
    True
    """
    require_chunk(chunk)
    point = Point(f, x, args)
    return GGNOperator(JacobianOperator(point, chunk), HessianOperator(Point(loss, point.output(), ()), chunk))
