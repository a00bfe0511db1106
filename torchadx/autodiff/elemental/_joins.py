"""Results that are put together from tangents of several arguments in one pass, rather than by adding up full ones."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
Join = Callable[[Any, Any, Mapping[tuple[int, ...], Tensor]], Tensor]


def _pieces(items: Any, tangents: Mapping[tuple[int, ...], Tensor]) -> list[Tensor]:
    count = next(iter(tangents.values())).shape[0]
    return [
        tangents[0, k] if (0, k) in tangents else item.new_zeros(()).expand(count, *item.shape)
        for k, item in enumerate(items)
    ]


def _cat(args: Any, kwargs: Any, tangents: Mapping[tuple[int, ...], Tensor]) -> Tensor:
    # legacy: empty vectors are skipped, whatever the rank of the others
    items = [item if item.shape != (0,) else None for item in args[0]]
    rank = next(item.dim() for item in items if item is not None)
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % rank
    kept = [piece for piece, item in zip(_pieces(args[0], tangents), items, strict=True) if item is not None]
    return torch.cat(kept, dim + 1)


def _stack(args: Any, kwargs: Any, tangents: Mapping[tuple[int, ...], Tensor]) -> Tensor:
    rank = args[0][0].dim() + 1
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % rank
    return torch.stack(_pieces(args[0], tangents), dim + 1)


#: By overload: (arguments, keyword arguments, tangents by position of the argument) to the tangent of the result.
JOINS: dict[Any, Join] = {aten.cat.default: _cat, aten.stack.default: _stack}
