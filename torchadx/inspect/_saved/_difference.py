"""Two reports compared: before and after a change."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torchadx.inspect._names import module_name
from torchadx.memory._dataframe import fields
from torchadx.memory.report import columns, size

if TYPE_CHECKING:
    from torchadx.inspect._saved._report import SavedReport, SavedRow

_NUMBERS = ("before", "after", "change")


@dataclasses.dataclass(frozen=True)
class Change:
    """What the tensors that one slot of one module's nodes saved first came to hold. Sizes are in bytes.

    Attributes:
        module: Path of the module.
        slot: ``"AddmmBackward0.mat1"``.
        before_count: How many storages there were.
        after_count: How many there are.
        before_bytes: What they held.
        after_bytes: What they hold.
        before_residence: Where and as what, several joined by commas; empty if there were none.
        after_residence: The same, now.
    """

    module: str | None
    slot: str
    before_count: int
    after_count: int
    before_bytes: int
    after_bytes: int
    before_residence: str
    after_residence: str

    @property
    def change(self) -> int:
        """Bytes more, or less, than before."""
        return self.after_bytes - self.before_bytes


@dataclasses.dataclass(frozen=True)
class Difference:
    """What changed from one report to another, the largest changes first.

    Attributes:
        rows: One for each slot of a module that holds anything else than before.
        before: Totals of the report before, by name.
        after: Totals of the other.
    """

    rows: tuple[Change, ...]
    before: dict[str, int | None]
    after: dict[str, int | None]

    @property
    def change(self) -> int:
        """Bytes held more, or less, than before."""
        return (self.after["held_bytes"] or 0) - (self.before["held_bytes"] or 0)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers, strings, lists and dictionaries, fit for JSON."""
        rows = [dataclasses.asdict(row) | {"change": row.change} for row in self.rows]
        return {"before": self.before, "after": self.after, "rows": rows}

    def to_dataframe(self) -> Any:
        """Return the rows as a ``pandas.DataFrame``.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        return fields(self.rows, Change)

    def __str__(self) -> str:
        """Draw the totals, then the rows."""
        lines: list[tuple[str, ...]] = [("", "before", "after", "change")]
        for name in ("naive_bytes", "unique_bytes", "activation_bytes", "held_bytes", "resident_bytes", "peak_bytes"):
            before, after = self.before[name], self.after[name]
            if before is not None and after is not None:
                lines.append((name.removesuffix("_bytes"), size(before), size(after), _signed(after - before)))
        text = list(columns(lines, _NUMBERS))
        if not self.rows:
            return "\n".join([*text, "", "every slot holds what it held"])
        lines = [("module", "slot", "before", "after", "change", "where")]
        for row in self.rows:
            where = " -> ".join(filter(None, dict.fromkeys((row.before_residence, row.after_residence))))
            lines.append(
                (
                    module_name(row.module),
                    row.slot,
                    size(row.before_bytes),
                    size(row.after_bytes),
                    _signed(row.change),
                    where,
                )
            )
        return "\n".join([*text, "", *columns(lines, _NUMBERS)])


def _signed(nbytes: int) -> str:
    return f"+{size(nbytes)}" if nbytes > 0 else size(nbytes)


def compare(before: "SavedReport", after: "SavedReport") -> Difference:
    """Compare two reports slot by slot of each module."""
    old, new = _by_slot(before.rows), _by_slot(after.rows)
    rows = []
    for module, slot in dict.fromkeys((*old, *new)):
        was, now = old.get((module, slot), []), new.get((module, slot), [])
        change = Change(
            module=module,
            slot=slot,
            before_count=len(was),
            after_count=len(now),
            before_bytes=sum(row.held_bytes for row in was),
            after_bytes=sum(row.held_bytes for row in now),
            before_residence=", ".join(sorted({row.residence for row in was})),
            after_residence=", ".join(sorted({row.residence for row in now})),
        )
        same = change.before_count == change.after_count and change.before_residence == change.after_residence
        if change.change or not same:
            rows.append(change)
    rows.sort(key=lambda row: -abs(row.change))
    return Difference(tuple(rows), before.totals(), after.totals())


def _by_slot(rows: "Sequence[SavedRow]") -> dict[tuple[str | None, str], list["SavedRow"]]:
    slots: dict[tuple[str | None, str], list[SavedRow]] = collections.defaultdict(list)
    for row in rows:
        slots[row.module, f"{row.node}.{row.slot}"].append(row)
    return slots
