"""The side streams of one accelerator: all that host stores know of streams and events."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

# as torch.cuda.Event and its like
Event: TypeAlias = Any


class Streams:
    """One stream for copies to the host and one for copies back, so that neither waits for the other.

    The current stream is asked for at each call: callers change it.

    Args:
        device: Whose.

    Raises:
        RuntimeError: PyTorch has no streams for such devices.
    """

    def __init__(self, device: torch.device) -> None:
        self._module = torch.get_device_module(device)
        if not hasattr(self._module, "Stream"):
            raise RuntimeError(
                f"HostStore copies on side streams, which PyTorch does not have for {device}; use another store"
            )
        self._device = device
        self._out = self._module.Stream(device)
        self._back = self._module.Stream(device)

    def mark(self) -> Event:
        """Return an event that happens when all is done that the current stream has been given so far."""
        return self._module.current_stream(self._device).record_event()

    def copy_out(self, targets: Sequence[Tensor], sources: Sequence[Tensor], after: Event) -> Event:
        """Copy to host memory; the sources must stay as they are until the event that is returned."""
        self._out.wait_event(after)
        with self._module.stream(self._out):
            for target, source in zip(targets, sources, strict=True):
                target.copy_(source, non_blocking=True)
            return self._out.record_event()

    def copy_back(self, sources: Sequence[Tensor], after: Event) -> tuple[tuple[Tensor, ...], Event]:
        """Copy from host memory into new memory of the device; the sources must stay until the event returned."""
        self._back.wait_event(after)
        with self._module.stream(self._back):
            # allocated while this stream is current: no other stream can have used the memory last
            parts = tuple(torch.empty_like(source, device=self._device) for source in sources)
            for part, source in zip(parts, sources, strict=True):
                part.copy_(source, non_blocking=True)
            return parts, self._back.record_event()

    def clone(self, parts: Sequence[Tensor], ready: Event) -> tuple[Tensor, ...]:
        """Copy tensors by the current stream, once the event has happened."""
        self.hand_over(parts, ready)
        return tuple(part.clone() for part in parts)

    def hand_over(self, parts: Sequence[Tensor], ready: Event) -> None:
        """Let the current stream use tensors of another one, from the event on and for as long as it likes."""
        current = self._module.current_stream(self._device)
        current.wait_event(ready)
        for part in parts:
            # when the tensor is freed, its memory must not be reused before this stream is done with it
            part.record_stream(current)
