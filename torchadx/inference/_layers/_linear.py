"""Linear layers."""

from typing import Any, ClassVar, cast

from torch import nn

import torchadx.nn
from torchadx.activations import Activation, resolve
from torchadx.inference._layers._stand_in import StandIn
from torchadx.inference._session import Product, Session
from torchadx.inference._state import Affine
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
        self._product = Product()

    def activation(self) -> Activation:
        """The activation that is part of the layer."""
        return resolve(None)

    def promises(self) -> bool:
        """Whether its weight is large."""
        return large(self.module._parameters.get("weight"))

    def run(self, session: Session, input: Any) -> Any:
        """Apply the layer to ``(..., in_features)``."""
        layer, activation = parameters_of(self.module), self.activation()
        if layer is None:
            return self.as_it_is(input)
        y = self._product.again(session, input, layer, activation)
        if y is not None:
            return in_dtype(y, input.dtype)
        if not session.gains(input, layer.weight) or not session.takes(input, layer):
            return self.as_it_is(input)
        return self._product.run(session, input, layer, activation, out=input.dtype)

    def explain(self, session: Session) -> str:
        """Say whether its weight is prepared."""
        return session.explain(self.module)


class FusedLinearStandIn(LinearStandIn):
    """:class:`torchadx.nn.Linear`, which has its activation in it."""

    kind = torchadx.nn.Linear

    def activation(self) -> Activation:
        """The activation that is part of the layer."""
        return resolve(cast(torchadx.nn.Linear, self.module).activation)
