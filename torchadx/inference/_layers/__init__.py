"""Stand-ins for the modules that run better under inference mode than as they are: one file and one entry each."""

from collections.abc import Iterable

from torch import nn

from torchadx.inference._layers._encoder_layer import EncoderLayerStandIn
from torchadx.inference._layers._linear import FusedLinearStandIn, LinearStandIn
from torchadx.inference._layers._sequential import SequentialStandIn
from torchadx.inference._layers._stand_in import StandIn

STAND_INS: tuple[type[StandIn], ...] = (LinearStandIn, FusedLinearStandIn, SequentialStandIn, EncoderLayerStandIn)

__all__ = ["STAND_INS", "StandIn", "stand_ins_for"]


def stand_ins_for(modules: Iterable[nn.Module]) -> dict[nn.Module, StandIn]:
    """Make a stand-in for each of the modules for which there is one."""
    found = {}
    for module in modules:
        stand_in = next((kind for kind in STAND_INS if kind.serves(module)), None)
        if stand_in is not None:
            found[module] = stand_in(module)
    return found
