"""Products with the derivative of a map of vectors, from either side, many columns at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch.func import linearize, vjp, vmap

from torchadx.autodiff._errors import DerivativeError
from torchadx.autodiff._watch import first_line
from torchadx.autodiff.operators._point import Point, detached

Chunk = int | Literal["auto"]
Map = Callable[[torch.Tensor], torch.Tensor]

# what the columns of one batch may hold, vectors of both sides; what is between them is not known beforehand
_BATCH_BYTES = 64 * 2**20


def require_chunk(chunk: Chunk) -> None:
    if chunk == "auto":
        return
    if isinstance(chunk, bool) or not isinstance(chunk, int):
        raise TypeError(f'chunk: got {chunk!r}, expected "auto" or a number of columns')
    if chunk < 1:
        raise ValueError(f'chunk: got {chunk}, expected "auto" or at least 1')


class Sides:
    """``push`` multiplies by the derivative of ``function`` at the point, ``pull`` by its transpose.

    Each side is made when it is first used. ``push`` goes through the linearized function. Where forward mode has a
    hole, or where the function draws random numbers (which linearize would draw anew for every product), it goes
    through the derivative of ``u -> J^T u``, which is ``J`` again: double backward.

    Args:
        function: The map of vectors: of the point's ``x``, which has ``n`` elements, to ``m``.
        point: Says where, and that nothing has changed.
        length: ``m``.
        chunk: Columns at once.
        symmetric: The derivative is its own transpose: ``pull`` stands in for a hole in forward mode.
        checked: ``function`` is the point itself: evaluations must agree with its ``y``.
    """

    def __init__(
        self, function: Map, point: Point, length: int, *, chunk: Chunk, symmetric: bool = False, checked: bool = False
    ) -> None:
        self._function, self._point, self._length = function, point, length
        self._chunk, self._symmetric, self._checked = chunk, symmetric, checked
        self._push: Map | None = None
        self._pull: Map | None = None
        self._singly: set[str] = set()
        self._notes: list[str] = []

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self._notes)

    def push(self, V: torch.Tensor) -> torch.Tensor:
        with detached():
            self._point.require_unchanged()
            if self._push is None:
                self._push = self._make_push()
            return self._columns("matmat", self._push, V)

    def pull(self, U: torch.Tensor) -> torch.Tensor:
        with detached():
            self._point.require_unchanged()
            if self._pull is None:
                self._pull = self._make_pull()
            return self._columns("rmatmat", self._pull, U)

    def _make_push(self) -> Map:
        if self._point.draws:
            self._notes.append("f draws random numbers: products go through backward passes over its one evaluation")
            return self._make_backward()
        try:
            with _attention_by_its_formula(), self._point.again(), warnings.catch_warnings():
                # linearize's own note on how it stores what it folds says nothing to a caller
                warnings.filterwarnings("ignore", "Attempted to insert a get_attr Node")
                y, product = linearize(self._function, self._point.x)
                # constants are folded on the first call: now, before anything that f uses can change
                product(torch.zeros_like(self._point.x))
        except (torch.OutOfMemoryError, DerivativeError):
            raise
        except RuntimeError as error:
            self._notes.append(f"no forward mode, products go through backward passes: {first_line(error)}")
            return self._make_backward()
        self._check(y)
        return product

    def _make_backward(self) -> Map:
        """``push`` without forward mode; of a symmetric derivative ``pull`` is that already."""
        try:
            with _attention_by_its_formula():
                product = self._make_pull() if self._symmetric else self._make_double_backward()
            # a formula that is missing is found out by the first product
            product(self._point.x.new_zeros(self._point.x.shape))
        except NotImplementedError as error:
            raise DerivativeError(_no_way(error)) from error
        except RuntimeError as error:
            if "is not implemented" not in str(error):
                raise
            raise DerivativeError(_no_way(error)) from error
        return product

    def _make_double_backward(self) -> Map:
        def pullback(u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y, product = vjp(self._function, self._point.x)  # type: ignore[misc]
            return product(u)[0], y

        with self._point.again():
            _, product, y = vjp(pullback, self._point.x.new_zeros(self._length), has_aux=True)  # type: ignore[misc]
        self._check(y)
        return lambda v: product(v)[0]

    def _make_pull(self) -> Map:
        with self._point.again():
            y, product = vjp(self._function, self._point.x)  # type: ignore[misc]
        self._check(y)
        return lambda u: product(u)[0]

    def _check(self, y: torch.Tensor) -> None:
        if self._checked:
            self._point.require_same(y)

    def _columns(self, name: str, product: Map, V: torch.Tensor) -> torch.Tensor:
        V = V.detach()
        V = V.clone() if V.is_inference() else V
        if name not in self._singly and V.shape[1] > 1:
            try:
                return vmap(product, in_dims=1, out_dims=1, chunk_size=self._chunk_size())(V)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self._singly.add(name)
                self._notes.append(f"{name} takes one column at a time, as vmap has a hole: {first_line(error)}")
        return torch.stack([product(column) for column in V.unbind(1)], 1)

    def _chunk_size(self) -> int:
        if self._chunk != "auto":
            return self._chunk
        column = (self._point.x.numel() + self._length) * self._point.x.element_size()
        return max(1, _BATCH_BYTES // max(1, column))


def _no_way(error: Exception) -> str:
    return (
        f"neither forward mode nor a second backward pass can differentiate the function: {first_line(error)}; "
        "write that operation in terms of others, or give its torch.autograd.Function a jvp"
    )


@contextmanager
def _attention_by_its_formula() -> Iterator[None]:
    """Fused attention kernels have no forward mode and no second derivative; the formula in plain operations has."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        yield
