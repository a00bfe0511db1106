"""Memory over a step: from a trace and what was noted on the way to blocks, and to a curve."""

from torchadx.inspect._timeline._timeline import Timeline, timeline

__all__ = ["Timeline", "timeline"]
