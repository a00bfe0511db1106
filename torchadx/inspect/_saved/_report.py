"""What a graph keeps for backward: frozen numbers, as text, dictionary, JSON, data frame, by module, and compared."""

import collections
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from torchadx.inspect._draw import draw_saved
from torchadx.inspect._names import module_name
from torchadx.inspect._saved._by_module import ByModule, by_module
from torchadx.inspect._saved._difference import Difference, compare
from torchadx.memory._dataframe import fields
from torchadx.memory.report import columns, size

_NUMBERS = ("held", "storage", "saved", "used")
_TOTALS = (
    *("tensors", "storages", "naive_bytes", "unique_bytes", "activation_bytes"),
    *("held_bytes", "resident_bytes", "measured_bytes", "peak_bytes"),
)


@dataclasses.dataclass(frozen=True)
class SavedRow:
    """A storage that nodes of the graph keep for backward. Sizes are in bytes.

    Attributes:
        module: Path of the module whose forward saved it first; ``""`` is the model, ``None`` outside of modules.
        source: ``file:line`` of the code outside of libraries that did; ``None`` where that was not noted.
        node: The node of the graph that keeps it, ``"AddmmBackward0"``.
        slot: Where, ``"mat1"``; ``"ctx.name"`` for an attribute of a Python function's ``ctx``.
        slots: All nodes and slots that show this storage, in the order in which they were saved.
        shape: Of the tensor in the first slot; ``None`` where a hook hides it, as a checkpoint's does.
        dtype: Of that tensor, ``"float32"``.
        strides: Of that tensor, in elements.
        nbytes: Of that tensor's elements.
        slots_bytes: The same, summed over all slots.
        storage_bytes: Of the storage; of one that a manager encoded, of what of it was.
        marginal_bytes: Freed if this slot vanished: nothing if another slot or owner holds the storage.
        held_bytes: What the graph alone holds, in whatever form: freed if all slots vanished.
        alias: Who holds it anyway: ``"parameter 0.weight"``, ``"buffer ..."``, ``"input"``, ``"leaf"``; else ``None``.
            What a function or an outermost module was given is an input: that its caller still holds it is taken for
            granted.
        relation: ``"view of parameter 0.weight, transposed"``, ``"shared by 2 slots"``; ``None`` if there is none.
        residence: A device, ``"int8@host"`` as a manager's report says it, ``"recomputed"`` by a checkpoint, or the
            name of other hooks.
        resident: Whether what is held is in the memory of the device that the tensor came from.
        saved_at: Place among all slots in the order of saving.
        used_at: Place, in backward's order of nodes, of the last that reads it: it can be freed after that.
        why: Why it is kept.
        remedy: What can be done about it.
    """

    module: str | None
    source: str | None
    node: str
    slot: str
    slots: tuple[str, ...]
    shape: tuple[int, ...] | None
    dtype: str | None
    strides: tuple[int, ...] | None
    nbytes: int
    slots_bytes: int
    storage_bytes: int
    marginal_bytes: int
    held_bytes: int
    alias: str | None
    relation: str | None
    residence: str
    resident: bool
    saved_at: int
    used_at: int
    why: str
    remedy: str

    @property
    def tensor(self) -> str:
        """The tensor's type and sizes: ``"float32[2, 3]"``."""
        return "?" if self.shape is None else f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclasses.dataclass(frozen=True)
class SavedReport:
    """What a graph keeps for backward, each storage once. Holds no tensor. Sizes are in bytes.

    The totals go from what one would count to what is there: ``naive_bytes``, less what slots share, is
    ``unique_bytes``; less what others hold anyway, ``activation_bytes``; in the form in which it waits,
    ``held_bytes``, of which ``resident_bytes`` on the device.

    Attributes:
        rows: One for each storage, in the order in which they were saved.
        nodes: How many nodes the graph has.
        classes: From a module's path to the name of its class.
        beside: Paths of outermost modules beside the model, such as a loss.
        measured_bytes: By how much torch's allocator grew while the function ran, outputs included; ``None`` where
            that was not measured.
        peak_bytes: The most by which it had grown at once; ``None`` where that was not measured.
        notes: What else is worth knowing.
    """

    rows: tuple[SavedRow, ...]
    nodes: int
    classes: Mapping[str, str]
    measured_bytes: int | None = None
    peak_bytes: int | None = None
    notes: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()

    @property
    def tensors(self) -> int:
        """How many slots hold a tensor."""
        return sum(len(row.slots) for row in self.rows)

    @property
    def storages(self) -> int:
        """How many storages they show."""
        return len(self.rows)

    @property
    def naive_bytes(self) -> int:
        """Sum of the sizes of all saved tensors, as if none shared memory."""
        return sum(row.slots_bytes for row in self.rows)

    @property
    def unique_bytes(self) -> int:
        """Sum of the sizes of the storages, each once and whole: more than the tensors' where these show parts."""
        return sum(row.storage_bytes for row in self.rows)

    @property
    def activation_bytes(self) -> int:
        """The same without parameters, buffers, inputs and leaves, which others hold anyway."""
        return sum(row.storage_bytes for row in self.rows if row.alias is None)

    @property
    def held_bytes(self) -> int:
        """What the graph alone holds for these, in whatever form and place."""
        return sum(row.held_bytes for row in self.rows)

    @property
    def resident_bytes(self) -> int:
        """Of which on the devices that the tensors came from."""
        return sum(row.held_bytes for row in self.rows if row.resident)

    def measured(self, grown: int, peak: int) -> "SavedReport":
        """Return the report with what torch's allocator was seen to do."""
        return dataclasses.replace(self, measured_bytes=grown, peak_bytes=peak)

    def largest(self, limit: int | None = None) -> tuple[SavedRow, ...]:
        """Return the rows that hold most, largest first."""
        return tuple(sorted(self.rows, key=lambda row: (-row.held_bytes, -row.storage_bytes, row.saved_at))[:limit])

    def by_module(self) -> ByModule:
        """Sum by the module that saved first."""
        return by_module(self.rows, self.classes, self.beside)

    def diff(self, other: "SavedReport") -> Difference:
        """Compare with ``other``, which came after: what grew, shrank, came and went."""
        return compare(self, other)

    def totals(self) -> dict[str, int | None]:
        """Return the sums by name."""
        return {name: getattr(self, name) for name in _TOTALS}

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers, strings, lists and dictionaries, fit for JSON."""
        rows = [
            {key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(row).items()}
            for row in self.rows
        ]
        return {"totals": self.totals(), "rows": rows, "nodes": self.nodes, "notes": list(self.notes)}

    def to_json(self, indent: int | None = None) -> str:
        """Return :meth:`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=indent)

    def to_dataframe(self) -> Any:
        """Return the rows as a ``pandas.DataFrame``.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        return fields(self.rows, SavedRow)

    def draw(self, path: str | os.PathLike[str], other: "SavedReport | None" = None, *, limit: int = 25) -> None:
        """Draw what each module's own forward saved, most first.

        Args:
            path: A file to write; matplotlib knows ``.png``, ``.svg`` and ``.pdf``.
            other: A report from after a change, drawn beside this one.
            limit: How many modules.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        draw_saved([("", self)] if other is None else [("before", self), ("after", other)], path, limit)

    def table(self, limit: int | None = None) -> str:
        """Draw the rows that hold most, largest first, up to ``limit`` of them."""
        lines = [("module", "where", "slot", "tensor", "storage", "held", "residence", "used", "why")]
        for row in self.largest(limit):
            more = f" +{len(row.slots) - 1}" if len(row.slots) > 1 else ""
            lines.append(
                (
                    module_name(row.module),
                    row.source or "-",
                    f"{row.node}.{row.slot}{more}",
                    row.tensor,
                    size(row.storage_bytes),
                    size(row.held_bytes),
                    row.residence,
                    str(row.used_at),
                    row.relation or row.alias or row.why,
                )
            )
        return "\n".join(columns(lines, _NUMBERS))

    def __str__(self) -> str:
        """Draw the totals, the largest rows, and what can be done about most."""
        return "\n".join(self._lines())

    def _lines(self, limit: int = 20) -> Iterator[str]:
        yield f"{self.tensors} saved tensors in {self.nodes} nodes show {self.storages} storages"
        yield f"  {size(self.naive_bytes):>10}  the tensors' own sizes, as if none shared memory"
        yield f"  {size(self.unique_bytes):>10}  the storages, each once and whole"
        yield f"  {size(self.activation_bytes):>10}  without parameters, buffers and inputs, which others hold anyway"
        yield f"  {size(self.held_bytes):>10}  held now, {size(self.resident_bytes)} of it where it came from"
        if self.measured_bytes is not None:
            yield f"  {size(self.measured_bytes):>10}  by which torch's allocator grew"
        if self.peak_bytes is not None:
            yield f"  {size(self.peak_bytes):>10}  at most, as torch's allocator saw it"
        yield from (f"note: {note}" for note in self.notes)
        if not self.rows:
            return
        yield ""
        yield self.table(limit)
        if len(self.rows) > limit:
            rest = self.largest()[limit:]
            yield f"... and {len(rest)} more, which hold {size(sum(row.held_bytes for row in rest))}"
        remedies = self._remedies()
        if remedies:
            yield ""
            yield from remedies

    def _remedies(self, limit: int = 5) -> list[str]:
        sums: collections.Counter[tuple[str, str]] = collections.Counter()
        for row in self.rows:
            if row.held_bytes and not row.remedy.startswith("nothing"):
                sums[f"{row.node}.{row.slot}", row.remedy] += row.held_bytes
        return [f"{size(nbytes):>10}  {slot}: {remedy}" for (slot, remedy), nbytes in sums.most_common(limit)]
