"""The activations that a linear layer can be fused with: one row each, in ``rows.py``.

A row states its mathematics once, as formulas over a small vocabulary of ``torch`` functions (see
:data:`VOCABULARY`). Differentiable ATen code runs them as they stand; ``torchadx.kernels`` reads the same functions
as Triton. Where ATen has a one-pass kernel of its own, ``forward`` and ``backward`` name it.
"""

from torchadx.activations.activation import VOCABULARY, Activation, Keeps
from torchadx.activations.registry import ActivationLike, known, register_activation, resolve
from torchadx.activations.rows import ROWS

__all__ = [
    "ROWS",
    "VOCABULARY",
    "Activation",
    "ActivationLike",
    "Keeps",
    "known",
    "register_activation",
    "resolve",
]
