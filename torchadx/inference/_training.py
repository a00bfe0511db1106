"""Modules that act differently in train mode, and eval mode for the time of a call."""

import threading
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)
# whether a module of a known kind acts in train mode; of other kinds, those that read ``self.training`` count
_ACTS: tuple[tuple[Any, Callable[[Any], bool]], ...] = (
    (_DROPOUTS, lambda module: module.p > 0),
    (_NORMS, lambda module: module.track_running_stats),
    (nn.RNNBase, lambda module: module.dropout > 0 and module.num_layers > 1),
    (nn.MultiheadAttention, lambda module: module.dropout > 0),
    # these ask for a fast path only: their dropout is a module of its own
    (nn.TransformerEncoder, lambda module: False),
    (nn.TransformerEncoderLayer, lambda module: False),
)


def acting(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the submodules, with their names, whose result or state would differ in train mode."""
    for name, submodule in module.named_modules():
        if _acts(submodule):
            yield name, submodule


def _acts(module: nn.Module) -> bool:
    for kind, acts in _ACTS:
        if isinstance(module, kind):
            return acts(module)
    code = getattr(type(module).forward, "__code__", None)
    return code is not None and _reads_training(code)


def _reads_training(code: types.CodeType) -> bool:
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return "training" in code.co_names or any(map(_reads_training, inner))


class EvalForCalls:
    """A context in which a module and all in it are in eval mode; calls of several threads may overlap.

    The flags are set when the first call begins and restored, each to its own, when the last one ends.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = weakref.ref(module)
        self._lock = threading.Lock()
        self._calls = 0
        self._switched: list[nn.Module] = []

    def __enter__(self) -> None:
        """Switch what is in train mode."""
        with self._lock:
            module = self._module()
            if self._calls == 0 and module is not None:
                self._switched = [submodule for submodule in module.modules() if submodule.training]
            self._calls += 1
            for submodule in self._switched:
                submodule.training = False

    def __exit__(self, *error: object) -> None:
        """Switch it back, after the last of overlapping calls."""
        with self._lock:
            self._calls -= 1
            if self._calls == 0:
                for submodule in self._switched:
                    submodule.training = True
                self._switched = []
