"""``torch.ops.torchadx.*``, one file per op family, and the shortest way into each."""

from torchadx.ops import linear_dual as _linear_dual  # noqa: F401  (registers its ops)
from torchadx.ops._closure import has_global_module_hooks, in_forward_level, no_mode, no_tracer, transforms
from torchadx.ops._closure import untransformed as outside_transforms
from torchadx.ops.linear import call_linear, explain_linear

__all__ = [
    "call_linear",
    "explain_linear",
    "has_global_module_hooks",
    "in_forward_level",
    "no_mode",
    "no_tracer",
    "outside_transforms",
    "transforms",
]
