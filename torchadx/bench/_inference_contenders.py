"""Everyone who serves a module in inference mode: eager, compiled, traced and frozen, and wrapped by torchadx."""

import copy
import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import torchadx
from torchadx import dispatch
from torchadx.bench._harness import Contender

EAGER, COMPILE, MINE, MINE_BF16 = "eager", "compile", "torchadx", "torchadx bf16"
#: what can be left out
GROUPS = ("compile", "jit", "bf16")


@dataclasses.dataclass(frozen=True)
class Entrant:
    """A contender, and what is known about it besides its results.

    Attributes:
        contender: Runs the module once.
        group: One of ``GROUPS``, or empty for those that always take part.
        wrapper: The ``torchadx.InferenceAware`` behind it, if there is one.
    """

    contender: Contender
    group: str = ""
    wrapper: Any = None

    @property
    def name(self) -> str:
        """Shown in tables."""
        return self.contender.name

    @property
    def lowered(self) -> bool:
        """Whether it computes in a lower precision than the module's."""
        return self.group == "bf16"


def entrants(module: nn.Module, x: Tensor) -> Iterator[Entrant]:
    """Yield everyone; the first is eager PyTorch."""
    yield Entrant(Contender(EAGER, functools.partial(module, x)))
    compiled = torch.compile(module, fullgraph=True, dynamic=False)
    yield Entrant(Contender(COMPILE, functools.partial(compiled, x), check="may"), "compile")
    for name, finish in (("jit:freeze", torch.jit.freeze), ("jit:optimize", torch.jit.optimize_for_inference)):
        yield Entrant(Contender(name, _Traced(module, x, finish), check="may"), "jit")
    yield _wrapped(MINE, "", module, x)
    yield _wrapped(MINE_BF16, "bf16", module, x, dtype=torch.bfloat16)


def _wrapped(name: str, group: str, module: nn.Module, x: Tensor, **options: Any) -> Entrant:
    # a copy, so that nothing that happens to the wrapped module reaches the others
    wrapper = torchadx.InferenceAware(copy.deepcopy(module), **options)
    return Entrant(Contender(name, functools.partial(wrapper, x)), group, wrapper)


def no_bfloat16(device: torch.device) -> str | None:
    """Return why bfloat16 is not worth timing on this device, or ``None`` where it is."""
    if device.type == "cpu" and torch.bfloat16 not in dispatch.onednn_dtypes():
        return "oneDNN's fused linear does not run in bfloat16 on this CPU"
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return f"{torch.cuda.get_device_name(device)} has no bfloat16 instructions"
    return None


class _Traced:
    """A module through TorchScript. It is traced at the first call, where whatever goes wrong is a reason to report."""

    def __init__(self, module: nn.Module, x: Tensor, finish: Callable[..., Any]) -> None:
        self._given = (module, finish)
        self._x = x
        self._step: Callable[[Tensor], Tensor] | None = None

    def __call__(self) -> Tensor:
        if self._step is None:
            module, finish = self._given
            # the graph keeps its weights as constants, which are to be normal tensors
            with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
                self._step = finish(torch.jit.trace(module, (self._x,)))
        return self._step(self._x)
