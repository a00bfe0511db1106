"""Linear layers."""

from typing import Any, ClassVar, cast

from torch import nn

import torchadx.nn
from torchadx.activations import Activation, resolve
from torchadx.inference._layers._stand_in import StandIn
from torchadx.inference._lending import note_gain
from torchadx.inference._session import Session
from torchadx.inference._state import Affine, Route
from torchadx.inference._tensors import in_dtype
from torchadx.inference._weights import large


def parameters_of(module: nn.Module) -> Affine | None:
    """Weight and bias of a linear layer, if they are its own parameters rather than computed from others."""
    own = module._parameters
    weight = own.get("weight")
    return None if weight is None or "bias" not in own else Affine(module, "weight", weight, own["bias"])


class LinearStandIn(StandIn):
    """:class:`torch.nn.Linear` on prepared weights."""

    kind: ClassVar[type[nn.Module]] = nn.Linear

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self._route: Route | None = None

    def activation(self) -> Activation:
        """The activation that is part of the layer."""
        return resolve(None)

    def promises(self) -> bool:
        """Whether its weight is large."""
        return large(self.module._parameters.get("weight"))

    def run(self, session: Session, input: Any) -> Any:
        """Apply the layer to ``(..., in_features)``."""
        repeats = session.repeats(input)
        own = self.module._parameters
        weight = own.get("weight")
        if repeats and self._route is not None and weight is not None and "bias" in own:
            y = self._route.run(input, weight, own["bias"], self.activation())
            if y is not None:
                note_gain()
                return in_dtype(y, input.dtype)
        layer = parameters_of(self.module)
        if layer is None or not session.gains(input, layer.weight) or not session.takes(input, layer):
            return self.as_it_is(input)
        y = session.linear(input, layer, self.activation(), out=input.dtype)
        self._route = session.route(input, layer, self.activation()) if repeats else None
        return y

    def explain(self, session: Session) -> str:
        """Say whether its weight is prepared."""
        return session.explain(self.module)


class FusedLinearStandIn(LinearStandIn):
    """:class:`torchadx.nn.Linear`, which has its activation in it."""

    kind = torchadx.nn.Linear

    def activation(self) -> Activation:
        """The activation that is part of the layer."""
        return resolve(cast(torchadx.nn.Linear, self.module).activation)
