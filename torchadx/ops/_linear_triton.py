"""The Triton route: each launch by the fastest of its configurations and the ATen route, as measured once a shape.

Same functions as :mod:`torchadx.ops._linear_aten`. Importing this module imports triton.
"""

import functools
from collections.abc import Callable

from torch import Tensor
from triton.runtime.errors import OutOfResources

from torchadx import kernels, tuning
from torchadx.activations import Activation
from torchadx.kernels import Config, untranslatable
from torchadx.ops import _linear_aten as aten
from torchadx.ops._linear_formulas import tangent_batch

__all__ = ["backward", "dual", "dual_cotangents", "forward", "untranslatable"]


def _tuned(
    op: str,
    sizes: tuple[int, int, int],
    like: Tensor,
    flags: str,
    run: Callable[[Config | None], object],
    allow: Callable[[Config], bool] = lambda config: True,
    **more: int,
) -> Config | None:
    """Choose a configuration for ``run``, which takes ``None`` for the ATen route."""
    m, n, k = sizes
    key = tuning.Key(op, like.device, like.dtype, tuning.bucket(m), n, k, flags)
    known = tuning.find(key)
    if known is not None:
        return _config(known)
    capability = kernels.capability(like.device)
    shape = {"m": m, "n": n, "k": k, "itemsize": like.element_size(), "capability": capability} | more
    default = kernels.heuristic(op, **shape)
    if kernels.interpreting():
        return default
    names = ["aten", default.name, *(c.name for c in kernels.configs(op, **shape) if allow(c))]
    chosen = tuning.choose(
        key,
        tuple(dict.fromkeys(names)),
        lambda name: run(_config(name)),
        default.name,
        unusable=(OutOfResources,),
    )
    return _config(chosen)


@functools.cache
def _config(name: str) -> Config | None:
    return None if name == "aten" else Config.parse(name)


def _flags(row: Activation, **present: object) -> str:
    return " ".join([row.name, *(name for name, there in present.items() if there)])


def forward(x: Tensor, w: Tensor, b: Tensor | None, row: Activation, save: bool) -> tuple[Tensor, Tensor | None]:
    """``(y, z)`` for x in rows; the second is ``None`` unless ``save``."""

    def run(config):
        if config is None:
            return aten.forward(x, w, b, row, save)
        return kernels.linear_forward(x, w, b, row, save=save, config=config)

    tensor_descriptors = kernels.persistent_applies(x, w)
    flags = _flags(row, bias=b is not None, save=save, descriptors=tensor_descriptors)
    sizes = (*x.shape[:1], *w.shape)
    return run(_tuned("forward", sizes, x, flags, run, lambda config: tensor_descriptors or not config.persistent))


def backward(gy, gz, x, w, kept, row: Activation, needed) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias, where ``needed``; all of gy, gz, x, kept in rows."""
    g = gz if gy is None else gy
    flags = _flags(row, gy=gy is not None, gz=gz is not None)

    def run_input(config):
        if config is None:
            return aten.backward(gy, gz, None, w, kept, row, (True, False, False))[0]
        return kernels.linear_input_grad(gy, gz, kept, w, row, config=config)

    def run_weight(config):
        if config is None:
            return aten.backward(gy, gz, x, None, kept, row, (False, True, needed[2]))[1:]
        return kernels.linear_weight_grad(gy, gz, kept, x, row, with_bias=needed[2], dtype=x.dtype, config=config)

    rows, out = g.shape
    for_input = needed[0] and _tuned("input_grad", (rows, *w.shape), g, flags, run_input)
    if not needed[1]:
        # without a weight gradient to ride on, the bias gradient is one reduction
        gb = aten.backward(gy, gz, None, None, kept, row, (False, False, True))[2] if needed[2] else None
        return run_input(for_input) if needed[0] else None, None, gb
    weight_flags = flags + " bias" * needed[2]
    for_weight = _tuned("weight_grad", (rows, out, x.shape[1]), g, weight_flags, run_weight)
    if needed[0] and for_input is None and for_weight is None:
        # both by ATen: the cotangent of z is computed once
        return aten.backward(gy, gz, x, w, kept, row, needed)
    gw, gb = run_weight(for_weight)
    return run_input(for_input) if needed[0] else None, gw, gb


def dual(x, w, b, tx, tw, tb, row: Activation, save: bool):
    """``(y, z, ty, tz)`` for x in rows; tangents may carry a leading batch, and then ty and tz do."""

    def run(config):
        if config is None:
            return aten.dual(x, w, b, tx, tw, tb, row, save)
        return kernels.linear_dual(x, w, b, tx, tw, tb, row, save=save, config=config)

    there = {name: t is not None for name, t in {"bias": b, "tx": tx, "tw": tw, "tb": tb}.items()}
    (tangents,) = tangent_batch(x, tx, tw, tb) or (1,)
    flags = f"{_flags(row, save=save, **there)} T{tuning.bucket(tangents)}"
    return run(_tuned("dual", (*x.shape[:1], *w.shape), x, flags, run, tangents=tangents))


def dual_cotangents(gy, gz, gty, gtz, kept, tz, row: Activation) -> tuple[Tensor, Tensor]:
    """``(g, a)``, the cotangents of z and tz, in rows; by ATen where the second derivative has no translation."""
    if untranslatable(row, ("derivative", "second_derivative")) is not None:
        return aten.dual_cotangents(gy, gz, gty, gtz, kept, tz, row)
    return kernels.linear_dual_cotangents(gy, gz, gty, gtz, kept, tz, row)
