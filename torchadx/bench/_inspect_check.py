"""Counts by other means, which what the inspection tells must agree with."""

import dataclasses
import json
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves

from torchadx.bench._harness import WrongResultError
from torchadx.bench._inspect_models import Training

#: most relative difference between bytes that two accounts of an allocator give
TOLERANCE = 0.05
#: most relative difference between sums of the same times
ROUNDING = 1e-6

_SECOND = "torchadx.bench second step"
_PAYLOAD = re.compile(r'<script type="application/json"[^>]*>(.*?)</script>', re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Count:
    """What hooks on saved tensors saw. Sizes are in bytes.

    Attributes:
        tensors: Saved.
        storages: That they show.
        nbytes: Of these storages.
        more_outputs: Of outputs' storages that none of them is.
    """

    tensors: int
    storages: int
    nbytes: int
    more_outputs: int


def count_saved(run: Callable[[], Any]) -> Count:
    """Go forward under hooks that count."""
    tensors = 0
    held: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        nonlocal tensors
        tensors += 1
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage  # kept alive, so that its address is not handed out twice
        return tensor.detach()  # the tensor itself may hold the graph that is to hold it, for ever

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = run()
    nbytes = sum(storage.nbytes() for storage in held.values())
    shown = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    return Count(tensors, len(held), nbytes, unique_bytes(shown, held))


def unique_bytes(tensors: Iterable[Tensor], without: Iterable[int] = ()) -> int:
    """Add up the storages of tensors, each once, without those at these addresses."""
    sizes = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    left_out = set(without)
    return sum(nbytes for address, nbytes in sizes.items() if address not in left_out)


def count_edges(output: Tensor) -> int:
    """Count the arrows of the graph that leads to a tensor: to its nodes, from its leaves, and to itself.

    Args:
        output: No view, of which a picture would show the base.
    """
    edges, seen, following = 1, set(), [output.grad_fn]
    while following:
        node = following.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        into = [other for other, _ in node.next_functions if other is not None]
        edges += len(into) + hasattr(node, "variable")
        following += into
    return edges


def arrows(text: str) -> int:
    """Count the arrows in DOT text, one a line."""
    return sum(bool(re.match(r"\s*\S+ -> ", line)) for line in text.splitlines())


def count_peak(training: Training) -> int:
    """Return the most bytes allocated during the second of two steps, by the events of torch's own trace.

    Gradients and the optimizer's state of the first are among these events; what was there before both steps is not.
    """
    training.forget()
    before = unique_bytes(training.tensors())
    device = training.tensors()[0].device
    with torch.profiler.profile(profile_memory=True) as profiler:
        training.step()
        with torch.profiler.record_function(_SECOND):
            training.step()
    events = trace_events(profiler.export_chrome_trace)
    (second,) = (each for each in events if each["name"] == _SECOND and each.get("cat") == "user_annotation")
    start, end = second["ts"], second["ts"] + second["dur"]
    return before + _peak(_allocations(events, device), start, end)


def _allocations(events: Sequence[dict[str, Any]], device: torch.device) -> list[tuple[float, int, int]]:
    """Return time, address and bytes of what happened on a device, in order."""
    kind = 0 if device.type == "cpu" else 1
    own = [each for each in events if each["name"] == "[memory]" and each["args"]["Device Type"] == kind]
    own.sort(key=lambda each: (each["ts"], each["args"].get("Ev Idx", 0)))
    return [(each["ts"], each["args"]["Addr"], each["args"]["Bytes"]) for each in own]


def _peak(allocations: Iterable[tuple[float, int, int]], start: float, end: float) -> int:
    now = most = 0
    alive: set[int] = set()
    for time, address, nbytes in allocations:
        if time > end:
            break
        # what was there before the recording does not count when it goes
        if nbytes < 0 and address not in alive:
            continue
        if time >= start:
            most = max(most, now)
        now += nbytes
        (alive.add if nbytes > 0 else alive.discard)(address)
        if time >= start:
            most = max(most, now)
    return most


def trace_events(export: Callable[[str], object]) -> list[dict[str, Any]]:
    """Return the events of a trace that a function writes to a file."""
    with tempfile.TemporaryDirectory(prefix="torchadx-") as folder:
        path = pathlib.Path(folder) / "trace.json"
        export(str(path))
        return json.loads(path.read_bytes(), strict=False)["traceEvents"]


def recorded_ms(events: Iterable[dict[str, Any]]) -> float:
    """Return how long the widest range of a trace was open."""
    return max(each["dur"] for each in events if each["ph"] == "X" and each.get("cat") == "user_annotation") / 1e3


def payload_of(page: str) -> dict[str, Any]:
    """Return the numbers that a page holds."""
    found = _PAYLOAD.search(page)
    if found is None:
        raise WrongResultError("page: it holds no data")
    return json.loads(found[1])


def same(what: str, got: object, expected: object) -> None:
    """Refuse what differs from another count.

    Raises:
        WrongResultError: It does.
    """
    if got != expected:
        raise WrongResultError(f"{what}: got {got}, counted {expected}; nothing was timed")


def near(what: str, got: float, expected: float, tolerance: float = TOLERANCE) -> None:
    """Refuse what is further from another count than that.

    Raises:
        WrongResultError: It is.
    """
    if not abs(got - expected) <= tolerance * abs(expected):
        raise WrongResultError(
            f"{what}: got {got}, counted {expected}, at most {tolerance:g} of it apart; nothing was timed"
        )
