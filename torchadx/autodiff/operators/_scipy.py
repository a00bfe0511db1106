"""An operator of tensors as SciPy's operator of arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from torchadx.autodiff.operators._base import LinearOperator


def to_scipy(operator: LinearOperator) -> Any:
    try:
        import numpy
        import scipy.sparse.linalg
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'to_scipy needs SciPy ({error}); install it with: pip install "torchadx[scipy]"', name=error.name
        ) from error
    if operator.dtype == torch.bfloat16:
        raise TypeError("to_scipy: got an operator of torch.bfloat16, which NumPy does not have; use torch.float32")

    def on_arrays(product: Callable[[torch.Tensor], torch.Tensor], ndim: int) -> Callable[[Any], Any]:
        def apply(array: Any) -> Any:
            if numpy.iscomplexobj(array):
                raise TypeError(f"got an array of {array.dtype}, expected a real one: the operator is real")
            # SciPy hands vectors over as columns too; it gives the result the shape that it wants
            given = numpy.ascontiguousarray(array.reshape(-1) if ndim == 1 else array)
            tensor = torch.tensor(given, dtype=operator.dtype, device=operator.device)
            return product(tensor).detach().cpu().numpy()

        return apply

    return scipy.sparse.linalg.LinearOperator(
        operator.shape,
        matvec=on_arrays(operator.matvec, 1),
        rmatvec=on_arrays(operator.rmatvec, 1),
        matmat=on_arrays(operator.matmat, 2),
        rmatmat=on_arrays(operator.rmatmat, 2),
        dtype=torch.empty(0, dtype=operator.dtype).numpy().dtype,
    )
