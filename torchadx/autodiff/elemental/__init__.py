"""Derivatives of single operations, one row an operation."""

from torchadx.autodiff.elemental import _rows as _rows
from torchadx.autodiff.elemental._joins import JOINS
from torchadx.autodiff.elemental._part import Part, Site, positions
from torchadx.autodiff.elemental._sweep import sweep
from torchadx.autodiff.elemental._table import carries, known, part, reads_result

__all__ = ["JOINS", "Part", "Site", "carries", "known", "part", "positions", "reads_result", "sweep"]
