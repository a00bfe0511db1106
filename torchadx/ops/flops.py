"""FLOP formulas of the ops, for ``torch.utils.flop_counter``."""

import math

import torch

Shape = tuple[int, ...]


def register_flop_formulas() -> None:
    """Teach ``torch.utils.flop_counter.FlopCounterMode``, and what reports through it, the ops of torchadx.

    A counter made before this call counts them as zero. Products count as in PyTorch, two operations a
    multiply-add; elementwise work is not counted. Calling it again changes nothing.
    """
    # not at the top: it costs more to import than all of torchadx
    from torch.utils.flop_counter import flop_registry, register_flop_formula

    ops = torch.ops.torchadx
    formulas = {
        ops.linear: _forward,
        ops.linear_saving: _forward,
        ops.linear_jvp: _dual,
        ops.linear_dual: _dual,
        ops.linear_backward: _backward,
    }
    for op, formula in formulas.items():
        if op not in flop_registry:
            register_flop_formula(op)(formula)


def _forward(x: Shape, w: Shape, *_: object, **__: object) -> int:
    return 2 * math.prod(x) * w[0]


def _dual(x: Shape, w: Shape, b: Shape | None, tx: Shape | None, tw: Shape | None, *_: object, **__: object) -> int:
    through_x = 0 if tx is None else 2 * math.prod(tx) * w[0]
    through_w = 0 if tw is None else 2 * math.prod(x[:-1]) * math.prod(tw)
    return _forward(x, w) + through_x + through_w


def _backward(
    gy: Shape | None, gz: Shape | None, x: Shape | None, w: Shape | None, kept: Shape | None,
    act: str, needed: list[bool], **__: object,
) -> int:  # fmt: skip
    g = math.prod(gy if gy is not None else gz or ())
    into_x = 2 * g * w[1] if needed[0] and w is not None else 0
    into_w = 2 * g * x[-1] if needed[1] and x is not None else 0
    return into_x + into_w
