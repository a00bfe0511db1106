"""Operators made of operators; nothing is multiplied before a product is asked for."""

from __future__ import annotations

import torch

from torchadx.autodiff.operators._base import LinearOperator


def _require_alike(what: str, left: LinearOperator, right: LinearOperator) -> None:
    if left.dtype != right.dtype:
        raise TypeError(f"{what}: got {left.dtype} and {right.dtype}, expected one dtype; make them of equal dtype")
    if left.device != right.device:
        raise ValueError(f"{what}: got {left.device} and {right.device}, expected one device; make them on one device")


class TransposedOperator(LinearOperator):
    """``A.T``; its transpose is ``A`` again."""

    def __init__(self, operator: LinearOperator) -> None:
        super().__init__((operator.shape[1], operator.shape[0]), operator.dtype, operator.device)
        self._operator = operator

    def _matmat(self, V: torch.Tensor) -> torch.Tensor:
        return self._operator._rmatmat(V)

    def _rmatmat(self, U: torch.Tensor) -> torch.Tensor:
        return self._operator._matmat(U)

    @property
    def T(self) -> LinearOperator:
        return self._operator

    def dense(self) -> torch.Tensor:
        return self._operator.dense().T

    @property
    def notes(self) -> tuple[str, ...]:
        return self._operator.notes


class ProductOperator(LinearOperator):
    """``A @ B``: first ``B``, then ``A``."""

    def __init__(self, left: LinearOperator, right: LinearOperator) -> None:
        if left.shape[1] != right.shape[0]:
            raise ValueError(
                f"product of operators: got shapes {left.shape} and {right.shape}, expected the {left.shape[1]} "
                f"columns of the first to be the rows of the second, not {right.shape[0]}"
            )
        _require_alike("product of operators", left, right)
        super().__init__((left.shape[0], right.shape[1]), left.dtype, left.device)
        self._left, self._right = left, right

    def _matmat(self, V: torch.Tensor) -> torch.Tensor:
        return self._left._matmat(self._right._matmat(V))

    def _rmatmat(self, U: torch.Tensor) -> torch.Tensor:
        return self._right._rmatmat(self._left._rmatmat(U))

    @property
    def T(self) -> LinearOperator:
        return ProductOperator(self._right.T, self._left.T)

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._left.notes + self._right.notes))


class SumOperator(LinearOperator):
    """``A + B``."""

    def __init__(self, left: LinearOperator, right: LinearOperator) -> None:
        if left.shape != right.shape:
            raise ValueError(f"sum of operators: got shapes {left.shape} and {right.shape}, expected equal shapes")
        _require_alike("sum of operators", left, right)
        super().__init__(left.shape, left.dtype, left.device)
        self._left, self._right = left, right

    def _matmat(self, V: torch.Tensor) -> torch.Tensor:
        return self._left._matmat(V) + self._right._matmat(V)

    def _rmatmat(self, U: torch.Tensor) -> torch.Tensor:
        return self._left._rmatmat(U) + self._right._rmatmat(U)

    @property
    def T(self) -> LinearOperator:
        return SumOperator(self._left.T, self._right.T)

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._left.notes + self._right.notes))


class ScaledOperator(LinearOperator):
    """``scale * A``."""

    def __init__(self, operator: LinearOperator, scale: float) -> None:
        super().__init__(operator.shape, operator.dtype, operator.device)
        self._operator, self._scale = operator, scale

    def _matmat(self, V: torch.Tensor) -> torch.Tensor:
        return self._operator._matmat(V) * self._scale

    def _rmatmat(self, U: torch.Tensor) -> torch.Tensor:
        return self._operator._rmatmat(U) * self._scale

    @property
    def T(self) -> LinearOperator:
        return ScaledOperator(self._operator.T, self._scale)

    @property
    def notes(self) -> tuple[str, ...]:
        return self._operator.notes
