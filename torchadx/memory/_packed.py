"""What the graph holds in place of a saved tensor. All state of one saved tensor lives here, so the graph frees it."""

import dataclasses
import time
import weakref
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

from torchadx.memory._ledger import Hold, Ledger, Released, Row
from torchadx.memory._storage import Region, View
from torchadx.memory.codecs import Codec, Encoded
from torchadx.memory.policy import Action, Alias
from torchadx.memory.stores import StaleCopyError, Stored


@dataclasses.dataclass(frozen=True, slots=True)
class Residence:
    """Where and in what form a saved tensor waits for backward.

    Attributes:
        identity: Equal for saved tensors that share an encoding, and for no others that are alive.
        action: What was done, as a policy string.
        shape: Of the tensor.
        dtype: Of the tensor.
        stride: Of the tensor, in elements.
        device: Where the tensor came from, and is brought back to.
        nbytes: Bytes of the elements that were encoded: all of its storage, or the stretch it shows.
        held_bytes: Bytes held for these instead.
        resident: Whether that is in the memory of ``device``.
        alias: ``"input"`` or ``"parameter copy"``, if that is what it is.
        parts: What is in memory of it, such as it is.
    """

    identity: int
    action: str
    shape: torch.Size
    dtype: torch.dtype
    stride: tuple[int, ...]
    device: torch.device
    nbytes: int
    held_bytes: int
    resident: bool
    alias: Alias | None
    parts: tuple[Tensor, ...]


def residence(packed: object) -> Tensor | Residence | None:
    """Say what a manager made of a saved tensor, which stays as it is: nothing is decoded, read or counted.

    Args:
        packed: What the graph holds (the ``data`` of a node's ``_raw_saved_...``).

    Returns:
        The tensor itself if it was kept; ``None`` if no manager packed it.
    """
    if isinstance(packed, Kept):
        return packed.tensor
    return packed.residence() if isinstance(packed, Shown) else None


class Kept:
    """A tensor kept by reference. Hooks switch autograd's check of in-place changes off, so it is made here."""

    __slots__ = ("_hold", "_module", "_tensor", "_version")

    def __init__(self, tensor: Tensor, module: str | None, hold: Hold | None) -> None:
        # the tensor itself would refer to the graph that is to hold it
        self._tensor = tensor.detach()
        self._version = tensor._version
        self._module = module
        self._hold = hold

    @property
    def tensor(self) -> Tensor:
        """The tensor, unchecked."""
        return self._tensor

    def unpack(self) -> Tensor:
        """Return the tensor.

        Raises:
            RuntimeError: It was changed in place since it was saved.
        """
        if self._tensor._version != self._version:
            raise RuntimeError(
                changed_in_place(self._tensor.shape, self._module)
                + f": it is at version {self._tensor._version}; expected version {self._version}. Change a copy instead"
            )
        return self._tensor


def changed_in_place(shape: tuple[int, ...], module: str | None) -> str:
    """Say in autograd's words what an in-place change spoilt, and whose."""
    where = f"saved by module {module!r}" if module is not None else "saved outside of watched modules"
    return (
        "one of the variables needed for gradient computation has been modified by an inplace operation: "
        f"a tensor of shape {list(shape)}, {where}"
    )


class Reader:
    """What the pieces of one manager share when they are read: a look at the peak, and one decoded piece.

    The piece that was decoded last, in any thread, keeps what it decoded for those who share it.
    """

    __slots__ = ("_last", "_note_peak")

    def __init__(self, note_peak: Callable[[Ledger], None]) -> None:
        # weakly, so that a manager that nobody uses is freed at once, hooks and all, whatever its graphs do
        self._note_peak = weakref.WeakMethod(note_peak)
        self._last: weakref.ref[Piece] | None = None

    def note_peak(self, ledger: Ledger) -> None:
        """Look at what is resident now, if the manager still is."""
        note_peak = self._note_peak()
        if note_peak is not None:
            note_peak(ledger)

    def replace(self, piece: "Piece") -> None:
        """Let the piece before drop what it decoded."""
        before = self._last() if self._last is not None else None
        self._last = weakref.ref(piece)
        if before is not None and before is not piece:
            before.forget()


class Piece:
    """A region of a storage, encoded and stored once, for every saved tensor that it covers.

    Attributes:
        region: What of the storage.
        asked: The action that was asked for; what was done may be less, where the codec declined.
        row: Its row of the report.
        users: How many saved tensors share it.
    """

    __slots__ = (
        "__weakref__", "_codec", "_decoded", "_device", "_encoded", "_kept", "_ledger", "_reader", "_released",
        "_stored", "asked", "region", "row", "users",
    )  # fmt: skip

    def __init__(
        self,
        region: Region,
        asked: Action,
        codec: Codec | None,
        encoded: Encoded,
        stored: Stored,
        row: Row,
        device: torch.device,
        ledger: Ledger,
        reader: Reader,
        released: Released | None,
    ) -> None:
        self.region, self.asked, self.row = region, asked, row
        self._codec, self._device = codec, device
        # the parts are the store's alone from here on
        self._encoded, self._stored = encoded._replace(parts=()), stored
        self._ledger, self._reader, self._released = ledger, reader, released
        self._decoded: TensorWeakRef | None = None
        self._kept: Tensor | None = None
        self.users = 1

    def __del__(self) -> None:
        if self._released is not None:
            self._released()

    def forget(self) -> None:
        """Let go of the elements decoded last, unless someone else uses them."""
        self._kept = None

    def residence(self, view: View) -> Residence:
        """Describe a saved tensor that is this view of the piece."""
        dtype, action, store = self._encoded.dtype, self.row.action, self.row.action.partition("@")[2] or "device"
        return Residence(
            identity=id(self),
            action=action,
            shape=view.size,
            dtype=dtype,
            stride=view.stride,
            device=self._device,
            nbytes=self.region.numel * dtype.itemsize,
            held_bytes=self._stored.nbytes,
            resident=store == "device" or (store == "host" and self._device.type == "cpu"),
            alias=self.row.alias,
            parts=self._stored.in_memory(),
        )

    def elements(self) -> Tensor:
        """Return the elements of the region, ``(numel,)``; the same ones again as long as a user of them lives."""
        # one who wrote into them made them useless for the others
        before = self._decoded() if self._decoded is not None else None
        if before is not None and before._version == 0:
            return before
        start = time.perf_counter()
        parts = self._stored.get()
        copied = time.perf_counter()
        flat = parts[0] if self._codec is None else self._codec.decode(self._encoded._replace(parts=parts))
        flat = flat.to(self._device)
        self.row.copy_seconds += copied - start
        self.row.decode_seconds += time.perf_counter() - copied
        self.row.decodes += 1
        self._decoded = TensorWeakRef(flat)
        self._reader.note_peak(self._ledger)
        self._reader.replace(self)
        if self.users > 1:
            self._kept = flat
        return flat


class Shown:
    """A saved tensor that is a view of a piece."""

    __slots__ = ("_module", "_piece", "_view")

    def __init__(self, piece: Piece, view: View, module: str | None) -> None:
        self._piece, self._view, self._module = piece, view, module

    def residence(self) -> Residence:
        """Say where and in what form it waits."""
        return self._piece.residence(self._view)

    def unpack(self) -> Tensor:
        """Return the tensor, decoded.

        Raises:
            RuntimeError: It was changed in place while its copy was under way.
        """
        try:
            flat = self._piece.elements()
        except StaleCopyError as error:
            raise RuntimeError(f"{changed_in_place(self._view.size, self._module)}: {error}") from error
        return self._view.restore(flat, self._piece.region)
