"""See what autograd saves, its graph, memory over time, and where time and memory go by module."""

from torchadx.inspect._graph import Graph, graph
from torchadx.inspect._html import NoBackwardError, report
from torchadx.inspect._profile import Profile, profile
from torchadx.inspect._saved import SavedReport, SavedRow, Watching, saved
from torchadx.inspect._timeline import Timeline, timeline

__all__ = [
    "Graph",
    "NoBackwardError",
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
