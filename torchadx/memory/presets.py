"""Managers for the usual wishes, in one line each."""

from collections.abc import Sequence
from pathlib import Path

import torch

from torchadx.memory.budget import DEFAULT_ACTIONS, Budget
from torchadx.memory.manager import ActivationManager
from torchadx.memory.policy import Rule, TensorMeta
from torchadx.memory.stores import DiskStore, HostStore, Store


def offload(
    pin_memory: bool = True,
    device_type: str | None = None,
    *,
    to: str = "host",
    min_bytes: int = 4096,
    directory: str | Path | None = None,
) -> ActivationManager:
    """Move what autograd saves out of the device's memory, bit for bit, and back before backward needs it.

    In place of ``torch.autograd.graph.save_on_cpu(pin_memory, device_type)``: the same arguments do the same, except
    that copies run beside the computation, that parameters stay, and that strides and sharing survive.

    Args:
        pin_memory: Whether host memory is page-locked, which lets copies run beside the computation.
        device_type: Move only tensors on this kind of device, e.g. ``"cuda"``; ``None``: on any.
        to: ``"host"`` or ``"disk"``. Tensors in host memory already are not moved to ``"host"``.
        min_bytes: Smaller tensors stay.
        directory: Where files are made, for ``"disk"``; ``None``: where the system keeps temporary files.

    Raises:
        ValueError: ``to`` names no such store.

    >>> with offload(to="disk") as saved:
    ...     loss = torch.nn.Linear(64, 64)(torch.randn(128, 64)).tanh().sum()
    >>> loss.backward()
    >>> saved.report().stores[0].name
    'disk'
    """
    if to not in ("host", "disk"):
        raise ValueError(f"offload to {to!r}: expected 'host' or 'disk'")

    def on_that_device(meta: TensorMeta) -> str:
        return f"@{to}" if meta.device.type == device_type else "keep"

    store: Store = HostStore(pin=pin_memory) if to == "host" else DiskStore(directory=directory)
    return ActivationManager(on_that_device if device_type else f"@{to}", min_bytes=min_bytes, stores=[store])


def compress(codec: str = "int8", *, min_bytes: int = 4096, measure_error: bool = False) -> ActivationManager:
    """Encode what autograd saves, where it is; masks (booleans) losslessly, at one bit an element.

    Args:
        codec: ``"bf16"``, ``"int8"``, ``"lossless"``, or any other codec.
        min_bytes: Smaller tensors are left alone.
        measure_error: Report the relative error of every tensor. Slow.

    Raises:
        ValueError: There is no such codec.

    >>> with compress("bf16") as saved:
    ...     loss = torch.nn.Linear(64, 64)(torch.randn(128, 64)).tanh().sum()
    >>> saved.report().ratio
    0.5
    """
    rules = [Rule(dtypes=torch.bool, then="mask"), Rule(then=codec)]
    return ActivationManager(rules, min_bytes=min_bytes, measure_error=measure_error)


def fit(
    budget: int | str,
    *,
    max_error: float = 0.01,
    actions: Sequence[str] = DEFAULT_ACTIONS,
    min_bytes: int = 4096,
    directory: str | Path | None = None,
) -> ActivationManager:
    """Keep what autograd saves under a budget, at the least time: see :class:`Budget`.

    Args:
        budget: Bytes, as a number or as text: ``"2 GiB"``.
        max_error: Relative error allowed of a lossily encoded tensor; 0 for lossless only.
        actions: What may be done, as policy strings; ``"@disk"`` is not among them unless it is named.
        min_bytes: Smaller tensors are left alone.
        directory: Where files are made, for ``"@disk"``; ``None``: where the system keeps temporary files.

    Raises:
        ValueError: The budget is no number of bytes, or an action is no policy string.
    """
    planner = Budget(budget, max_error=max_error, actions=actions)
    stores = [DiskStore.within(planner.window_bytes, directory=directory)] if directory is not None else []
    return ActivationManager(planner, min_bytes=min_bytes, stores=stores)
