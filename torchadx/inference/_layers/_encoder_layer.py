"""Transformer encoder layers."""

from collections import defaultdict
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchadx import dispatch
from torchadx.activations import Activation, resolve
from torchadx.inference._layers._linear import parameters_of
from torchadx.inference._layers._stand_in import StandIn, recognised
from torchadx.inference._lending import hooked, patched
from torchadx.inference._session import Product, Session
from torchadx.inference._state import Affine, fits
from torchadx.inference._tensors import in_dtype
from torchadx.inference._weights import large

_CHILDREN: dict[str, type[nn.Module]] = {
    **{"self_attn": nn.MultiheadAttention, "linear1": nn.Linear, "linear2": nn.Linear},
    **{"norm1": nn.LayerNorm, "norm2": nn.LayerNorm},
    **{"dropout": nn.Dropout, "dropout1": nn.Dropout, "dropout2": nn.Dropout},
}


class _Parts(NamedTuple):
    """What the layer multiplies by: to query, key and value, out of attention, to the inner features, and back."""

    attention: Affine
    projection: Affine
    inner: Affine
    outer: Affine
    activation: Activation


class EncoderLayerStandIn(StandIn):
    """:class:`torch.nn.TransformerEncoderLayer` in eval mode, without masks, on a CPU: four products and attention.

    PyTorch has a fast path of its own for it, which multiplies by weights as they are and computes attention by plain
    batched products.
    """

    kind: ClassVar[type[nn.Module]] = nn.TransformerEncoderLayer
    fuses_tangents = False

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self._products: defaultdict[nn.Module, Product] = defaultdict(Product)

    def promises(self) -> bool:
        """Whether the weight of its attention is large."""
        attention = self.module._modules.get("self_attn")
        return attention is not None and large(attention._parameters.get("in_proj_weight"))

    def run(
        self,
        session: Session,
        src: Any,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Any:
        """Apply the layer to ``(batch, sequence, width)``, or ``(sequence, batch, width)`` as the layer is set."""
        if src_mask is None and src_key_padding_mask is None and not is_causal:
            parts = self._parts(session)
            if isinstance(parts, _Parts) and _takes(session, src, parts.attention):
                return self._layer(session, src, parts)
        return self.as_it_is(src, src_mask, src_key_padding_mask, is_causal)

    def explain(self, session: Session) -> str:
        """Say whether it runs as one, and on which copies."""
        parts = self._parts(session)
        if isinstance(parts, str):
            return f"as it is: {parts}"
        text = session.explain(parts.attention.owner, parts.attention.name)
        return f"without masks: four products and fused attention (of its inputs: {text}); with masks: as it is"

    def explain_children(self, session: Session) -> dict[str, str]:
        """Say that children are part of the layer."""
        if isinstance(self._parts(session), str):
            return {}
        texts = dict.fromkeys(_CHILDREN, "part of the layer")
        for name in ("self_attn.out_proj", "linear1", "linear2"):
            texts[name] = f"part of the layer; {session.explain(self.module.get_submodule(name))}"
        return texts

    def _parts(self, session: Session) -> _Parts | str:
        """Return what the layer multiplies by, or why it runs as it is."""
        if session.tangents:
            return "PyTorch's fused attention has no tangents"
        modules: dict[str, Any] = self.module._modules
        for name, kind in _CHILDREN.items():
            child = modules.get(name)
            if type(child) is not kind or patched(child) or hooked(child):
                return f"{name} is not as PyTorch makes it, or has hooks"
            if child.training:
                return f"{name} is in train mode"
        attention = modules["self_attn"]
        weight, out = attention._parameters.get("in_proj_weight"), attention._modules["out_proj"]
        if weight is None or attention.bias_k is not None or attention.add_zero_attn or hooked(out):
            return "its attention is of an unusual kind, has hooks, or a weight computed from other parameters"
        projection, inner, outer = map(parameters_of, (out, modules["linear1"], modules["linear2"]))
        norms = [modules[name]._parameters for name in ("norm1", "norm2")]
        computed = any("weight" not in own or "bias" not in own for own in norms)
        if projection is None or inner is None or outer is None or computed:
            return "it has a weight that is computed from other parameters"
        activation = self._activation()
        if activation is None:
            return "its activation is not a registered one, or has hooks"
        entry = Affine(attention, "in_proj_weight", weight, attention.in_proj_bias)
        for layer in (entry, projection, inner, outer):
            if layer.weight.dtype is not weight.dtype or not fits(layer.weight, layer.bias):
                return "its weights and biases are not of one kind"
        return _Parts(entry, projection, inner, outer, activation)

    def _activation(self) -> Activation | None:
        activation: Any = self.module.activation
        hidden = isinstance(activation, nn.Module) and hooked(activation)
        return None if hidden else recognised(activation)

    def _layer(self, session: Session, x: Tensor, parts: _Parts) -> Tensor:
        layer: Any = self.module
        first, second = layer._modules["norm1"], layer._modules["norm2"]
        # in place into what was just computed
        if layer.norm_first:
            x = self._attend(session, _normalize(first, x), parts).add_(x)
            return self._feed_forward(session, _normalize(second, x), parts).add_(x)
        x = _normalize(first, self._attend(session, x, parts).add_(x))
        return _normalize(second, self._feed_forward(session, x, parts).add_(x))

    def _attend(self, session: Session, x: Tensor, parts: _Parts) -> Tensor:
        layer: Any = self.module
        attention, identity = layer.self_attn, resolve(None)
        heads, width = attention.num_heads, attention.embed_dim
        projected = self._product(session, x, parts.attention, identity)
        # (first, second, 3, heads, head width) to three of (batch, heads, sequence, head width)
        three = projected.view(*projected.shape[:-1], 3, heads, width // heads)
        order = (2, 0, 3, 1, 4) if attention.batch_first else (2, 1, 3, 0, 4)
        query, key, value = three.permute(order).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value)
        attended = attended.permute((0, 2, 1, 3) if attention.batch_first else (2, 0, 1, 3)).flatten(-2)
        return in_dtype(self._product(session, attended, parts.projection, identity), x.dtype)

    def _feed_forward(self, session: Session, x: Tensor, parts: _Parts) -> Tensor:
        inner = self._product(session, x, parts.inner, parts.activation)
        return in_dtype(self._product(session, inner, parts.outer, resolve(None)), x.dtype)

    def _product(self, session: Session, x: Tensor, layer: Affine, activation: Activation) -> Tensor:
        product = self._products[layer.owner]
        y = product.again(session, x, layer, activation)
        return product.run(session, x, layer, activation, out=None) if y is None else y


def _takes(session: Session, src: Any, layer: Affine) -> bool:
    return (
        session.gains(src, layer.weight)
        and session.takes(src, layer)
        and src.dim() == 3
        and src.dtype is layer.weight.dtype
        and not dispatch.on_accelerator(src)
        and not dispatch.autocasting(src)
    )


def _normalize(norm: Any, x: Tensor) -> Tensor:
    own = norm._parameters
    return torch.layer_norm(x, norm.normalized_shape, own["weight"], own["bias"], norm.eps)
