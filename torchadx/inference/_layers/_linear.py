"""Linear layers."""

from typing import Any, ClassVar, cast

from torch import Tensor, nn

import torchadx.nn
from torchadx.activations import Activation, resolve
from torchadx.inference._layers._stand_in import StandIn
from torchadx.inference._session import Session
from torchadx.inference._weights import large, obstacle


def parameters_of(module: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias of a linear layer, if they are its own parameters rather than computed from others."""
    own = module._parameters
    weight = own.get("weight")
    return None if weight is None or "bias" not in own else (weight, own["bias"])


class LinearStandIn(StandIn):
    """:class:`torch.nn.Linear` on prepared weights."""

    kind: ClassVar[type[nn.Module]] = nn.Linear

    def activation(self) -> Activation:
        """The activation that is part of the layer."""
        return resolve(None)

    def promises(self) -> bool:
        """Whether its weight is large."""
        return large(self.module._parameters.get("weight"))

    def run(self, session: Session, input: Any) -> Any:
        """Apply the layer to ``(..., in_features)``."""
        own = parameters_of(self.module)
        if own is None or not session.gains(input, own[0]) or not session.takes(input, *own):
            return self.as_it_is(input)
        return session.linear(input, *own, self.activation(), out=input.dtype)

    def explain(self, session: Session) -> str:
        """Say whether its weight is prepared."""
        return explain_weight(self.module, session)


class FusedLinearStandIn(LinearStandIn):
    """:class:`torchadx.nn.Linear`, which has its activation in it."""

    kind = torchadx.nn.Linear

    def activation(self) -> Activation:
        """The activation that is part of the layer."""
        return resolve(cast(torchadx.nn.Linear, self.module).activation)


def explain_weight(module: nn.Module, session: Session, name: str = "weight") -> str:
    """Say how the product with a weight of ``module`` is computed."""
    weight = module._parameters.get(name)
    if weight is None:
        return f"as it is: its {name} is computed from other parameters"
    reason = obstacle(weight, session.dtype)
    if reason is not None:
        return f"as it is: {reason}"
    ways = session.weights.ways_of(weight)
    if ways:
        return f"{' and '.join(ways)} {'copy' if len(ways) == 1 else 'copies'} of its weight"
    return "as it is so far: a weight is prepared when it is met again, unchanged, by enough rows"
