"""``torch.ops.torchadx.*``, one file per op family, and the shortest way into each."""

from torchadx.ops import linear_dual as _linear_dual  # noqa: F401  (registers its ops)
from torchadx.ops._closure import (
    in_forward_level,
    next_sequence_number,
    no_global_hooks,
    no_tracer,
    profiling,
    sequence_number,
    transforms,
    undisturbed,
)
from torchadx.ops._closure import untransformed as outside_transforms
from torchadx.ops.linear import call_linear, explain_linear

__all__ = [
    "call_linear",
    "explain_linear",
    "in_forward_level",
    "next_sequence_number",
    "no_global_hooks",
    "no_tracer",
    "outside_transforms",
    "profiling",
    "sequence_number",
    "transforms",
    "undisturbed",
]
