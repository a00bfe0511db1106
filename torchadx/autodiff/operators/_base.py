"""The contract of a linear operator, and what follows from it."""

from __future__ import annotations

import abc
from typing import Any, overload

import torch


class LinearOperator(abc.ABC):
    """A real ``m`` x ``n`` matrix that is known by its products alone.

    A subclass gives its shape, dtype and device to ``__init__`` and implements ``_matmat`` and ``_rmatmat``, which may
    rely on arguments of the right shape, dtype and device. All the rest comes from here.

    Args:
        shape: ``(m, n)``: the operator takes vectors of ``n`` elements to vectors of ``m``.
        dtype: A real floating point dtype, that of all its vectors.
        device: Of all its vectors.

    Raises:
        TypeError: The dtype is not a real floating point one.
        ValueError: The shape is not a pair of lengths.

    >>> class Diagonal(LinearOperator):
    ...     def __init__(self, entries):
    ...         super().__init__((len(entries), len(entries)), entries.dtype, entries.device)
    ...         self.entries = entries
    ...     def _matmat(self, V):
    ...         return self.entries[:, None] * V
    ...     _rmatmat = _matmat
    >>> D = Diagonal(torch.tensor([1.0, 2.0]))
    >>> D @ torch.tensor([1.0, 1.0])
    tensor([1., 2.])
    >>> (2 * D + D @ D).dense()
    tensor([[3., 0.],
            [0., 8.]])
    """

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device | str) -> None:
        if len(shape) != 2 or any(length < 0 for length in shape):
            raise ValueError(f"shape: got {tuple(shape)}, expected (m, n), two lengths of zero or more")
        if not dtype.is_floating_point:
            raise TypeError(f"dtype: got {dtype}, expected a real floating point dtype")
        self._shape = (int(shape[0]), int(shape[1]))
        self._dtype = dtype
        self._device = torch.device(device)

    @abc.abstractmethod
    def _matmat(self, V: torch.Tensor) -> torch.Tensor:
        """``A @ V``: ``(n, k)`` to ``(m, k)``."""

    @abc.abstractmethod
    def _rmatmat(self, U: torch.Tensor) -> torch.Tensor:
        """``A.T @ U``: ``(m, k)`` to ``(n, k)``."""

    @property
    def shape(self) -> tuple[int, int]:
        """``(m, n)``."""
        return self._shape

    @property
    def dtype(self) -> torch.dtype:
        """Of every vector it takes and gives."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """Of every vector it takes and gives."""
        return self._device

    @property
    def notes(self) -> tuple[str, ...]:
        """How products were had where it was not the usual way, so far."""
        return ()

    def matvec(self, v: torch.Tensor) -> torch.Tensor:
        """``A @ v``.

        Args:
            v: Vector of shape ``(n,)``.

        Returns:
            Vector of shape ``(m,)``.

        Raises:
            TypeError: Not a tensor, or one of another dtype.
            ValueError: Another shape or device.
        """
        self._check("matvec", v, (self.shape[1],))
        return self._matmat(v[:, None])[:, 0]

    def rmatvec(self, u: torch.Tensor) -> torch.Tensor:
        """``A.T @ u``.

        Args:
            u: Vector of shape ``(m,)``.

        Returns:
            Vector of shape ``(n,)``.

        Raises:
            TypeError: Not a tensor, or one of another dtype.
            ValueError: Another shape or device.
        """
        self._check("rmatvec", u, (self.shape[0],))
        return self._rmatmat(u[:, None])[:, 0]

    def matmat(self, V: torch.Tensor) -> torch.Tensor:
        """``A @ V``.

        Args:
            V: Matrix of shape ``(n, k)``, any ``k``.

        Returns:
            Matrix of shape ``(m, k)``.

        Raises:
            TypeError: Not a tensor, or one of another dtype.
            ValueError: Another shape or device.
        """
        self._check("matmat", V, (self.shape[1], None))
        return self._matmat(V) if V.shape[1] else V.new_zeros(self.shape[0], 0)

    def rmatmat(self, U: torch.Tensor) -> torch.Tensor:
        """``A.T @ U``.

        Args:
            U: Matrix of shape ``(m, k)``, any ``k``.

        Returns:
            Matrix of shape ``(n, k)``.

        Raises:
            TypeError: Not a tensor, or one of another dtype.
            ValueError: Another shape or device.
        """
        self._check("rmatmat", U, (self.shape[0], None))
        return self._rmatmat(U) if U.shape[1] else U.new_zeros(self.shape[1], 0)

    @property
    def T(self) -> LinearOperator:
        """The transpose, without any work."""
        from torchadx.autodiff.operators._algebra import TransposedOperator

        return TransposedOperator(self)

    @property
    def H(self) -> LinearOperator:
        """The adjoint: of a real operator, the transpose."""
        return self.T

    def dense(self) -> torch.Tensor:
        """The matrix of shape ``(m, n)``, from ``min(m, n)`` products on the side that needs fewer."""
        rows, columns = self.shape
        basis = torch.eye(min(rows, columns), dtype=self.dtype, device=self.device)
        return self.rmatmat(basis).T if rows < columns else self.matmat(basis)

    def to_scipy(self) -> Any:
        """As ``scipy.sparse.linalg.LinearOperator``, for ``cg``, ``lsqr``, ``eigsh``, ``svds`` ..., on NumPy arrays.

        Arrays are brought to the operator's dtype and device, and products back.

        Raises:
            ModuleNotFoundError: SciPy is not installed.
            TypeError: NumPy does not have the operator's dtype (bfloat16).
        """
        from torchadx.autodiff.operators._scipy import to_scipy

        return to_scipy(self)

    @overload
    def __matmul__(self, other: torch.Tensor) -> torch.Tensor: ...

    @overload
    def __matmul__(self, other: LinearOperator) -> LinearOperator: ...

    def __matmul__(self, other: torch.Tensor | LinearOperator) -> torch.Tensor | LinearOperator:
        from torchadx.autodiff.operators._algebra import ProductOperator

        if isinstance(other, LinearOperator):
            return ProductOperator(self, other)
        if not isinstance(other, torch.Tensor):
            return NotImplemented
        return self.matvec(other) if other.ndim == 1 else self.matmat(other)

    def __rmatmul__(self, other: torch.Tensor) -> torch.Tensor:
        if not isinstance(other, torch.Tensor):
            return NotImplemented
        return self.rmatvec(other) if other.ndim == 1 else self.rmatmat(other.mT).mT

    def __add__(self, other: LinearOperator) -> LinearOperator:
        from torchadx.autodiff.operators._algebra import SumOperator

        return SumOperator(self, other) if isinstance(other, LinearOperator) else NotImplemented

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        return self + (-other) if isinstance(other, LinearOperator) else NotImplemented

    def __mul__(self, scalar: float) -> LinearOperator:
        from torchadx.autodiff.operators._algebra import ScaledOperator

        # a boolean is an int to Python, and a mistake here
        if isinstance(scalar, bool) or not isinstance(scalar, (int, float)):
            return NotImplemented
        return ScaledOperator(self, float(scalar))

    __rmul__ = __mul__

    def __truediv__(self, scalar: float) -> LinearOperator:
        return self * (1 / scalar) if isinstance(scalar, (int, float)) else NotImplemented

    def __neg__(self) -> LinearOperator:
        return self * -1.0

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype}, device={self.device})"

    def _check(self, method: str, given: torch.Tensor, shape: tuple[int | None, ...]) -> None:
        """Raise unless ``given`` fits; ``None`` in ``shape`` stands for any length."""
        if not isinstance(given, torch.Tensor):
            raise TypeError(f"{method}: got {type(given).__name__}, expected a tensor of {self.dtype}")
        if given.ndim != len(shape) or any(n not in (None, got) for n, got in zip(shape, given.shape, strict=True)):
            expected = f"({', '.join('k' if n is None else str(n) for n in shape)}{',' if len(shape) == 1 else ''})"
            raise ValueError(
                f"{method}: got shape {tuple(given.shape)}, expected {expected}: the operator's shape is {self.shape}"
            )
        if given.dtype != self.dtype:
            raise TypeError(f"{method}: got {given.dtype}, expected {self.dtype}; convert it with .to({self.dtype})")
        if given.device.type != self.device.type or self.device.index not in (None, given.device.index):
            raise ValueError(f"{method}: got a tensor on {given.device}, expected one on {self.device}; move it there")
