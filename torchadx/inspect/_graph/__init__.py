"""The autograd graph: from nodes to a picture."""

from torchadx.inspect._graph._graph import Graph, graph

__all__ = ["Graph", "graph"]
