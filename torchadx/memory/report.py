"""What a manager did: frozen numbers, as text, as a dictionary, as a data frame."""

import collections
import dataclasses
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from torchadx.memory import _ledger
from torchadx.memory._dataframe import fields
from torchadx.memory._encoding import relative_error
from torchadx.memory.policy import Alias
from torchadx.memory.stores import Store

_NUMBERS = ("storages", "bytes", "held")
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@dataclasses.dataclass(frozen=True)
class ReportRow:
    """What happened to one storage, or to a stretch of one that was encoded by itself.

    Of an endless pass, storages beyond the first few thousand share a row with those like them.

    Attributes:
        module: Name of the watched module that saved it first; ``None`` outside of watched modules.
        op: What produced it, where known.
        shape: Of the tensor that was saved first.
        dtype: Of that tensor.
        alias: ``"parameter"``, ``"buffer"``, ``"leaf"``, ``"parameter copy"``, ``"input"``, or ``None``.
        action: What was done, as a policy string; less than what was asked for where a codec declined.
        reason: Why.
        storages: How many storages this row stands for.
        tensors: How many saved tensors show them.
        nbytes: Bytes of the storages, or of the stretches of them that were encoded.
        held_bytes: Bytes held for the graph instead; none for what its owner holds anyway.
        encode_seconds: Spent in the codec while packing.
        decode_seconds: Spent in the codec while unpacking.
        copy_seconds: Spent in the store, both ways.
        decodes: How many times it was brought back.
        relative_error: ``||decoded - exact|| / ||exact||`` over finite elements; ``None`` unless it was measured.
    """

    module: str | None
    op: str | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    alias: Alias | None
    action: str
    reason: str
    storages: int
    tensors: int
    nbytes: int
    held_bytes: int
    encode_seconds: float
    decode_seconds: float
    copy_seconds: float
    decodes: int
    relative_error: float | None


@dataclasses.dataclass(frozen=True)
class StoreUse:
    """What a store held and did, for every pass of its manager; seconds are those its callers waited for copies."""

    name: str
    bytes_now: int
    bytes_peak: int
    reloads: int
    seconds_waited: float


@dataclasses.dataclass(frozen=True)
class Skipped:
    """Saved tensors that were left as they are for one reason."""

    reason: str
    tensors: int
    nbytes: int


@dataclasses.dataclass(frozen=True)
class Report:
    """What a manager did since it was last entered. All sizes are in bytes.

    Attributes:
        rows: One per storage, in the order in which they were saved.
        stores: What was used of each store, by all passes.
        skipped: What was left alone, by reason.
        tensors: How many tensors were saved.
        tensor_bytes: Sum of their sizes, as if none shared memory.
        storages: How many storages they show.
        storage_bytes: Sum of the sizes of these.
        owned_bytes: Of which parameters, buffers and leaves: held by others anyway.
        held_bytes: What was held for the graph in place of the rest.
        resident_bytes: What is held now, by every graph alive, in the memory that the tensors were saved in (what
            stores elsewhere have in flight counts).
        peak_bytes: The most that was resident at once.
        errors: Relative error by action, where it was measured.
        notes: What else is worth knowing.
    """

    rows: tuple[ReportRow, ...]
    stores: tuple[StoreUse, ...]
    skipped: tuple[Skipped, ...]
    tensors: int
    tensor_bytes: int
    storages: int
    storage_bytes: int
    owned_bytes: int
    held_bytes: int
    resident_bytes: int
    peak_bytes: int
    errors: Mapping[str, float]
    notes: tuple[str, ...]

    @property
    def activation_bytes(self) -> int:
        """What autograd alone would hold: every storage once, without those that others hold anyway."""
        return self.storage_bytes - self.owned_bytes

    @property
    def ratio(self) -> float:
        """Bytes held over what autograd alone would hold; 1 if it would hold nothing."""
        return self.held_bytes / self.activation_bytes if self.activation_bytes else 1.0

    @property
    def encode_seconds(self) -> float:
        """Spent in codecs while packing (time of the calling threads)."""
        return math.fsum(row.encode_seconds for row in self.rows)

    @property
    def decode_seconds(self) -> float:
        """Spent in codecs while unpacking (time of the calling threads)."""
        return math.fsum(row.decode_seconds for row in self.rows)

    @property
    def copy_seconds(self) -> float:
        """Spent in stores, both ways (time of the calling threads)."""
        return math.fsum(row.copy_seconds for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers, strings, lists and dictionaries, fit for JSON."""
        totals = ("activation_bytes", "ratio", "encode_seconds", "decode_seconds", "copy_seconds")
        plain = dataclasses.asdict(self) | {name: getattr(self, name) for name in totals}
        plain["rows"] = [row | {"shape": list(row["shape"]), "dtype": str(row["dtype"])} for row in plain["rows"]]
        return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}

    def to_dataframe(self) -> Any:
        """Return the rows as a ``pandas.DataFrame``.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        return fields(self.rows, ReportRow)

    def __str__(self) -> str:
        """Draw the totals, then the rows, those alike together."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        if self.tensors == 0:
            yield "autograd saved nothing: no_grad, inference_mode, or nothing that requires grad"
        else:
            yield (
                f"{self.tensors} tensors saved, {size(self.tensor_bytes)}: {self.storages} storages, "
                f"{size(self.storage_bytes)}, of which {size(self.owned_bytes)} are parameters, buffers and leaves"
            )
            yield (
                f"held: {size(self.held_bytes)} for {size(self.activation_bytes)} of activations ({self.ratio:.3f}x); "
                f"resident now {size(self.resident_bytes)}, at most {size(self.peak_bytes)}"
            )
            yield (
                f"seconds: encode {self.encode_seconds:.4f}, decode {self.decode_seconds:.4f}, "
                f"copy {self.copy_seconds:.4f}"
            )
        for store in self.stores:
            yield (
                f"store {store.name}: {size(store.bytes_now)} now, {size(store.bytes_peak)} at most, "
                f"{store.reloads} reloads, {store.seconds_waited:.4f} s waited"
            )
        for action, error in self.errors.items():
            yield f"relative error of {action}: {error:.2e}"
        for note in self.notes:
            yield f"note: {note}"
        if self.rows:
            yield ""
            yield from _table(self.rows)


def size(nbytes: float) -> str:
    """Write a number of bytes for people: ``"1.5 MiB"``."""
    for unit in _UNITS[:-1]:
        if abs(nbytes) < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} {_UNITS[-1]}"


def module_name(module: str | None) -> str:
    """Write a module's name for people."""
    return "-" if module is None else module or "(model)"


def tensor_name(dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    """Write a tensor's type and sizes for people: ``"float32[2, 3]"``."""
    return f"{str(dtype).removeprefix('torch.')}[{', '.join(map(str, shape))}]"


def _table(rows: Iterable[ReportRow]) -> Iterator[str]:
    """Lay rows out in columns; those that differ in numbers only are summed."""
    groups: dict[tuple[Any, ...], list[ReportRow]] = collections.defaultdict(list)
    for row in rows:
        groups[(row.module, row.op, row.shape, row.dtype, row.alias, row.action, row.reason)].append(row)
    lines = [("module", "op", "tensor", "storages", "bytes", "held", "action", "why")]
    for (module, op, shape, dtype, alias, action, reason), alike in groups.items():
        lines.append(
            (
                module_name(module),
                op or alias or "-",
                tensor_name(dtype, shape),
                str(sum(row.storages for row in alike)),
                size(sum(row.nbytes for row in alike)),
                size(sum(row.held_bytes for row in alike)),
                action,
                reason,
            )
        )
    return columns(lines, _NUMBERS)


def columns(lines: Sequence[Sequence[str]], numbers: Collection[str]) -> Iterator[str]:
    """Align a table, whose first line names its columns; those named in ``numbers`` are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    align = [str.rjust if name in numbers else str.ljust for name in lines[0]]
    for line in lines:
        cells = (to(cell, width) for to, cell, width in zip(align, line, widths, strict=True))
        yield "  ".join(cells).rstrip()


def summarize(ledger: "_ledger.Ledger", resident: int, peak: int, stores: Mapping[str, Store]) -> Report:
    """Freeze a ledger; called under its lock."""
    return Report(
        rows=tuple(map(_freeze, ledger.rows)),
        stores=tuple(
            StoreUse(store.name, store.bytes_now, store.bytes_peak, store.reloads, store.seconds_waited)
            for store in stores.values()
            if store.bytes_peak
        ),
        skipped=tuple(_skipped(ledger.rows)),
        tensors=ledger.tensors,
        tensor_bytes=ledger.tensor_bytes,
        storages=ledger.storages,
        storage_bytes=ledger.storage_bytes,
        owned_bytes=ledger.owned_bytes,
        held_bytes=sum(row.held_bytes for row in ledger.rows),
        resident_bytes=resident,
        peak_bytes=peak,
        errors=dict(_errors(ledger.rows)),
        notes=tuple(dict.fromkeys(ledger.notes)),
    )


def _freeze(row: _ledger.Row) -> ReportRow:
    own = ("shape", "relative_error")
    shared = {name: getattr(row, name) for name in ReportRow.__annotations__ if name not in own}
    error = relative_error(row.squared_error, row.squared_norm) if row.measured else None
    return ReportRow(**shared, shape=tuple(row.shape), relative_error=error)


def _errors(rows: Iterable[_ledger.Row]) -> Iterator[tuple[str, float]]:
    sums: dict[str, tuple[float, float]] = {}
    for row in rows:
        if row.measured:
            error, norm = sums.get(row.action, (0.0, 0.0))
            sums[row.action] = error + row.squared_error, norm + row.squared_norm
    for action, (error, norm) in sums.items():
        yield action, relative_error(error, norm)


def _skipped(rows: Iterable[_ledger.Row]) -> Iterator[Skipped]:
    sums: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    for row in rows:
        if row.action == "keep":
            sums[row.reason][0] += row.tensors
            sums[row.reason][1] += row.nbytes
    for reason, (tensors, nbytes) in sums.items():
        yield Skipped(reason, tensors, nbytes)
