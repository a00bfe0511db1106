"""Operations that are recorded as the simpler ones they are made of."""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchadx.ops import reference

aten = torch.ops.aten


def find(target: Any) -> Callable[..., Any] | None:
    """Return what computes the same as an overload by operations whose derivatives are known, if it has to be used."""
    return _table().get(target)


@functools.cache
def _table() -> dict[Any, Callable[..., Any]]:
    attention: dict[Any, Callable[..., Any]] = {
        aten._scaled_dot_product_flash_attention_for_cpu.default: _flash_attention_for_cpu,
        aten._scaled_dot_product_flash_attention.default: _flash_attention,
        aten._scaled_dot_product_efficient_attention.default: _efficient_attention,
    }
    return attention | {aten.copy.default: _copy} | reference.formulas()


def _copy(destination: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """What functionalization makes of an assignment, and autograd has no rule for."""
    return source.expand(destination.shape).to(destination.device, destination.dtype)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None) -> Any:
    """softmax(q k^T scale + mask) v, and the logarithm of the softmax's sums, which fused kernels return beside it."""
    scores = (q @ k.mT) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    if mask is not None:
        scores = scores + mask
    return F.softmax(scores, -1) @ v, scores.logsumexp(-1)


def _refuse_dropout(dropout: float) -> None:
    if dropout:
        raise NotImplementedError("attention with dropout draws random numbers inside a fused kernel: call .eval()")


def _flash_attention_for_cpu(q, k, v, dropout_p=0.0, is_causal=False, *, attn_mask=None, scale=None):
    _refuse_dropout(dropout_p)
    return _attention(q, k, v, attn_mask, is_causal, scale)


def _flash_attention(q, k, v, dropout_p=0.0, is_causal=False, return_debug_mask=False, *, scale=None):
    _refuse_dropout(dropout_p)
    out, sums = _attention(q, k, v, None, is_causal, scale)
    nothing = q.new_empty(0, dtype=torch.int64)
    return out, sums, None, None, q.shape[-2], k.shape[-2], nothing, nothing, q.new_empty(0)


def _efficient_attention(q, k, v, attn_bias, compute_log_sumexp, dropout_p=0.0, is_causal=False, *, scale=None):
    _refuse_dropout(dropout_p)
    nothing = q.new_empty(0, dtype=torch.int64)
    return *_attention(q, k, v, attn_bias, is_causal, scale), nothing, nothing
