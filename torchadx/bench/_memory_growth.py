"""Whether anything grows over many steps: tensors, files, pinned memory, threads."""

import gc
import os
import threading
import time

import torch
from torch import nn

from torchadx.bench._memory_results import Count, Growth
from torchadx.memory import ActivationManager, DeviceStore, DiskStore, HostStore, Store

#: a policy for each store
POLICIES = {"device": "int8", "host": "bf16@host", "disk": "@disk"}

#: every so many steps a graph is dropped without backward
DROPPED = 10


def measure(store: str, steps: int, directory: str | os.PathLike[str] | None, device: torch.device) -> Growth:
    """Train a small model under one store; count after a tenth of the steps, and at the end."""
    threads = torch.get_num_threads()
    # matrices this small gain nothing from threads, and wait for them on a busy machine
    torch.set_num_threads(1)
    try:
        return _measure(store, steps, directory, device)
    finally:
        torch.set_num_threads(threads)


def _measure(store: str, steps: int, directory: str | os.PathLike[str] | None, device: torch.device) -> Growth:
    used = _open(store, directory)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x = torch.randn(64, 32, device=device)
    manager = ActivationManager(POLICIES[store], stores=[used]).watch(model)
    early = None
    start = time.perf_counter()
    for number in range(steps):
        with manager:
            loss = model(x).square().mean()
        if number % DROPPED:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        del loss
        if number == steps // 10:
            early = _count(manager, used)
    seconds = time.perf_counter() - start
    late = _count(manager, used)
    manager.close()
    return Growth(store, POLICIES[store], steps, seconds, early or late, late)


def _open(store: str, directory: str | os.PathLike[str] | None) -> Store:
    if store == "disk":
        return DiskStore(directory=directory)
    return HostStore() if store == "host" else DeviceStore()


def _count(manager: ActivationManager, store: Store) -> Count:
    gc.collect()
    manager.flush()
    own = store.directory if isinstance(store, DiskStore) else None
    threads = _entries("/proc/self/task")
    return Count(
        tensors=sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()),
        held_bytes=store.bytes_now,
        files=len(os.listdir(own)) if own else 0,
        open_files=_entries("/proc/self/fd"),
        pinned_bytes=store.pinned_bytes if isinstance(store, HostStore) else 0,
        threads=threading.active_count() if threads is None else threads,
        rss=_resident_bytes(),
    )


def _entries(directory: str) -> int | None:
    return len(os.listdir(directory)) if os.path.isdir(directory) else None


def _resident_bytes() -> int | None:
    """Bytes of the process in memory, where the system tells as Linux does."""
    if not os.path.exists("/proc/self/statm"):
        return None
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
