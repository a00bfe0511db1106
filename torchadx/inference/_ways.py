"""How a linear layer can run on a prepared weight: one row each.

A way prepares a copy of the weight ``(out, in)`` and multiplies by it: ``f(x W^T + b)`` for x ``(..., in)``. Nothing
here is differentiated. Which of the ways that serve is used is measured, see ``_weights.py``.
"""

import dataclasses
import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from torchadx import dispatch, functional
from torchadx.activations import Activation


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to run a linear layer.

    Attributes:
        name: Shown by ``explain()`` and kept in the tuning cache.
        serves: Whether it can run where the weight is, in the dtype that the layer computes in.
        prepare: Makes the copy of the weight, in that dtype; ``None`` where the weight itself will do.
        run: ``(x, prepared, bias, activation) -> (..., out)``, all of that dtype.
        available: Whether it may be used now, by what users can switch.
    """

    name: str
    serves: Callable[[Tensor, torch.dtype], bool]
    prepare: Callable[[Tensor, torch.dtype], Tensor] | None
    run: Callable[[Tensor, Tensor, Tensor | None, Activation], Tensor]
    available: Callable[[], bool] = lambda: True


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation) -> Tensor:
    """The layer by PyTorch's own ops on a CPU, and by :func:`torchadx.functional.linear` elsewhere."""
    if dispatch.on_accelerator(x):
        return functional.linear(x, weight, bias, activation)
    return activation.forward(F.linear(x, weight, bias))


# oneDNN packs for a number of rows, and what it packs runs for any
_ROWS = 64


def _pack(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype), _ROWS)


@functools.cache
def _pointwise() -> Callable[..., Tensor]:
    # not every build of PyTorch has it
    return torch.ops.mkldnn._linear_pointwise.default


def _run_packed(x: Tensor, packed: Tensor, bias: Tensor | None, activation: Activation) -> Tensor:
    rows = x if x.dim() > 1 else x.unsqueeze(0)
    attribute, algorithm = activation.onednn or ("none", "")
    # oneDNN takes a bias for contiguous, whatever its strides
    bias = None if bias is None else bias.contiguous()
    y = _pointwise()(rows, packed, bias, attribute, [], algorithm)
    y = y if x.dim() > 1 else y.squeeze(0)
    return y if activation.onednn else activation.forward(y)


def _transpose(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.detach().to(dtype).t().contiguous().t()


# the first that serves is the static choice, where nothing may be measured
WAYS = (
    Way(
        "packed",
        serves=lambda weight, dtype: not dispatch.on_accelerator(weight) and dtype in dispatch.onednn_dtypes(),
        prepare=_pack,
        run=_run_packed,
        available=lambda: bool(torch.backends.mkldnn.enabled),
    ),
    Way(
        "cast",
        serves=lambda weight, dtype: weight.dtype != dtype,
        prepare=lambda weight, dtype: weight.detach().to(dtype),
        run=plain,
    ),
    Way(
        "plain",
        serves=lambda weight, dtype: weight.dtype == dtype,
        prepare=None,
        run=plain,
    ),
    Way(
        "transposed",
        serves=lambda weight, dtype: dispatch.select("linear", weight).backend == "triton",
        prepare=_transpose,
        run=functional.linear,
    ),
)
BY_NAME = {way.name: way for way in WAYS}
