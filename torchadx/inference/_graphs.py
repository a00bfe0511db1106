"""CUDA graphs: a call recorded once per input signature, and replayed without the host's share of the work."""

import dataclasses
import threading
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

# torch's own advice; the second call meets weights again, so that they are prepared before the capture
_WARM_UP = 3


@dataclasses.dataclass(frozen=True, eq=False)
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    output: Any
    stamp: Hashable


class Graphs:
    """The graphs of one wrapper. They share static inputs and outputs, so calls of several threads take turns."""

    def __init__(self) -> None:
        """Raise ``RuntimeError`` where there is no GPU."""
        if not torch.cuda.is_available():
            raise RuntimeError(
                "cuda_graph=True needs a CUDA device, and torch.cuda.is_available() is False: leave it out"
            )
        self._captured: dict[Hashable, _Captured] = {}
        self._lock = threading.Lock()

    def call(
        self,
        run: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        stamp: Callable[[], Hashable],
    ) -> Any:
        """Replay the graph for inputs like these, captured first where there is none.

        Args:
            run: What is captured: ``(args, kwargs) -> output``.
            args: Its arguments: CUDA tensors, and hashable values that stay the same per graph.
            kwargs: Likewise.
            stamp: Returns something that changes with the addresses of the memory that ``run`` reads besides.

        Returns:
            Copies of the graph's outputs.

        Raises:
            RuntimeError: There is no tensor among the inputs, or one is not on a GPU.
        """
        leaves, spec = pytree.tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not tensors or any(tensor.device.type != "cuda" for tensor in tensors):
            devices = ", ".join(sorted({str(tensor.device) for tensor in tensors})) or "none at all"
            raise RuntimeError(
                f"cuda_graph=True takes CUDA tensors, got {devices}: move inputs and module, or leave it out"
            )
        key = (str(spec), *map(_signature, leaves))
        with self._lock:
            captured = self._captured.get(key)
            if captured is None or captured.stamp != stamp():
                captured = self._captured[key] = _capture(run, leaves, spec, stamp)
            for static, given in zip(captured.inputs, tensors, strict=True):
                static.copy_(given)
            captured.graph.replay()
            return pytree.tree_map_only(Tensor, torch.clone, captured.output)

    def release(self) -> None:
        """Drop every graph, and its memory."""
        with self._lock:
            self._captured.clear()


def _signature(leaf: Any) -> Hashable:
    return (leaf.shape, leaf.stride(), leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf


def _capture(run: Callable[..., Any], leaves: list[Any], spec: Any, stamp: Callable[[], Hashable]) -> _Captured:
    statics = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    args, kwargs = pytree.tree_unflatten(statics, spec)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            run(args, kwargs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run(args, kwargs)
    return _Captured(graph, [leaf for leaf in statics if isinstance(leaf, Tensor)], output, stamp())
