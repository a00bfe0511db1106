"""What stand-ins share while a wrapped module runs: how its linear layers are computed."""

from typing import Any

import torch
from torch import Tensor, nn

from torchadx import dispatch, functional, ops
from torchadx.activations import Activation
from torchadx.inference._lending import note_gain
from torchadx.inference._state import Affine, Route, fits
from torchadx.inference._tensors import in_dtype
from torchadx.inference._weights import Weights

_FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Session:
    """One of a wrapper's two ways to run.

    Args:
        weights: The wrapper's prepared weights.
        dtype: What linear layers compute in; ``None`` for the dtype of their weights.
        tangents: ``True`` where inputs may be dual: layers are then fused by :func:`torchadx.functional.linear`, and
            nothing is prepared.
    """

    def __init__(self, weights: Weights, dtype: torch.dtype | None, tangents: bool) -> None:
        self.weights = weights
        self.dtype = dtype
        self.tangents = tangents

    def serves(self) -> bool:
        """Whether stand-ins may run here: what a wrapped module does inside may have changed the mode."""
        if self.tangents:
            return ops.no_global_hooks() and not torch.compiler.is_compiling()
        return torch.is_inference_mode_enabled() and ops.undisturbed()

    def repeats(self, x: Any) -> bool:
        """Whether a layer may do again what it did, without asking: its results depend on nothing around it."""
        return not self.tangents and type(x) is Tensor and not dispatch.autocasting(x)

    def route(self, x: Tensor, layer: Affine, activation: Activation) -> Route | None:
        """What :meth:`linear` found to do for such inputs, where it may be repeated."""
        return self.weights.route(x, layer, activation, self.dtype or layer.weight.dtype)

    def lowers(self, x: object) -> bool:
        """Whether linear layers compute in a lower dtype than that of their results."""
        return self.dtype is not None and not self.tangents and isinstance(x, Tensor) and not dispatch.autocasting(x)

    def gains(self, x: Any, weight: Tensor) -> bool:
        """Whether running a linear layer here may be better than as it is; if so, the call takes note of it."""
        if not (self.tangents or (isinstance(x, Tensor) and self.weights.gains(x, weight))):
            return False
        note_gain()
        return True

    def takes(self, x: Any, layer: Affine) -> bool:
        """Whether :meth:`linear` can do what the layer itself would; the layer raises for what fits nowhere."""
        weight = layer.weight
        return (
            type(x) in (Tensor, nn.Parameter)
            and x.layout is torch.strided
            and not x.is_nested
            and x.dim() > 0
            and x.shape[-1] == weight.shape[-1]
            and x.numel() > 0
            and x.device == weight.device
            and x.dtype in _FLOATING
            and (x.dtype is weight.dtype or x.dtype is self.dtype or dispatch.autocasting(x))
            and weight.dtype in _FLOATING
            and fits(weight, layer.bias)
        )

    def explain(self, owner: nn.Module, name: str = "weight") -> str:
        """Say how the product with a weight is computed."""
        return self.weights.explain(owner, name, self.dtype)

    def linear(self, x: Tensor, layer: Affine, activation: Activation, out: torch.dtype | None) -> Tensor:
        """``f(x W^T + b)`` for what :meth:`takes` lets through.

        Args:
            x: ``(..., in)``.
            layer: W and b.
            activation: f.
            out: The dtype to return, outside of autocast; ``None`` for the one that was computed in.
        """
        if self.tangents:
            return functional.linear(x, layer.weight, layer.bias, activation)
        own = layer.weight.dtype
        # autocast leaves float64 alone
        if dispatch.autocasting(x) and own is not torch.float64:
            return self.weights.linear(x, layer, activation, torch.get_autocast_dtype(x.device.type))
        y = self.weights.linear(x, layer, activation, self.dtype or own)
        return y if out is None else in_dtype(y, out)


class Product:
    """One product of a stand-in, which does again what it did as long as nothing has changed."""

    def __init__(self) -> None:
        self._route: Route | None = None

    def again(self, session: Session, x: Any, layer: Affine, activation: Activation) -> Tensor | None:
        """``f(x W^T + b)`` in the dtype of the last time, or ``None`` where anything is not as it was."""
        # another thread may take it away meanwhile
        route = self._route
        if route is None or not session.repeats(x):
            return None
        y = route.run(x, layer.weight, layer.bias, activation)
        if y is not None:
            note_gain()
        return y

    def run(
        self, session: Session, x: Tensor, layer: Affine, activation: Activation, out: torch.dtype | None
    ) -> Tensor:
        """:meth:`Session.linear`, and remember how."""
        y = session.linear(x, layer, activation, out)
        self._route = session.route(x, layer, activation) if session.repeats(x) else None
        return y
