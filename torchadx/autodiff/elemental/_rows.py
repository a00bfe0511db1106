"""Every file of rows: importing them fills the table."""

from torchadx.autodiff.elemental import (
    activations,
    convolutions,
    fourier,
    indexing,
    linear_algebra,
    losses,
    moves,
    normalizations,
    pointwise,
    products,
    reductions,
    resampling,
    shapes,
)

__all__ = [
    "activations",
    "convolutions",
    "fourier",
    "indexing",
    "linear_algebra",
    "losses",
    "moves",
    "normalizations",
    "pointwise",
    "products",
    "reductions",
    "resampling",
    "shapes",
]
