"""From a saved tensor to what the graph holds of it: whose it is, what the policy says, encode, store, account."""

import collections
import dataclasses
import functools
import re
import time

import torch
from torch import Tensor, nn

from torchadx import dispatch
from torchadx.memory import _encoding
from torchadx.memory._account import Account
from torchadx.memory._ledger import OWNED, Entry, Hold, Ledger, Released, Row
from torchadx.memory._modules import Watch
from torchadx.memory._packed import Kept, Piece, Reader, Shown
from torchadx.memory._storage import Region, View, has_memory, memory_of
from torchadx.memory.codecs import Declined, Encoded
from torchadx.memory.policy import KEEP, Action, Alias, Always, Decision, Planner, Policy, TensorMeta
from torchadx.memory.stores import STORES, Store

_COPY = Action.parse("copy")
# the ops by which autocast casts parameters, and by which DataParallel gives its replicas theirs
_COPIERS = ("tocopy", "broadcast")


@dataclasses.dataclass(slots=True)
class _Saved:
    """A tensor that autograd saves, where it was found, and what of its storage stands for it."""

    tensor: Tensor
    storage: torch.UntypedStorage
    entry: Entry
    ledger: Ledger
    ordinal: int
    module: str | None
    region: Region

    @property
    def nbytes(self) -> int:
        """Bytes of the elements that stand for it."""
        return self.region.numel * self.tensor.element_size()


class Packer:
    """Packs the tensors of one manager, pass after pass.

    Attributes:
        ledger: What the running pass, or the last one, saved.
        stores: The stores that were needed so far, by name.
        watch: The models whose modules it tells apart.
    """

    def __init__(self, policy: Policy | Planner, min_bytes: int, measure_error: bool, stores: dict[str, Store]) -> None:
        self.ledger = Ledger()
        self.stores = stores
        self.watch = Watch()
        self._policy, self._min_bytes, self._measure_error = policy, min_bytes, measure_error
        self._constant = policy.decision if isinstance(policy, Always) else None
        keeps_all = self._constant is not None and self._constant.action.keeps
        self._reason_to_keep_all = self._constant.reason if self._constant is not None and keeps_all else None
        self._owned: dict[int, Alias] = {}
        self._kept = Account()
        self._reader = Reader(self._note_peak)
        self._released: collections.deque[tuple[Ledger, int]] = collections.deque()

    def begin(self) -> None:
        """Start a pass."""
        self.ledger = Ledger()
        self._kept.restart()
        self._owned = self.watch.owned()
        if isinstance(self._policy, Planner):
            self._released.clear()
            self._policy.begin({name: self._store(name) for name in STORES})

    def resident(self) -> int:
        """Bytes of saved tensors, of every graph alive, in the memory they were saved in."""
        kept = self._kept.now()
        return kept + sum(store.resident_now for store in self.stores.values()) if self.stores else kept

    def peak(self) -> int:
        """The most bytes that were resident since the running pass, or the last one, began."""
        return max(self.ledger.peak_bytes, self._kept.peak())

    def pack(self, tensor: Tensor) -> Kept | Shown:
        """Return what the graph is to hold of a tensor."""
        ledger, module = self.ledger, self.watch.module()
        storage = memory_of(tensor)
        with ledger.lock:
            ordinal = ledger.tensors
            ledger.tensors = ordinal + 1
            if isinstance(storage, str):
                return self._keep_stranger(ledger, tensor, module, storage)
            ledger.tensor_bytes += tensor.nbytes
            identity = storage._cdata
            nbytes = storage.nbytes()
            entry = ledger.entries.get(identity)
            if entry is None or entry.nbytes != nbytes or entry.gone():
                op = _producer(tensor)
                entry = ledger.enter(identity, Entry(nbytes, self._alias(tensor, identity, module, op), op))
            reason = OWNED.get(entry.alias, self._reason_to_keep_all)
            if reason is not None:
                return self._keep(ledger, entry, tensor, module, reason)
            entry.refer(storage)
        return self._manage(_Saved(tensor, storage, entry, ledger, ordinal, module, Region.of(tensor, entry.nbytes)))

    def _alias(self, tensor: Tensor, identity: int, module: str | None, op: str | None) -> Alias | None:
        if identity in self._owned:
            return self._owned[identity]
        # linear saves a view of its weight: whose memory that is, the base tells
        base = tensor._base
        if base is None:
            base = tensor
        else:
            op = _producer(base)
        # the exact type first: asking whether something is a Parameter is slow
        if type(base) is not Tensor and isinstance(base, nn.Parameter):
            return "parameter"
        if base.requires_grad:
            if op is None:
                return "leaf"
            if op in _COPIERS and _copies_a_parameter(base):
                return "parameter copy"
        return "input" if module is not None and self.watch.is_input(identity) else None

    # keeping

    def _keep(
        self,
        ledger: Ledger,
        entry: Entry,
        tensor: Tensor,
        module: str | None,
        reason: str,
        released: Released | None = None,
    ) -> Kept:
        """Keep a tensor by reference; called under the ledger's lock."""
        hold = entry.held()
        if hold is None:
            nbytes, alias = entry.nbytes, entry.alias
            row = ledger.row(tensor, module, entry.op, alias, "keep", reason)
            row.storages += 1
            row.nbytes += nbytes
            held = 0 if alias in OWNED else nbytes
            row.held_bytes += held
            hold = entry.keep(Hold(self._kept, held, row, released))
            if self.stores:
                self._note_peak(ledger)
        else:
            row = hold.row
        row.tensors += 1
        return Kept(tensor, module, hold)

    def _leave(self, saved: _Saved, reason: str, released: Released | None = None) -> Kept:
        """Keep a tensor by reference, after all."""
        with saved.ledger.lock:
            return self._keep(saved.ledger, saved.entry, saved.tensor, saved.module, reason, released)

    def _keep_stranger(self, ledger: Ledger, tensor: Tensor, module: str | None, reason: str) -> Kept:
        """Keep a tensor of whose memory nothing is known."""
        row = ledger.row(tensor, module, _producer(tensor), None, "keep", f"{reason}; its bytes are not counted")
        row.tensors += 1
        return Kept(tensor, module, None)

    # managing

    def _manage(self, saved: _Saved) -> Kept | Shown:
        unfit = _unfit(saved)
        if unfit is not None:
            return self._leave(saved, unfit)
        hold = saved.entry.held()
        if hold is not None:
            # encoding it as well would take memory rather than save any
            return self._leave(saved, hold.row.reason)
        decision = self._too_small(saved) or self._constant
        if decision is None:
            if isinstance(self._policy, Planner):
                return self._plan(saved, self._policy)
            decision = self._policy.decide(self._meta(saved))
        return self._shared(saved, decision.action) or self._carry_out(saved, decision)

    def _too_small(self, saved: _Saved) -> Decision | None:
        """Decide, in place of the policy, about a tensor of less than ``min_bytes``."""
        if saved.nbytes >= self._min_bytes:
            return None
        reason = f"smaller than min_bytes={self._min_bytes}"
        if saved.entry.nbytes < max(2 * saved.nbytes, self._min_bytes):
            return Decision(KEEP, reason)
        return Decision(
            _COPY, f"{reason}; copied, because keeping it would hold a storage of {saved.entry.nbytes} bytes"
        )

    def _plan(self, saved: _Saved, planner: Planner) -> Kept | Shown:
        shared = self._shared(saved, None)
        if shared is not None:
            return shared
        while self._released:
            ledger, ordinal = self._released.popleft()
            if ledger is saved.ledger:
                planner.released(ordinal)
        flat, _ = saved.region.elements(saved.tensor, saved.storage)
        decision = planner.choose(self._meta(saved), flat, self.resident)
        return self._carry_out(saved, decision, functools.partial(self._released.append, (saved.ledger, saved.ordinal)))

    def _shared(self, saved: _Saved, action: Action | None) -> Shown | None:
        """Show what was encoded before; with ``action``, only if it was by that."""
        tensor = saved.tensor
        with saved.ledger.lock:
            piece = saved.entry.find(tensor, saved.region, action)
            if piece is None:
                return None
            piece.users += 1
            piece.row.tensors += 1
        return Shown(piece, View.of(tensor), saved.module)

    def _carry_out(self, saved: _Saved, decision: Decision, released: Released | None = None) -> Kept | Shown:
        """Encode and store a tensor, as far as codec and store take it."""
        asked = decision.action
        if asked.keeps:
            return self._leave(saved, decision.reason, released)
        start = time.perf_counter()
        with torch.no_grad():
            flat, borrowed = saved.region.elements(saved.tensor, saved.storage)
            encoded = _encode(asked, flat, saved.entry.alias)
        encode_seconds = time.perf_counter() - start
        done, reason = asked, decision.reason
        if isinstance(encoded, Declined):
            done = Action(None, asked.store)
            reason = f"{reason}; {encoded.reason}"
            encoded = Encoded((flat,), flat.numel(), flat.dtype)
        lent = borrowed and done.codec is None
        if lent and _encoding.stays(done, flat):
            return self._leave(saved, reason if done.keeps else f"{reason}; it is in host memory already", released)
        start = time.perf_counter()
        stored = self._store(done.store).put(encoded.parts, saved.tensor.detach() if lent else None)
        copy_seconds = time.perf_counter() - start
        row = self._open_row(saved, done, encoded, reason, encode_seconds, copy_seconds)
        if self._measure_error and not done.lossless:
            _measure_error(row, done, encoded, flat)
        device, ledger = saved.tensor.device, saved.ledger
        piece = Piece(saved.region, asked, done.codec, encoded, stored, row, device, ledger, self._reader, released)
        with ledger.lock:
            saved.entry.add(saved.tensor, piece)
            self._note_peak(ledger)
        return Shown(piece, View.of(saved.tensor), saved.module)

    def _open_row(
        self, saved: _Saved, done: Action, encoded: Encoded, reason: str, encode_seconds: float, copy_seconds: float
    ) -> Row:
        with saved.ledger.lock:
            alias = saved.entry.alias
            row = saved.ledger.row(saved.tensor, saved.module, _producer(saved.tensor), alias, str(done), reason)
            row.storages += 1
            row.tensors += 1
            row.nbytes += saved.nbytes
            row.held_bytes += encoded.nbytes
            row.encode_seconds += encode_seconds
            row.copy_seconds += copy_seconds
        return row

    def _meta(self, saved: _Saved) -> TensorMeta:
        tensor = saved.tensor
        return TensorMeta(
            shape=tuple(tensor.shape),
            dtype=tensor.dtype,
            stride=tensor.stride(),
            device=tensor.device,
            nbytes=saved.nbytes,
            storage=saved.storage._cdata,
            alias=saved.entry.alias,
            module=saved.module,
            op=_producer(tensor),
            ordinal=saved.ordinal,
        )

    def _store(self, name: str) -> Store:
        if name not in self.stores:
            with self.ledger.lock:
                window = self._policy.window_bytes if isinstance(self._policy, Planner) else None
                self.stores.setdefault(name, STORES[name].within(window))
        return self.stores[name]

    def _note_peak(self, ledger: Ledger) -> None:
        resident = self.resident()
        if resident > ledger.peak_bytes:
            ledger.peak_bytes = resident


def _unfit(saved: _Saved) -> str | None:
    """Say why a tensor is left alone, whatever the policy."""
    tensor = saved.tensor
    if not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool):
        return f"{tensor.dtype}: integers are left alone"
    if tensor.numel() == 0:
        return "empty"
    return None if has_memory(saved.storage) else "zeros without memory"


def _producer(tensor: Tensor) -> str | None:
    """Name the op whose result a tensor is, as far as its node tells: ``"addmm"`` for ``AddmmBackward0``."""
    node = tensor.grad_fn
    return None if node is None else _op_name(node.name())


@functools.lru_cache(maxsize=1024)
def _op_name(node: str) -> str:
    return re.sub(r"^.*::|Backward\d*$", "", node).lower()


def _copies_a_parameter(tensor: Tensor) -> bool:
    """Whether what one of the copiers made is a copy of a parameter."""
    node = tensor.grad_fn
    sources = () if node is None else node.next_functions
    return any(isinstance(getattr(source, "variable", None), nn.Parameter) for source, _ in sources)


def _encode(action: Action, flat: Tensor, alias: Alias | None) -> Encoded | Declined:
    """Encode by the action's codec, if it has one that takes these elements."""
    codec = action.codec
    if codec is None:
        return Encoded((flat,), flat.numel(), flat.dtype)
    refusal = _encoding.refusal(codec, flat.dtype, alias)
    if refusal is not None:
        return Declined(f"{codec.name} {refusal}")
    if codec.on_host and action.store == "device" and dispatch.on_accelerator(flat):
        raise ValueError(
            f"{codec.name} works in host memory, and got a tensor on {flat.device}; write '{codec.name}@host' or "
            f"'{codec.name}@disk'"
        )
    encoded = _encoding.encode(codec, flat)
    return Declined(f"{codec.name} declined: {encoded.reason}") if isinstance(encoded, Declined) else encoded


def _measure_error(row: Row, action: Action, encoded: Encoded, flat: Tensor) -> None:
    assert action.codec is not None
    with torch.no_grad():
        squared_error, squared_norm = _encoding.squares(flat, action.codec.decode(encoded).to(flat.device))
    row.measured = True
    row.squared_error += squared_error
    row.squared_norm += squared_norm
