"""A context in which tangents reach the end: what would drop or refuse them is computed in another way."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from torchadx.inference._mode import outside_inference
from torchadx.inference._tensors import normal_copy, tangent_of, tensors_in


class KeepTangents(TorchFunctionMode):
    """Operations run with inference mode off, which a function may switch on inside, and on normal dual tensors.

    Those in ``_OTHERWISE`` are computed in another way.
    Being a function mode it switches off the fast path of PyTorch's transformer layers, which has no forward AD.
    """

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation so that tangents pass."""
        run = _OTHERWISE.get(func, func)
        with outside_inference():
            if any(map(_hides_its_tangent, tensors_in((args, kwargs)))) and not _in_place(func):
                args, kwargs = pytree.tree_map_only(Tensor, _shown, (args, kwargs))
            return run(*args, **(kwargs or {}))


def _hides_its_tangent(tensor: Tensor) -> bool:
    return tensor.is_inference() and tangent_of(tensor) is not None


def _shown(tensor: Tensor) -> Tensor:
    return normal_copy(tensor) if _hides_its_tangent(tensor) else tensor


def _in_place(func: Any) -> bool:
    # a copy must not be written to instead: PyTorch refuses to write to an inference tensor outside of the mode
    name = getattr(func, "__name__", "")
    return name.endswith("_") and not name.endswith("__")


def _multi_head_attention(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    # asked for the weights it does not call the fused attention
    call = _MULTI_HEAD.bind(*args, **kwargs)
    wanted = call.arguments.get("need_weights", True)
    call.arguments["need_weights"] = True
    output, weights = F.multi_head_attention_forward(*call.args, **call.kwargs)
    return output, weights if wanted else None


_MULTI_HEAD = inspect.signature(F.multi_head_attention_forward)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``softmax(Q K^T s + mask) V``, as :func:`torch.nn.functional.scaled_dot_product_attention` defines it.

    Args:
        query: ``(..., L, E)``.
        key: ``(..., S, E)``.
        value: ``(..., S, V)``.
        attn_mask: Broadcasts to ``(..., L, S)``; boolean, ``True`` where a key takes part, or added to the scores.
        dropout_p: Share of the weights that is dropped.
        is_causal: Whether a query sees keys up to its own place only.
        scale: ``s``; ``1 / sqrt(E)`` by default.
        enable_gqa: Whether groups of query heads share a head of key and value.

    Returns:
        ``(..., L, V)``.
    """
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = (t.repeat_interleave(repeats, dim=-3) for t in (key, value))
    scores = query @ key.mT * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is None:
        weights = scores.softmax(-1)
    else:
        masked = attn_mask.dtype is torch.bool
        scores = scores.masked_fill(~attn_mask, -math.inf) if masked else scores + attn_mask
        # a query that sees no key gets zeros
        weights = scores.softmax(-1).masked_fill(scores.isneginf().all(-1, keepdim=True), 0.0)
    return F.dropout(weights, dropout_p) @ value


def _lstm(*args: Any) -> Any:
    # oneDNN's kernel, which takes float32 and bfloat16, has no forward AD; that for float64 has
    dtype = next(leaf.dtype for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor))
    wide = pytree.tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, args)
    return pytree.tree_map_only(Tensor, lambda t: t.to(dtype), torch.lstm(*wide))


# by PyTorch's function, one that has forward AD
_OTHERWISE: dict[Any, Callable[..., Any]] = {
    F.scaled_dot_product_attention: attention,
    F.multi_head_attention_forward: _multi_head_attention,
    torch.lstm: _lstm,
}
