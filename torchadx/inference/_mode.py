"""Which of PyTorch's gradient modes is on here, in this thread."""

import contextlib
import enum
from collections.abc import Iterator
from typing import NamedTuple

import torch

from torchadx import ops

_AUTOCAST_DEVICES = ("cpu", "cuda")


class Kind(enum.Enum):
    """PyTorch's three gradient modes: of the nested contexts the innermost decides."""

    TRAIN = "train"
    NO_GRAD = "no_grad"
    INFERENCE = "inference"


TRAIN, NO_GRAD, INFERENCE = Kind


class Mode(NamedTuple):
    """What would happen to an operation that is called now.

    Attributes:
        kind: ``TRAIN`` where gradients are recorded, ``NO_GRAD``, or ``INFERENCE``.
        forward_ad: Whether a level of forward AD is entered (``dual_level``, ``torch.func.jvp``).
        functorch: The active transforms of ``torch.func``, the outermost first: of ``"grad"`` (also for ``vjp``),
            ``"vmap"``, ``"jvp"``, ``"functionalize"``.
        compiling: Whether ``torch.compile`` or ``torch.export`` is looking at the code.
        autocast: The device types for which autocast is on, e.g. ``("cpu",)``.
    """

    kind: Kind
    forward_ad: bool
    functorch: tuple[str, ...]
    compiling: bool
    autocast: tuple[str, ...]


def current_mode() -> Mode:
    """Return the gradient mode of this thread, and what else is active.

    A look-up of about a microsecond. PyTorch's modes are thread-local, but for levels of forward AD, which all threads
    share. Code that ``torch.compile`` looks at cannot ask for inference mode: there ``NO_GRAD`` stands for both, and of
    the rest only ``compiling`` is told. ``torch.export`` runs the code, and all is told.

    Example:
        >>> with torch.inference_mode():
        ...     current_mode().kind
        <Kind.INFERENCE: 'inference'>
    """
    if torch.compiler.is_dynamo_compiling():
        return Mode(TRAIN if torch.is_grad_enabled() else NO_GRAD, False, (), True, ())
    if torch.is_inference_mode_enabled():
        kind = INFERENCE
    else:
        kind = TRAIN if torch.is_grad_enabled() else NO_GRAD
    autocast = tuple(device for device in _AUTOCAST_DEVICES if torch.is_autocast_enabled(device))
    return Mode(kind, ops.in_forward_level(), ops.transforms(), torch.compiler.is_compiling(), autocast)


@contextlib.contextmanager
def outside_inference() -> Iterator[None]:
    """Leave inference mode, if it is on, for a mode that records no graph either but keeps tangents."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield
