"""What graphs keep for backward: from slots to rows, and to a report."""

from torchadx.inspect._saved._report import SavedReport, SavedRow
from torchadx.inspect._saved._saved import Watching, saved

__all__ = ["SavedReport", "SavedRow", "Watching", "saved"]
