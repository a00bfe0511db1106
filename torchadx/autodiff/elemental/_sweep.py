"""Derivatives of operations that no row knows: one run of torch.func for each batch of directions."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from torchadx.autodiff._watch import looping_quietly, translated
from torchadx.autodiff.elemental._part import Part, Site


def sweep(site: Site) -> Part:
    """Differentiate one operation with ``vmap(jvp)`` and ``vmap(vjp)``."""
    # tangents of expanded tensors would be written to more than once
    f, x = site.function(), site.x.contiguous()
    name = str(site.call.target)

    @functools.cache
    def vjp() -> Callable[[Tensor], Tensor]:
        pull = torch.func.vjp(f, x)[1]
        return lambda c: pull(c)[0]

    def pull(c: Tensor) -> Tensor:
        with translated(), looping_quietly():
            return torch.func.vmap(vjp())(c)

    def push(t: Tensor) -> Tensor:
        with translated(), looping_quietly():
            try:
                return torch.func.vmap(lambda v: torch.func.jvp(f, (x,), (v,))[1])(t)
            except NotImplementedError:
                # without a forward formula: the vjp is linear in its cotangent, and its transpose is the jvp
                zero = torch.zeros_like(site.y)
                transpose = torch.func.vjp(vjp(), zero)[1]
                return torch.func.vmap(lambda v: transpose(v)[0])(t)

    return Part(push, pull, "sweep", site.x.numel() + site.y.numel(), note=f"{name} is swept by torch.func")
