"""Triton kernels behind the fused ops; importing this package imports triton.

Launchers take two-dimensional tensors, an activation row and a :class:`Config`, and neither choose nor time anything.
"""

from torchadx.kernels._candidates import configs, heuristic
from torchadx.kernels._configs import Config
from torchadx.kernels._launch import capability, interpreting
from torchadx.kernels._translate import device_function, untranslatable
from torchadx.kernels.dual import linear_dual
from torchadx.kernels.dual_cotangents import linear_dual_cotangents
from torchadx.kernels.forward import linear_forward
from torchadx.kernels.input_grad import linear_input_grad
from torchadx.kernels.persistent import persistent_applies
from torchadx.kernels.quantize import dequantize, quantize
from torchadx.kernels.weight_grad import linear_weight_grad

__all__ = [
    "Config",
    "capability",
    "configs",
    "dequantize",
    "device_function",
    "heuristic",
    "interpreting",
    "linear_dual",
    "linear_dual_cotangents",
    "linear_forward",
    "linear_input_grad",
    "linear_weight_grad",
    "persistent_applies",
    "quantize",
    "untranslatable",
]
