"""Saved bytes summed by module."""

import collections
import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torchadx.inspect._names import module_name
from torchadx.memory._dataframe import fields
from torchadx.memory.report import columns, size

if TYPE_CHECKING:
    from torchadx.inspect._saved._report import SavedRow


@dataclasses.dataclass(frozen=True)
class ModuleRow:
    """What one module saved first. Sizes are in bytes.

    Attributes:
        module: Its path; ``""`` is the model, ``None`` what was saved outside of modules.
        kind: Name of its class, where known.
        depth: How many modules are around it.
        storages: How many storages its own forward saved first.
        own_bytes: What the graph alone holds for these.
        total_bytes: The same, with its submodules.
    """

    module: str | None
    kind: str | None
    depth: int
    storages: int
    own_bytes: int
    total_bytes: int


@dataclasses.dataclass(frozen=True)
class ByModule:
    """A row for each module that saved something, in the order of their first saving, those around them first."""

    rows: tuple[ModuleRow, ...]

    def __iter__(self) -> Iterator[ModuleRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def to_dataframe(self) -> Any:
        """Return the rows as a ``pandas.DataFrame``.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        return fields(self.rows, ModuleRow)

    def __str__(self) -> str:
        """Draw the rows, submodules indented."""
        lines = [("module", "class", "storages", "own", "with submodules")]
        for row in self.rows:
            name = "  " * row.depth + module_name(row.module).rpartition(".")[2]
            lines.append((name, row.kind or "", str(row.storages), size(row.own_bytes), size(row.total_bytes)))
        return "\n".join(columns(lines, ("storages", "own", "with submodules")))


def by_module(rows: "Sequence[SavedRow]", classes: Mapping[str, str], beside: Collection[str]) -> ByModule:
    """Sum rows by module, and by the modules around it."""
    storages: collections.Counter[str | None] = collections.Counter()
    own: collections.Counter[str | None] = collections.Counter()
    total: collections.Counter[str | None] = collections.Counter()
    order: dict[str | None, None] = {}
    for row in rows:
        storages[row.module] += 1
        own[row.module] += row.held_bytes
        for around in surrounding(row.module, beside):
            order.setdefault(around)
            total[around] += row.held_bytes
    return ByModule(
        tuple(
            ModuleRow(
                path,
                None if path is None else classes.get(path),
                len(surrounding(path, beside)) - 1,
                *(counter[path] for counter in (storages, own, total)),
            )
            for path in _nested(order)
        )
    )


def surrounding(module: str | None, beside: Collection[str]) -> list[str | None]:
    """Return the paths of the modules around one, outermost first, and its own; it is not around what is beside."""
    if module is None:
        return [None]
    parts = module.split(".") if module else []
    paths = [".".join(parts[: length + 1]) for length in range(len(parts))]
    return [*paths] if parts and parts[0] in beside else ["", *paths]


def _nested(paths: dict[str | None, None]) -> list[str | None]:
    """Order paths such that submodules follow what they are in, else as they came."""
    place = {path: index for index, path in enumerate(paths)}

    def key(path: str | None) -> tuple[int, ...]:
        if not path:
            return (place[path],)
        parts = path.split(".")
        around = [".".join(parts[: length + 1]) for length in range(len(parts))]
        return (place.get("", -1), *(place[outer] for outer in around if outer in place))

    return sorted(paths, key=key)
