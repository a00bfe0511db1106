"""Transformer encoder layers."""

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from torchadx import dispatch
from torchadx.activations import Activation, resolve
from torchadx.inference._layers._linear import parameters_of
from torchadx.inference._layers._stand_in import StandIn
from torchadx.inference._lending import hooked, patched
from torchadx.inference._session import Session
from torchadx.inference._weights import Affine, large

_CHILDREN: dict[str, type[nn.Module]] = {
    **{"self_attn": nn.MultiheadAttention, "linear1": nn.Linear, "linear2": nn.Linear},
    **{"norm1": nn.LayerNorm, "norm2": nn.LayerNorm},
    **{"dropout": nn.Dropout, "dropout1": nn.Dropout, "dropout2": nn.Dropout},
}


class EncoderLayerStandIn(StandIn):
    """:class:`torch.nn.TransformerEncoderLayer` in eval mode, without masks, on a CPU: four products and attention.

    PyTorch has a fast path of its own for it, which multiplies by weights as they are and computes attention by plain
    batched products.
    """

    kind: ClassVar[type[nn.Module]] = nn.TransformerEncoderLayer
    fuses_tangents = False

    def promises(self) -> bool:
        """Whether the weight of its attention is large."""
        layer: Any = self.module
        return large(layer.self_attn.in_proj_weight)

    def run(
        self,
        session: Session,
        src: Any,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Any:
        """Apply the layer to ``(batch, sequence, width)``, or ``(sequence, batch, width)`` as the layer is set."""
        masked = src_mask is not None or src_key_padding_mask is not None or is_causal
        if masked or self._obstacle(session) is not None or not self._takes(session, src):
            return self.as_it_is(src, src_mask, src_key_padding_mask, is_causal)
        return self._layer(session, src)

    def explain(self, session: Session) -> str:
        """Say whether it runs as one, and on which copies."""
        reason = self._obstacle(session)
        if reason is not None:
            return f"as it is: {reason}"
        text = session.explain(self.module.get_submodule("self_attn"), "in_proj_weight")
        return f"without masks: four products and fused attention (of its inputs: {text}); with masks: as it is"

    def explain_children(self, session: Session) -> dict[str, str]:
        """Say that children are part of the layer."""
        if self._obstacle(session) is not None:
            return {}
        parts = dict.fromkeys(_CHILDREN, "part of the layer")
        for name in ("self_attn.out_proj", "linear1", "linear2"):
            parts[name] = f"part of the layer; {session.explain(self.module.get_submodule(name))}"
        return parts

    def _obstacle(self, session: Session) -> str | None:
        layer: Any = self.module
        if session.tangents:
            return "PyTorch's fused attention has no tangents"
        for name, kind in _CHILDREN.items():
            child = getattr(layer, name)
            if type(child) is not kind or patched(child) or hooked(child):
                return f"{name} is not as PyTorch makes it, or has hooks"
            if child.training:
                return f"{name} is in train mode"
        attention = layer.self_attn
        if attention.in_proj_weight is None or attention.bias_k is not None or attention.add_zero_attn:
            return "its attention is of an unusual kind"
        if "in_proj_weight" not in attention._parameters or hooked(attention.out_proj):
            return "its attention has hooks, or a weight that is computed from other parameters"
        if any(parameters_of(linear) is None for linear in (layer.linear1, layer.linear2, attention.out_proj)):
            return "it has a weight that is computed from other parameters"
        return None if self._activation() is not None else "its activation is not a registered one"

    def _activation(self) -> Activation | None:
        activation: Any = self.module.activation
        if isinstance(activation, nn.Module) and hooked(activation):
            return None
        try:
            return resolve(activation)
        except ValueError:
            return None

    def _takes(self, session: Session, src: Any) -> bool:
        layer: Any = self.module
        projection = _projection(layer.self_attn)
        return (
            session.gains(src, projection.weight)
            and session.takes(src, projection)
            and src.dim() == 3
            and src.dtype is projection.weight.dtype
            and not dispatch.on_accelerator(src)
            and not dispatch.autocasting(src)
        )

    def _layer(self, session: Session, x: Tensor) -> Tensor:
        layer: Any = self.module
        row = self._activation()
        assert row is not None
        if layer.norm_first:
            x = x + self._attend(session, layer.norm1(x))
            return x + self._feed_forward(session, layer.norm2(x), row)
        x = layer.norm1(x + self._attend(session, x))
        return layer.norm2(x + self._feed_forward(session, x, row))

    def _attend(self, session: Session, x: Tensor) -> Tensor:
        layer: Any = self.module
        attention, identity = layer.self_attn, resolve(None)
        heads, width = attention.num_heads, attention.embed_dim
        projected = session.linear(x, _projection(attention), identity, out=None)
        # (first, second, 3, heads, head width) to three of (batch, heads, sequence, head width)
        parts = projected.unflatten(-1, (3, heads, width // heads))
        order = (2, 0, 3, 1, 4) if attention.batch_first else (2, 1, 3, 0, 4)
        attended = F.scaled_dot_product_attention(*parts.permute(order).unbind(0))
        attended = attended.permute((0, 2, 1, 3) if attention.batch_first else (2, 0, 1, 3)).flatten(-2)
        return session.linear(attended, _layer(attention.out_proj), identity, out=x.dtype)

    def _feed_forward(self, session: Session, x: Tensor, row: Activation) -> Tensor:
        layer: Any = self.module
        inner = session.linear(x, _layer(layer.linear1), row, out=None)
        return session.linear(inner, _layer(layer.linear2), resolve(None), out=x.dtype)


def _projection(attention: Any) -> Affine:
    return Affine(attention, "in_proj_weight", attention.in_proj_weight, attention.in_proj_bias)


def _layer(module: Any) -> Affine:
    return Affine(module, "weight", module.weight, module.bias)
