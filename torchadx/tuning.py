"""Measured choices: for each operation and shape bucket, which of several equal routes is fastest here.

The first time a bucket is met its candidates are timed on the tensors at hand; the winner is kept in memory and on
disk, per machine and library version. ``TORCHADX_TUNING`` says how far this goes: ``full`` (the default) measures
what is new, ``cached`` uses what is on disk and static defaults otherwise, ``off`` uses static defaults alone.
"""

import builtins
import glob
import hashlib
import json
import os
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from torchadx import dispatch

_FORMAT = 1
_SECONDS = 0.3
_ROUNDS = 25
# a challenger has to beat the default by more than the noise between two runs of the same code
_MARGIN = 0.98


class Key(NamedTuple):
    """What a choice depends on.

    Attributes:
        op: The operation, e.g. ``"input_grad"``.
        device: ``torch.device`` it runs on.
        dtype: ``torch.dtype`` of its inputs.
        m: Rows, rounded up to a power of two by :func:`bucket`.
        n: Output features.
        k: Input features.
        flags: What else changes the work, e.g. ``"bias save"``.
        threads: Intra-op CPU threads.
    """

    op: str
    device: torch.device
    dtype: torch.dtype
    m: int
    n: int
    k: int
    flags: str = ""
    threads: int = 0


class Record(NamedTuple):
    """One choice, as :func:`list` shows it.

    Attributes:
        key: What it is for.
        choice: The candidate's name.
        source: ``"measured"``, ``"disk"``, ``"pinned"`` or ``"static"``.
        seconds: Best time of each candidate; ``inf`` for one that could not run; empty unless measured.
    """

    key: Key
    choice: str
    source: str
    seconds: dict[str, float]


_records: dict[Key, Record] = {}
# read from disk, and not yet checked against the candidates of today
_stored: dict[Key, Record] = {}
_pins: dict[str, str] = {}
_loaded: set[torch.device] = set()
_lock = threading.RLock()
# how often choices were taken back: whoever keeps one is to ask again when it changes
_revisions = 0


def bucket(rows: int) -> int:
    """Round a number of rows up to a power of two."""
    return 1 << (rows - 1).bit_length() if rows > 1 else rows


def revision() -> int:
    """Return a number that changes whenever choices are taken back, by :func:`clear` or :func:`pin`."""
    return _revisions


def find(key: Key) -> str | None:
    """Return the choice already made for ``key``, or ``None``."""
    record = _records.get(key)
    return None if record is None else record.choice


def choose(
    key: Key,
    candidates: Sequence[str],
    run: Callable[[str], object],
    default: str,
    unusable: tuple[type[Exception], ...] = (),
) -> str:
    """Return the candidate to use for ``key``, measuring once where that is allowed.

    Args:
        key: What the choice depends on.
        candidates: Names of routes that compute the same result.
        run: Runs a candidate on the tensors at hand.
        default: The static choice, among ``candidates``; also wins near ties.
        unusable: Exceptions that rule a candidate out, such as a kernel too large for the device.

    Returns:
        One of ``candidates``.

    Raises:
        ValueError: A pinned choice is not among the candidates.
    """
    return find(key) or _decide(key, candidates, run, default, unusable)


def _decide(
    key: Key,
    candidates: Sequence[str],
    run: Callable[[str], object],
    default: str,
    unusable: tuple[type[Exception], ...],
) -> str:
    with _lock:
        mode = dispatch.tuning_mode()
        if key.op in _pins:
            record = _pinned(key, candidates)
        elif mode == "off" or len(candidates) == 1:
            record = Record(key, default, "static", {})
        else:
            _load(key.device)
            stored = _stored.get(key)
            if stored is not None and stored.choice in candidates:
                record = stored
            elif mode == "cached":
                record = Record(key, default, "static", {})
            elif _capturing(key.device):
                return default
            else:
                record = _stored[key] = _measure(key, candidates, run, default, unusable)
        _records[key] = record
        if record.source == "measured":
            _save(key.device)
        return record.choice


def _pinned(key: Key, candidates: Sequence[str]) -> Record:
    choice = _pins[key.op]
    if choice not in candidates:
        raise ValueError(
            f"{key.op!r} is pinned to {choice!r}, which does not serve {key}; candidates here: "
            f"{', '.join(candidates)}. Undo with torchadx.tuning.pin({key.op!r}, None)."
        )
    return Record(key, choice, "pinned", {})


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _measure(
    key: Key,
    candidates: Sequence[str],
    run: Callable[[str], object],
    default: str,
    unusable: tuple[type[Exception], ...],
) -> Record:
    seconds: dict[str, float] = {}
    for name in candidates:
        try:
            _time(run, name, key.device)
        except unusable:
            seconds[name] = float("inf")
    rounds: dict[str, builtins.list[float]] = {name: [] for name in candidates if name not in seconds}
    deadline = time.perf_counter() + _SECONDS
    # interleaved, and the best of each: other load on the machine only ever adds time
    for count in range(_ROUNDS):
        if count >= 2 and time.perf_counter() > deadline:
            break
        for name, samples in rounds.items():
            samples.append(_time(run, name, key.device))
    seconds |= {name: min(samples) for name, samples in rounds.items()}
    best = min(seconds, key=seconds.__getitem__)
    if best != default and seconds[best] > _MARGIN * seconds[default]:
        best = default
    return Record(key, best, "measured", seconds)


def _time(run: Callable[[str], object], name: str, device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        run(name)
        return time.perf_counter() - start
    with torch.cuda.device(device):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run(name)
        end.record()
        end.synchronize()
    return begin.elapsed_time(end) / 1e3


def list() -> builtins.list[Record]:
    """Return every choice made so far in this process, in the order in which it was made."""
    return builtins.list(_records.values())


def clear(disk: bool = True) -> None:
    """Forget every choice and pin.

    Args:
        disk: Also delete the files in the cache folder, of every device.
    """
    global _revisions
    with _lock:
        _revisions += 1
        for memory in (_records, _stored, _pins, _loaded):
            memory.clear()
        for path in glob.glob(os.path.join(dispatch.cache_directory(), "tuning-*.json")) if disk else ():
            os.unlink(path)


def pin(op: str, choice: str | None) -> None:
    """Use one candidate for an operation, whatever was measured, in this process.

    Args:
        op: The operation as :func:`list` names it, e.g. ``"weight_grad"``.
        choice: A candidate's name, e.g. ``"aten"``; ``None`` goes back to measured choices. A name that does not
            serve a shape raises ``ValueError`` when that shape is met.
    """
    global _revisions
    with _lock:
        _revisions += 1
        _pins.pop(op, None)
        if choice is not None:
            _pins[op] = choice
        for key in [key for key in _records if key.op == op]:
            del _records[key]


def _path(device: torch.device) -> str:
    digest = hashlib.sha256(dispatch.machine(device).encode()).hexdigest()[:16]
    return os.path.join(dispatch.cache_directory(), f"tuning-{_FORMAT}-{digest}.json")


def _load(device: torch.device) -> None:
    if device not in _loaded:
        _loaded.add(device)
        _stored.update((record.key, record) for record in _read(device))


def _read(device: torch.device) -> builtins.list[Record]:
    try:
        with open(_path(device)) as file:
            return [_record(row, device) for row in json.load(file)["records"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        warnings.warn(f"torchadx ignores its tuning cache {_path(device)}, which cannot be read: {error}", stacklevel=2)
        return []


def _record(row: dict[str, Any], device: torch.device) -> Record:
    key = row["key"] | {"device": device, "dtype": getattr(torch, row["key"]["dtype"])}
    return Record(Key(**key), row["choice"], "disk", row["seconds"])


def _save(device: torch.device) -> None:
    records = {record.key: record for record in _read(device)}
    mine = {key: r for key, r in _records.items() if key.device == device and r.source in ("measured", "disk")}
    rows = [_row(record) for record in (records | mine).values()]
    try:
        os.makedirs(dispatch.cache_directory(), exist_ok=True)
        # written aside and renamed: another process never reads half a file
        with tempfile.NamedTemporaryFile("w", dir=dispatch.cache_directory(), delete=False) as file:
            json.dump({"machine": dispatch.machine(device), "records": rows}, file, indent=1)
        os.replace(file.name, _path(device))
    except OSError as error:
        warnings.warn(
            f"torchadx cannot write {_path(device)} ({error}); what it measures is kept for this process only. "
            "Set TORCHADX_CACHE_DIR to a writable folder.",
            stacklevel=2,
        )


def _row(record: Record) -> dict[str, Any]:
    key = record.key._asdict() | {"dtype": str(record.key.dtype).removeprefix("torch.")}
    del key["device"]
    return {"key": key, "choice": record.choice, "seconds": record.seconds}
