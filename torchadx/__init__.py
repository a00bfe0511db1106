"""torchadx: fused linear layers for every differentiation mode, planned Jacobians, tools for what autograd saves."""

from torchadx import activations, autodiff, dispatch, functional, inference, memory, nn, tuning
from torchadx._version import __version__
from torchadx.activations import register_activation
from torchadx.functional import explain, linear
from torchadx.inference import InferenceAware
from torchadx.ops.flops import register_flop_formulas

__all__ = [
    "InferenceAware",
    "__version__",
    "activations",
    "autodiff",
    "dispatch",
    "explain",
    "functional",
    "inference",
    "linear",
    "memory",
    "nn",
    "register_activation",
    "register_flop_formulas",
    "tuning",
]
