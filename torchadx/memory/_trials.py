"""What each action would do to one tensor: tried once, timed, and its error measured."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from torchadx import dispatch
from torchadx.memory import _encoding
from torchadx.memory.codecs import Codec, Declined, Encoded
from torchadx.memory.policy import KEEP, Action, TensorMeta
from torchadx.memory.stores import Store

_Result = TypeVar("_Result")

# the first call of a codec compiles and imports; it is made on so many elements, and not timed
_WARM_UP = 4096


@dataclasses.dataclass(frozen=True, slots=True)
class Trial:
    """The outcome of one action on one tensor.

    Attributes:
        action: The action.
        nbytes: Bytes that stay in the memory the tensor is in.
        transit: Bytes there while it is copied elsewhere.
        nanoseconds: For encoding, copying, copying back and decoding, one after the other.
        error: Relative error ``||decoded - x|| / ||x||`` over finite elements; 0 if lossless.
        refusal: Why the action cannot be used for the tensor; ``None`` if it can.
    """

    action: Action
    nbytes: int
    transit: int = 0
    nanoseconds: int = 0
    error: float = 0.0
    refusal: str | None = None


class Prober:
    """Tries actions on tensors. Not thread-safe.

    Args:
        actions: What to try; keeping a tensor is always possible.
        max_error: The relative error up to which a lossy codec can be used.
    """

    def __init__(self, actions: Iterable[Action], max_error: float) -> None:
        self._max_error = max_error
        self._stores_by_codec: dict[Codec | None, list[Action]] = {}
        for action in actions:
            if not action.keeps:
                self._stores_by_codec.setdefault(action.codec, []).append(action)
        self._warm: set[tuple[Codec, torch.dtype, torch.device]] = set()
        # copies take as long as their bytes, whatever these are
        self._copies: dict[tuple[str, torch.device, tuple[int, ...]], int] = {}

    def probe(self, meta: TensorMeta, flat: Tensor, stores: Mapping[str, Store]) -> tuple[Trial, ...]:
        """Try every action.

        Args:
            meta: Description of the tensor.
            flat: Its elements, ``(n,)``; read only, and held no longer than this takes.
            stores: The stores to time copies in.

        Returns:
            One trial an action, the first of which keeps the tensor.
        """
        trials = [Trial(KEEP, meta.nbytes)]
        with torch.no_grad():
            for codec, actions in self._stores_by_codec.items():
                trials += self._through(codec, actions, meta, flat, stores)
        return tuple(trials)

    def _through(
        self, codec: Codec | None, actions: list[Action], meta: TensorMeta, flat: Tensor, stores: Mapping[str, Store]
    ) -> Iterator[Trial]:
        """Encode once, and copy to every store that is wanted."""
        nanoseconds, error = 0, 0.0
        refusal = None if codec is None else _encoding.refusal(codec, flat.dtype, meta.alias)
        encoded: Encoded | Declined = Encoded((flat,), flat.numel(), flat.dtype)
        if codec is not None and refusal is None:
            encoded, nanoseconds = self._encode(codec, flat)
            if isinstance(encoded, Declined):
                refusal = encoded.reason
            else:
                error, decoding = _decode(codec, encoded, flat)
                nanoseconds += decoding
                # not `>`: NaN is no error that could be allowed
                if not error <= self._max_error:
                    refusal = f"relative error {error:.2g} is above max_error={self._max_error:g}"
        for action in actions:
            reason = refusal or _misplaced(action, flat)
            held = 0 if isinstance(encoded, Declined) else encoded.nbytes
            nbytes, transit = (held, 0) if _encoding.stays(action, flat) else (0, held)
            copying = 0
            if reason is None and isinstance(encoded, Encoded):
                copying = self._copy(action, encoded, flat, stores)
            yield Trial(action, nbytes, transit, nanoseconds + copying, error, reason)

    def takes(self, action: Action, flat: Tensor) -> int:
        """Return the bytes that an action makes of a tensor now: to know, it is encoded."""
        if action.codec is None:
            return flat.nbytes
        with torch.no_grad():
            encoded = _encoding.encode(action.codec, flat)
        return flat.nbytes if isinstance(encoded, Declined) else encoded.nbytes

    def _encode(self, codec: Codec, flat: Tensor) -> tuple[Encoded | Declined, int]:
        key = (codec, flat.dtype, flat.device)
        if key not in self._warm:
            self._warm.add(key)
            start = _encoding.encode(codec, flat[:_WARM_UP])
            if isinstance(start, Encoded):
                codec.decode(start)
        return _timed(flat, lambda: _encoding.encode(codec, flat))

    def _copy(self, action: Action, encoded: Encoded, flat: Tensor, stores: Mapping[str, Store]) -> int:
        """Return the nanoseconds for the way into a store and back, nothing else going on meanwhile."""
        if action.store == "device":
            return 0
        key = (action.store, flat.device, tuple(part.nbytes for part in encoded.parts))
        if key not in self._copies:
            store = stores[action.store]

            def there_and_back() -> None:
                stored = store.put(encoded.parts, flat if action.codec is None else None)
                store.flush()
                stored.get()

            _, self._copies[key] = _timed(flat, there_and_back)
            store.flush()
        return self._copies[key]


def _decode(codec: Codec, encoded: Encoded, flat: Tensor) -> tuple[float, int]:
    """Return the relative error of what comes back, and the nanoseconds until it does."""
    decoded, nanoseconds = _timed(flat, lambda: codec.decode(encoded).to(flat.device))
    error = 0.0 if codec.lossless else _encoding.relative_error(*_encoding.squares(flat, decoded))
    return error, nanoseconds


def _misplaced(action: Action, flat: Tensor) -> str | None:
    if action.codec is None:
        return "the tensor is in host memory already" if _encoding.stays(action, flat) else None
    if action.codec.on_host and action.store == "device" and dispatch.on_accelerator(flat):
        return f"works in host memory only: write '{action}@host'"
    return None


def _timed(flat: Tensor, run: Callable[[], _Result]) -> tuple[_Result, int]:
    """Run something on the device of ``flat``; return its result and its nanoseconds."""
    waits = dispatch.on_accelerator(flat)
    if waits:
        torch.accelerator.synchronize(flat.device)
    start = time.perf_counter_ns()
    result = run()
    if waits:
        torch.accelerator.synchronize(flat.device)
    return result, time.perf_counter_ns() - start
