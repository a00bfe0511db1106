"""What one pass saved: each storage once, each stretch of one encoded once, and a row of the report for each."""

import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import TensorWeakRef

from torchadx.memory._account import Account
from torchadx.memory._storage import Region
from torchadx.memory.policy import Action, Alias

if TYPE_CHECKING:
    from torchadx.memory._packed import Piece

#: told when the graph lets go of something; runs in finalizers
Released: TypeAlias = Callable[[], None]

#: up to this many storages have a row of their own; those after share one with their like: a pass may be endless
MAX_ROWS = 4096

#: what is not the graph's own, and why it is left alone
OWNED: dict[Alias | None, str] = {
    "parameter": "a parameter: its module holds it",
    "buffer": "a buffer: its module holds it",
    "leaf": "a leaf that requires grad: its owner holds it",
}


class Row:
    """What happened to a storage, or to a stretch of one; the counts and times grow while the graph lives."""

    # class attributes: most rows never count most of these, and a manager that keeps everything must cost little
    storages = 0
    tensors = 0
    nbytes = 0
    held_bytes = 0
    encode_seconds = 0.0
    decode_seconds = 0.0
    copy_seconds = 0.0
    decodes = 0
    measured = False
    squared_error = 0.0
    squared_norm = 0.0

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        module: str | None,
        op: str | None,
        alias: Alias | None,
        action: str,
        reason: str,
    ) -> None:
        self.shape, self.dtype = shape, dtype
        self.module, self.op, self.alias, self.action, self.reason = module, op, alias, action, reason


class Hold:
    """A storage that the graph keeps by reference, for as long as one saved tensor shows it."""

    __slots__ = ("__weakref__", "_account", "_nbytes", "_released", "row")

    def __init__(self, account: Account, nbytes: int, row: Row, released: Released | None) -> None:
        self._account, self._nbytes, self._released, self.row = account, nbytes, released, row
        if nbytes:
            account.hold(nbytes)

    def __del__(self) -> None:
        if self._nbytes:
            self._account.release(self._nbytes)
        if self._released is not None:
            self._released()


class _Sighting(NamedTuple):
    """What an encoding was made of, and the encoding."""

    version: int
    dtype: torch.dtype
    extent: tuple[int, int] | None
    base: TensorWeakRef
    piece: "weakref.ref[Piece]"


class Entry:
    """A storage seen in this pass: its size, whose it is, and what made the tensor that showed it first."""

    __slots__ = ("_hold", "_reference", "_sightings", "alias", "nbytes", "op")

    def __init__(self, nbytes: int, alias: Alias | None, op: str | None) -> None:
        self.nbytes, self.alias, self.op = nbytes, alias, op
        self._hold: weakref.ref[Hold] | None = None
        self._reference: StorageWeakRef | None = None
        self._sightings: list[_Sighting] = []

    def refer(self, storage: torch.UntypedStorage) -> None:
        """Make sure that no other storage gets the identity of this one, even if this one is freed."""
        if self._reference is None:
            self._reference = StorageWeakRef(storage)

    def gone(self) -> bool:
        """Whether the storage may be freed, and its identity be another's."""
        return self.held() is None and (self._reference is None or self._reference.expired())

    def held(self) -> Hold | None:
        """Return what keeps this storage, if the graph does."""
        return None if self._hold is None else self._hold()

    def keep(self, hold: Hold) -> Hold:
        """Remember what keeps this storage, for as long as it does."""
        self._hold = weakref.ref(hold)
        return hold

    def find(self, tensor: Tensor, region: Region, action: Action | None) -> "Piece | None":
        """Find an encoding that shows ``region`` of this storage as it is now; with ``action``, only one made by it.

        Equal versions mean the same content only if one counter tells them. All views of a base share its counter, but
        not all tensors of a storage do: those of ``unsafe_chunk``, which recurrent cells change in place, have one
        each. So an encoding is shared among the views of one base, and among tensors that show the same elements
        without a gap (which covers an op's own result, saved without its history).
        """
        if not self._sightings:
            return None
        base, extent = _base(tensor), _extent(tensor)
        for seen in self._sightings:
            piece = seen.piece()
            if (
                piece is not None
                and (seen.version, seen.dtype) == (tensor._version, tensor.dtype)
                and (seen.base() is base or (extent is not None and seen.extent == extent))
                and piece.region.covers(region)
                and (action is None or piece.asked == action)
            ):
                return piece
        return None

    def add(self, tensor: Tensor, piece: "Piece") -> None:
        """Remember an encoding for as long as the graph holds it."""
        self._sightings = [seen for seen in self._sightings if seen.piece() is not None]
        sighting = _Sighting(
            tensor._version, tensor.dtype, _extent(tensor), TensorWeakRef(_base(tensor)), weakref.ref(piece)
        )
        self._sightings.append(sighting)


def _base(tensor: Tensor) -> Tensor:
    return tensor if tensor._base is None else tensor._base


def _extent(tensor: Tensor) -> tuple[int, int] | None:
    """Return where a tensor begins in its storage and how many elements it shows there, if it leaves none out."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (int(tensor.storage_offset()), span) if span == tensor.numel() else None


class Ledger:
    """The storages and rows of one pass. Its lock guards both; nothing is encoded or copied under it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self.tensors = 0
        self.tensor_bytes = 0
        self.storages = 0
        self.storage_bytes = 0
        self.owned_bytes = 0
        self.peak_bytes = 0
        self.entries: dict[int, Entry] = {}
        self._sweep_at = 1024
        self._shared_rows: dict[tuple[Any, ...], Row] = {}

    def enter(self, identity: int, entry: Entry) -> Entry:
        """Note a new storage; forget those that are gone, now and then, so that a pass may be endless."""
        entries = self.entries
        if len(entries) >= self._sweep_at:
            self.entries = entries = {key: seen for key, seen in entries.items() if not seen.gone()}
            self._sweep_at = 1024 + 2 * len(entries)
        entries[identity] = entry
        self.storages += 1
        self.storage_bytes += entry.nbytes
        if entry.alias in OWNED:
            self.owned_bytes += entry.nbytes
        return entry

    def row(
        self, tensor: Tensor, module: str | None, op: str | None, alias: Alias | None, action: str, reason: str
    ) -> Row:
        """Open a row for what happens to the storage of a tensor, or to a stretch of it."""
        rows = self.rows
        shape = () if tensor.is_nested else tensor.shape
        if len(rows) < MAX_ROWS:
            row = Row(shape, tensor.dtype, module, op, alias, action, reason)
            rows.append(row)
            return row
        key = (shape, tensor.dtype, module, op, alias, action, reason)
        if key not in self._shared_rows:
            self._shared_rows[key] = Row(*key)
            rows.append(self._shared_rows[key])
        return self._shared_rows[key]
