"""Say on what machine a benchmark ran, and whether that machine was quiet."""

import importlib.metadata
import os
import platform
from typing import Any

import torch

import torchadx
from torchadx import dispatch


def describe(device: torch.device) -> dict[str, Any]:
    """Return what a reader needs to place the numbers: device, cores, threads, versions, load."""
    return {
        "device": dispatch.machine(device).partition(";")[0],
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "torchadx": torchadx.__version__,
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def headline(machine: dict[str, Any]) -> str:
    """Return the description as one line."""
    return (
        f"{machine['device']}, {machine['cores']} cores, {machine['threads']} threads, {machine['capability']} · "
        f"torchadx {machine['torchadx']}, torch {machine['torch']}, triton {machine['triton'] or 'not installed'}, "
        f"Python {machine['python']}"
    )


def warning(machine: dict[str, Any]) -> str | None:
    """Return a warning when something else kept the machine busy as the benchmark began."""
    load = machine["load_average"]
    if load is None or load < 0.3 * machine["cores"]:
        return None
    return f"load average {load:.1f} on {machine['cores']} cores: the machine is busy, so take these timings as rough"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
