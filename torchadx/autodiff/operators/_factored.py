"""A matrix kept as the factors of a product."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torchadx.autodiff.operators._base import LinearOperator


class FactoredOperator(LinearOperator):
    """The product ``factors[0] @ factors[1] @ ...`` of dense matrices that are kept apart.

    With ``D`` of shape ``(m, k)`` and ``E`` of shape ``(k, n)``, a product with a vector costs ``k (m + n)``
    multiplications, and the factors hold as many numbers; the matrix itself would take ``m n`` of both. Products with
    matrices go in the order that multiplies least (:func:`torch.linalg.multi_dot`).

    Products are differentiable by vectors and factors as any matrix product is.

    Args:
        factors: At least one matrix; the columns of each are the rows of the next. One real floating point dtype, one
            device. They are kept as they are, not copied.

    Raises:
        TypeError: A factor that is no tensor, or dtypes that are not one real floating point dtype.
        ValueError: No factors, a factor that is no matrix, shapes that do not chain, or several devices.

    >>> A = FactoredOperator([torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 0.0, 3.0]])])
    >>> A.shape, A.rank_bound, A.nbytes
    ((2, 3), 1, 20)
    >>> A @ torch.ones(3)
    tensor([4., 8.])
    >>> A.dense()
    tensor([[1., 0., 3.],
            [2., 0., 6.]])
    """

    def __init__(self, factors: Sequence[torch.Tensor]) -> None:
        factors = tuple(factors)
        if not factors:
            raise ValueError("factors: got none, expected at least one matrix")
        for place, factor in enumerate(factors):
            if not isinstance(factor, torch.Tensor):
                raise TypeError(f"factors[{place}]: got {type(factor).__name__}, expected a tensor")
            if factor.ndim != 2:
                raise ValueError(f"factors[{place}]: got shape {tuple(factor.shape)}, expected (rows, columns)")
            if factor.dtype != factors[0].dtype:
                raise TypeError(f"factors[{place}]: got {factor.dtype}, expected {factors[0].dtype}, as in factors[0]")
            if factor.device != factors[0].device:
                raise ValueError(f"factors[{place}]: got {factor.device}, expected {factors[0].device}, as factors[0]")
            if place and factors[place - 1].shape[1] != factor.shape[0]:
                raise ValueError(
                    f"factors[{place}]: got shape {tuple(factor.shape)}, expected {factors[place - 1].shape[1]} rows, "
                    f"the columns of factors[{place - 1}]"
                )
        super().__init__((factors[0].shape[0], factors[-1].shape[1]), factors[0].dtype, factors[0].device)
        self._factors = factors

    @property
    def factors(self) -> tuple[torch.Tensor, ...]:
        """The matrices, from the left."""
        return self._factors

    @property
    def rank_bound(self) -> int:
        """The rank is at most this: the least length that the product goes through."""
        return min(min(factor.shape) for factor in self._factors)

    @property
    def nbytes(self) -> int:
        """Bytes of the factors' elements."""
        return sum(factor.numel() * factor.element_size() for factor in self._factors)

    @property
    def T(self) -> FactoredOperator:
        """The transpose, of the same memory: the factors' transposes in reverse order."""
        return FactoredOperator([factor.mT for factor in reversed(self._factors)])

    def dense(self) -> torch.Tensor:
        """The matrix of shape ``(m, n)``, in memory of its own."""
        return _product(self._factors) if len(self._factors) > 1 else self._factors[0].clone()

    def _matmat(self, V: torch.Tensor) -> torch.Tensor:
        return _product((*self._factors, V))

    def _rmatmat(self, U: torch.Tensor) -> torch.Tensor:
        return _product((*(factor.mT for factor in reversed(self._factors)), U))


def _product(matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    """Of two or more, in the cheapest order."""
    return torch.linalg.multi_dot(list(matrices))
