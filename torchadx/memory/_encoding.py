"""What those who try an action on a tensor and those who carry it out both need to know of it."""

import math

import torch
from torch import Tensor

from torchadx import dispatch
from torchadx.memory.codecs import Codec, Declined, Encoded
from torchadx.memory.policy import Action, Alias

# squares are summed in float64, so many elements at a time: a large tensor is not to be copied at twice its size
_CHUNK = 1 << 20


def refusal(codec: Codec, dtype: torch.dtype, alias: Alias | None) -> str | None:
    """Say why a codec is not even tried on a tensor; to be read after the codec's name."""
    if not codec.accepts(dtype):
        return f"does not take {dtype}"
    if alias == "parameter copy" and not codec.lossless:
        return "is lossy, and this is a copy of a parameter (autocast's or a replica's)"
    return None


def encode(codec: Codec, flat: Tensor) -> Encoded | Declined:
    """Encode where the codec works."""
    return codec.encode(flat.cpu() if codec.on_host else flat)


def stays(action: Action, flat: Tensor) -> bool:
    """Whether what an action makes of a tensor lies in the memory that the tensor is in."""
    return action.store == "device" or (action.store == "host" and not dispatch.on_accelerator(flat))


def squares(exact: Tensor, decoded: Tensor) -> tuple[float, float]:
    """Return ``||decoded - exact||**2`` and ``||exact||**2`` over finite elements; both tensors are ``(n,)``."""
    squared_error = squared_norm = torch.zeros((), dtype=torch.float64, device=exact.device)
    for x, y in zip(exact.split(_CHUNK), decoded.split(_CHUNK), strict=True):
        x, y = x.double(), y.double()
        finite = x.isfinite()
        squared_error = squared_error + torch.where(finite, y - x, 0).square().sum()
        squared_norm = squared_norm + torch.where(finite, x, 0).square().sum()
    return squared_error.item(), squared_norm.item()


def relative_error(squared_error: float, squared_norm: float) -> float:
    """Return ``||decoded - exact|| / ||exact||`` of its squares; infinite if only zeros came back as something else."""
    if squared_norm == 0:
        return 0.0 if squared_error == 0 else math.inf
    return math.sqrt(squared_error) / math.sqrt(squared_norm)
