"""See what autograd saves, its graph, memory over time, and where time and memory go by module."""

from torchadx.inspect._graph import Graph, graph
from torchadx.inspect._html import report
from torchadx.inspect._profile import Profile, profile
from torchadx.inspect._report import SavedReport, SavedRow
from torchadx.inspect._saved import Watching, saved
from torchadx.inspect._timeline import Timeline, timeline

__all__ = [
    "Graph",
    "Profile",
    "SavedReport",
    "SavedRow",
    "Timeline",
    "Watching",
    "graph",
    "profile",
    "report",
    "saved",
    "timeline",
]
