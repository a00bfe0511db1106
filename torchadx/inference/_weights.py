"""Copies of weights, prepared for inference: made where a weight is met again unchanged, and checked at every use."""

import threading
from collections.abc import Collection

import torch
from torch import Tensor, nn

from torchadx import tuning
from torchadx.activations import Activation
from torchadx.inference._state import DTYPES, Affine, Route, State
from torchadx.inference._tensors import in_dtype
from torchadx.inference._ways import BY_NAME, WAYS, Way, plain

# below as many multiplications, or weights, a call costs more than a prepared weight can save
_WORTH_PREPARING = 1 << 24
_LARGE = 1 << 16
# a weight of as many elements is worth it for a single row, because reading it is what takes the time
_VERY_LARGE = 1 << 21
# shapes of inputs that are remembered for one weight
_MAX_ROUTES = 64


def large(weight: Tensor | None) -> bool:
    """Whether there is a weight, large enough to be prepared."""
    return weight is not None and not nn.parameter.is_lazy(weight) and weight.numel() >= _LARGE


def obstacle(weight: object, dtype: torch.dtype | None = None) -> str | None:
    """Say why a weight cannot be prepared, to compute in ``dtype`` or its own, if it cannot."""
    if type(weight) not in (Tensor, nn.Parameter):
        return f"its weight is a {type(weight).__name__}"
    assert isinstance(weight, Tensor)
    if weight.layout is not torch.strided or weight.dim() != 2:
        return "its weight is no dense matrix"
    if weight.dtype not in DTYPES:
        return f"its weight is {weight.dtype}"
    if weight.device.type not in ("cpu", "cuda"):
        return f"its weight is on {weight.device.type!r}"
    if (dtype or weight.dtype) is torch.float64:
        return "float64 is not packed"
    if weight.is_inference() or not _counts_versions(weight):
        return "its weight is an inference tensor, whose changes are not counted"
    if weight.is_shared():
        return "its weight is in shared memory, where other processes may change it"
    if weight.numel() < _LARGE:
        return "its weight is small, and a call would cost more than could be saved"
    return None


def _counts_versions(weight: Tensor) -> bool:
    # a parameter made under inference mode whose .data was replaced is no inference tensor, and still counts nothing
    try:
        return weight._version >= 0
    except RuntimeError:
        return False


class Weights:
    """The prepared weights of one wrapper; calls of several threads may overlap.

    Args:
        limit: Bytes that the copies may take; ``None`` for no limit. A weight that does not fit runs as it is.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.bytes = 0
        # how often copies were made or dropped: whatever recorded their addresses is out of date when it changes
        self.changes = 0
        self._states: dict[tuple[nn.Module, str], State] = {}
        self._lock = threading.RLock()

    @staticmethod
    def gains(x: Tensor, weight: Tensor) -> bool:
        """Whether a layer is large enough for a prepared weight to save more than the call costs."""
        size = weight.numel()
        return size >= _LARGE and (size >= _VERY_LARGE or x.numel() * weight.shape[0] >= _WORTH_PREPARING)

    def linear(self, x: Tensor, layer: Affine, activation: Activation, dtype: torch.dtype) -> Tensor:
        """``f(x W^T + b)`` by the best way that serves.

        Args:
            x: ``(..., in)``; of ``dtype``, or of the weight's.
            layer: W and b.
            activation: f.
            dtype: What to compute in. A layer that is too small to gain computes in the weight's.

        Returns:
            ``(..., out)``, in the dtype that was computed in.
        """
        route = self.route(x, layer, activation, dtype)
        y = None if route is None else route.run(x, layer.weight, layer.bias, activation)
        return self._linear(x, layer, activation, dtype) if y is None else y

    def route(self, x: Tensor, layer: Affine, activation: Activation, dtype: torch.dtype) -> Route | None:
        """What :meth:`linear` found to do for such inputs, if it did."""
        state = self._states.get((layer.owner, layer.name))
        if state is None:
            return None
        return state.routes.get((x.shape, x.dtype, dtype, activation.name, torch.get_num_threads()))

    def _linear(self, x: Tensor, layer: Affine, activation: Activation, dtype: torch.dtype) -> Tensor:
        weight, given, revision = layer.weight, x.dtype, tuning.revision()
        if not self.gains(x, weight):
            return plain(in_dtype(x, weight.dtype), weight, layer.bias, activation)
        x = in_dtype(x, dtype)
        bias = None if layer.bias is None else in_dtype(layer.bias, dtype)
        key = _key(x, weight, activation)
        found = tuning.find(key)
        # the weight need not be looked at where it is used as it is
        state = None if found == "plain" else self._met_again(layer, dtype)
        if state is not None:
            way = BY_NAME[found or _measure(key, x, weight, bias, activation, state)]
            prepared = self._copy(state, way, layer, dtype) if way.available() else None
            if prepared is not None:
                if len(state.routes) >= _MAX_ROUTES:
                    state.routes.clear()
                route = Route(x.shape, given, dtype, key.threads, revision, state, way, prepared)
                state.routes[x.shape, given, dtype, activation.name, key.threads] = route
                return way.run(x, prepared, bias, activation)
        return plain(x, in_dtype(weight, dtype), bias, activation)

    def release(self) -> None:
        """Drop every copy."""
        self.keep(())

    def keep(self, owners: Collection[nn.Module]) -> None:
        """Drop the copies of weights that none of these modules has."""
        with self._lock:
            for place in list(self._states):
                if place[0] not in owners:
                    self._forget(place)

    def drop_changed(self) -> None:
        """Drop the copies of weights that are no more what they were."""
        for (owner, name), state in list(self._states.items()):
            weight = owner._parameters.get(name)
            if weight is None or not state.holds(weight):
                self._forget((owner, name))

    def explain(self, owner: nn.Module, name: str, dtype: torch.dtype | None) -> str:
        """Say how the product with a weight is computed, if it is to be in ``dtype`` or its own."""
        weight = owner._parameters.get(name)
        if weight is None:
            return f"as it is: its {name} is computed from other parameters"
        reason = obstacle(weight, dtype)
        if reason is not None:
            return f"as it is: {reason}"
        state = self._states.get((owner, name))
        ways = [] if state is None or not state.holds(weight) else [way for way, _ in state.copies]
        if ways:
            return f"{' and '.join(dict.fromkeys(ways))} {'copy' if len(ways) == 1 else 'copies'} of its weight"
        if state is not None and state.refused:
            return "as it is: a copy of its weight does not fit into cache_bytes"
        return "as it is so far: a weight is prepared when it is met again, unchanged, by enough rows"

    def _met_again(self, layer: Affine, dtype: torch.dtype) -> State | None:
        """What is known of a weight that is as it was when it was last met: only then is a copy worth its while."""
        place = layer.owner, layer.name
        state = self._states.get(place)
        if state is not None and state.holds(layer.weight):
            return state
        with self._lock:
            self._forget(place)
            if obstacle(layer.weight, dtype) is None:
                self._states[place] = State.of(layer.weight)
        return None

    def _forget(self, place: tuple[nn.Module, str]) -> None:
        with self._lock:
            state = self._states.pop(place, None)
            if state is not None and state.copies:
                self.bytes -= sum(copy.nbytes for copy in state.copies.values())
                self.changes += 1

    def _copy(self, state: State, way: Way, layer: Affine, dtype: torch.dtype) -> Tensor | None:
        """The copy of a weight, made if there is none; ``None`` where it does not fit."""
        weight = layer.weight
        if way.prepare is None:
            return weight
        found = state.copy(way, dtype)
        if found is not None:
            return found
        with self._lock, torch.inference_mode(False), torch.no_grad():
            found = state.copy(way, dtype)
            if found is not None:
                return found
            if self.limit is not None and self.bytes + weight.numel() * dtype.itemsize > self.limit:
                state.refused = True
                return None
            copy = way.prepare(state.source, dtype)
            # another thread may have changed the weight, or found it changed, and then nobody would drop the copy
            if self._states.get((layer.owner, layer.name)) is state and state.source._version == state.version:
                state.copies[way.name, dtype] = copy
                self.bytes += copy.nbytes
                self.changes += 1
            return copy


def _key(x: Tensor, weight: Tensor, activation: Activation) -> tuning.Key:
    n, k = weight.shape
    rows = tuning.bucket(x.numel() // k)
    flags = f"{activation.name} {x.dtype}"
    return tuning.Key("prepared", x.device, weight.dtype, rows, n, k, flags, torch.get_num_threads())


def _measure(
    key: tuning.Key, x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation, state: State
) -> str:
    """Return the name of the fastest way, by copies that are made for the time of measuring if there are none."""
    names = [way.name for way in WAYS if way.serves(weight, x.dtype)]
    copies = {name: state.copy(BY_NAME[name], x.dtype) for name in names}

    def run(name: str) -> Tensor:
        way, copy = BY_NAME[name], copies[name]
        if way.prepare is None:
            return way.run(x, weight, bias, activation)
        if copy is None:
            copy = copies[name] = way.prepare(weight, x.dtype)
        # part of what it costs
        state.holds(weight)
        return way.run(x, copy, bias, activation)

    return tuning.choose(key, names, run, names[0])
