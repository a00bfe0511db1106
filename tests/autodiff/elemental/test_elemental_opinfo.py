"""Rows of the table against PyTorch, on PyTorch's own samples of every operation that can be recorded."""

import functools
import warnings

import pytest
import torch
from elemental_sites import differentiable, faults, sites
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from torchadx.autodiff._errors import DerivativeError
from torchadx.autodiff._record import UntraceableError

SAMPLES = {torch.float64: 2, torch.complex128: 1}
CHUNK = 40
COUNT = 560


@functools.cache
def operations():
    from torch.testing._internal.common_methods_invocations import op_db

    return [op for op in op_db if op.supports_autograd and not op.name.startswith(("jiterator", "sparse", "to_sparse"))]


def functions(op, dtype):
    """Return the op's samples as functions of floating-point tensors alone, and the tensors."""
    count = SAMPLES[dtype]
    samples = list(op.sample_inputs("cpu", dtype, requires_grad=False))
    for sample in samples[:: max(1, len(samples) // count)][:count]:
        leaves, spec = tree_flatten((sample.input, sample.args, sample.kwargs))
        places = [n for n, leaf in enumerate(leaves) if differentiable(leaf)]

        def f(*xs, leaves=leaves, spec=spec, places=places):
            given = [xs[places.index(n)] if n in places else leaf for n, leaf in enumerate(leaves)]
            first, args, kwargs = tree_unflatten(given, spec)
            return tree_leaves(op(first, *args, **kwargs))

        if places and sum(leaves[n].numel() for n in places) < 2000:
            yield f, [leaves[n] for n in places]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("start", range(0, COUNT, CHUNK))
def test_rows_are_the_derivatives_of_their_operations(start, dtype):
    wrong, checked = [], 0
    for op in operations()[start : start + CHUNK]:
        if dtype not in op.supported_dtypes("cpu"):
            continue
        for f, arguments in functions(op, dtype):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    found = sites(f, *arguments)
                except (UntraceableError, DerivativeError, RuntimeError):
                    # it asks for values, writes in place, or does not run below autograd
                    continue
                for site in found:
                    fault, kind = faults(site)
                    wrong += fault
                    checked += kind not in (None, "sweep")
    assert not wrong, "\n".join(wrong)
    assert checked >= 5


def test_all_operations_are_in_a_chunk():
    assert 500 < len(operations()) <= COUNT
