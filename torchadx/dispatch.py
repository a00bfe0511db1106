"""Which backend runs an op, and why: the only reader of device types and of the environment."""

import functools
import importlib.util
import os
import platform
from typing import NamedTuple

import torch
from torch import Tensor

BACKENDS = ("auto", "aten", "triton")
_FUSED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# up to this many multiplications a Python-defined layer costs more per call than fusion can win back
_SMALL = 1 << 24
# on a CPU, weights of fewer elements stay in its caches, and oneDNN's products gain too little to pay for the call
_CACHED_WEIGHT = 1 << 20


class Choice(NamedTuple):
    """A decision and its reason.

    Attributes:
        backend: ``"triton"`` or ``"aten"``.
        reason: Why, in words a user can act on.
    """

    backend: str
    reason: str


def select(op: str, tensor: Tensor) -> Choice:
    """Choose the backend for an op from its first tensor.

    Args:
        op: The op's name, for the message of an impossible request.
        tensor: Any floating-point tensor the op takes; all its tensors share device and dtype.

    Returns:
        The choice with its reason.

    Raises:
        RuntimeError: ``TORCHADX_BACKEND=triton`` asks for what this tensor or machine cannot do.
        ValueError: ``TORCHADX_BACKEND`` is none of ``auto``, ``aten``, ``triton``.
    """
    return _select(op, tensor.device, tensor.dtype, os.environ.get("TORCHADX_BACKEND", "auto"))


def small(x: Tensor, out_features: int) -> bool:
    """Whether a layer is so small that calling PyTorch's own two ops costs less than fusing them could save.

    Args:
        x: The layer's input, ``(..., in)``.
        out_features: Size of the last dimension of its output.
    """
    return x.numel() * out_features < _SMALL and _free_to_choose()


def composes(x: Tensor, out_features: int, native: bool) -> bool:
    """Whether a layer outside of transforms is best left to PyTorch's own two ops.

    So it is where the layer is small, and on a CPU where its weight is, and in dtypes whose products PyTorch itself
    gives to oneDNN.

    Args:
        x: The layer's input, ``(..., in)``.
        out_features: Size of the last dimension of its output.
        native: Whether the activation is one op of PyTorch's.
    """
    if native and x.device.type == "cpu":
        gains = x.dtype == torch.float32 and x.shape[-1] * out_features >= _CACHED_WEIGHT
        return (not gains or small(x, out_features)) and _free_to_choose()
    return small(x, out_features)


def _free_to_choose() -> bool:
    return os.environ.get("TORCHADX_BACKEND", "auto") == "auto" and not interpreting()


def compiler_fuses(tensor: Tensor) -> bool:
    """Whether torch.compile does better with plain ATen than around an opaque op: on the CPU, where Inductor fuses."""
    return tensor.device.type == "cpu"


@functools.lru_cache(maxsize=256)
def _select(op: str, device: torch.device, dtype: torch.dtype, wanted: str) -> Choice:
    if wanted not in BACKENDS:
        raise ValueError(f"TORCHADX_BACKEND is {wanted!r}; expected one of {', '.join(BACKENDS)}")
    if wanted == "aten":
        return Choice("aten", "TORCHADX_BACKEND=aten")
    obstacle = _obstacle(device, dtype)
    if obstacle is None:
        place = "interpreted on the CPU (TRITON_INTERPRET=1)" if device.type == "cpu" else f"on {device}"
        return Choice("triton", place)
    if wanted == "triton":
        raise RuntimeError(f"TORCHADX_BACKEND=triton, but torchadx::{op} cannot run in Triton: {obstacle}")
    return Choice("aten", obstacle)


def _obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    if dtype not in _FUSED_DTYPES:
        return f"{dtype} always takes the ATen route (Triton serves float32, float16 and bfloat16)"
    if device.type == "cpu" and not interpreting():
        return "CPU tensors take the ATen and oneDNN route"
    if device.type not in ("cpu", "cuda"):
        return f"no Triton kernels for {device.type!r} tensors"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install 'triton>=3.6')"
    if device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than compute capability 8.0, which the kernels need"
    return None


@functools.cache
def interpreting() -> bool:
    """Whether Triton kernels run in its interpreter, on CPU tensors; Triton itself decides once, when imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def onednn_dtypes() -> frozenset[torch.dtype]:
    """The dtypes for which oneDNN's fused linear (``mkldnn::_linear_pointwise``) runs on this CPU."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return frozenset()
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return frozenset({torch.float32, torch.bfloat16})
    return frozenset({torch.float32})


def onednn_serves(tensor: Tensor) -> bool:
    """Whether oneDNN's fused linear is a candidate for this tensor."""
    return tensor.device.type == "cpu" and tensor.dtype in onednn_dtypes() and bool(torch.backends.mkldnn.enabled)


@functools.cache
def machine(device: torch.device) -> str:
    """Name what timings on ``device`` depend on: the processor or card, thread count aside, and library versions."""
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    else:
        hardware = _cpu_model()
    return f"{hardware}; torch {torch.__version__}"


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            fields = dict(line.split(":", 1) for line in lines if ":" in line)
    except OSError:
        return platform.processor() or platform.machine()
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    # hypervisors often hide the marketing name, so the numbers behind it are named too
    return " ".join(fields.get(key, "?") for key in ("model name", "cpu family", "model"))


def tuning_mode() -> str:
    """Read ``TORCHADX_TUNING``: ``"full"`` (measure what is new), ``"cached"`` or ``"off"``.

    Raises:
        ValueError: It is none of these.
    """
    mode = os.environ.get("TORCHADX_TUNING", "full")
    if mode not in ("off", "cached", "full"):
        raise ValueError(f"TORCHADX_TUNING is {mode!r}; expected 'off', 'cached' or 'full'")
    return mode


def cache_directory() -> str:
    """The folder for what is measured: ``TORCHADX_CACHE_DIR``, or ``torchadx`` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.environ.get("TORCHADX_CACHE_DIR") or os.path.join(home, "torchadx")


def on_accelerator(tensor: Tensor) -> bool:
    """Whether a tensor lies in a device's memory of its own, rather than in the host's."""
    return tensor.device.type != "cpu"


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was given; a CPU always has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def autocasting(tensor: Tensor) -> bool:
    """Whether autocast is on for this tensor's device."""
    device = tensor.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
