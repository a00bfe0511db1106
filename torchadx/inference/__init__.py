"""Modules and functions that do the right thing in each of PyTorch's gradient modes; see README.md in this folder."""

from torchadx.inference._aware import aware
from torchadx.inference._duals import jvp, make_dual, unpack_dual
from torchadx.inference._mode import INFERENCE, NO_GRAD, TRAIN, Kind, Mode, current_mode
from torchadx.inference._module import InferenceAware

__all__ = [
    "INFERENCE",
    "NO_GRAD",
    "TRAIN",
    "InferenceAware",
    "Kind",
    "Mode",
    "aware",
    "current_mode",
    "jvp",
    "make_dual",
    "unpack_dual",
]
