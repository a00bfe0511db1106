"""How fast this machine is, for one dtype: measured once, kept on disk."""

import dataclasses
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F

from torchadx import dispatch

_FORMAT = 1
_MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Rates:
    """What a machine does a second.

    Attributes:
        product: Floating-point operations of large matrix products.
        convolution: Floating-point operations of convolutions.
        stream: Bytes of elementwise passes.
        call: Seconds to call an operation, its share of the interpreter included.
        sweep_call: Seconds to call an operation through torch.func.
        working_set: Bytes up to which a batch of directions stays in the caches.
        source: ``"measured"``, ``"disk"``, ``"static"`` or ``"given"``.
    """

    product: float = 6e10
    convolution: float = 3e10
    stream: float = 1e10
    call: float = 8e-6
    sweep_call: float = 4e-4
    working_set: float = 32 * _MIB
    source: str = "static"

    def seconds(self, kind: str, flops: float, nbytes: float) -> float:
        """Seconds for a direction through one operation, calls apart."""
        if kind in ("product", "convolution"):
            return max(flops / (self.product if kind == "product" else self.convolution), nbytes / self.stream)
        # an operation that is swept computes its primal and its derivative
        return (4.0 if kind == "sweep" else 1.0) * nbytes / self.stream

    def overhead(self, kind: str) -> float:
        """Seconds for a call, however small."""
        return {"sweep": self.sweep_call, "reshape": 0.25 * self.call}.get(kind, self.call)


_known: dict[tuple[torch.device, torch.dtype, int], Rates] = {}


def rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Return the rates of a device for a dtype, measuring them on first use (well under two seconds).

    With ``TORCHADX_TUNING=off`` nothing is measured nor read, and with ``cached`` nothing is measured: static rates of
    a small CPU stand in.
    """
    mode = dispatch.tuning_mode()
    if mode == "off":
        return Rates()
    key = device, dtype, torch.get_num_threads()
    if key not in _known:
        stored = _read(*key)
        if stored is None and mode == "cached":
            return Rates()
        _known[key] = stored or _measure(device, dtype)
        if stored is None:
            _write(*key, _known[key])
    return _known[key]


def _measure(device: torch.device, dtype: torch.dtype) -> Rates:
    with torch.inference_mode(False), torch.no_grad():
        a, b = (torch.ones(size, device=device, dtype=dtype) for size in ((512, 1024), (1024, 512)))
        product = 2.0 * a.shape[0] * b.numel() / _seconds(lambda: a @ b, device)
        image = torch.ones(32, 16, 32, 32, device=device, dtype=dtype)
        kernel = torch.ones(16, 16, 3, 3, device=device, dtype=dtype)
        flops = 2.0 * image.numel() * kernel[0].numel()
        convolution = flops / _seconds(lambda: F.conv2d(image, kernel, padding=1), device)
        wide, factor = torch.ones(64, 16384, device=device, dtype=dtype), torch.ones(16384, device=device, dtype=dtype)
        stream = 2.0 * wide.nbytes / _seconds(lambda: wide * factor, device)
        small = torch.ones(1, device=device, dtype=dtype)
        call = 2.0 * _seconds(lambda: small * small, device)
        sweep_call = _seconds(lambda: _swept(small), device)
    return Rates(product, convolution, stream, call, sweep_call, source="measured")


def _swept(x: torch.Tensor) -> torch.Tensor:
    return torch.func.vmap(lambda v: torch.func.jvp(torch.sin, (x,), (v,))[1])(x[None])


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """Return the median of several runs, after some to warm up."""
    samples = []
    for _ in range(12):
        dispatch.synchronize(device)
        start = time.perf_counter()
        run()
        dispatch.synchronize(device)
        samples.append(time.perf_counter() - start)
    return sorted(samples[4:])[4]


def _path(device: torch.device, dtype: torch.dtype, threads: int) -> str:
    name = f"rates-{_FORMAT}-{device.type}-{str(dtype).removeprefix('torch.')}-{threads}.json"
    return os.path.join(dispatch.cache_directory(), name)


def _read(device: torch.device, dtype: torch.dtype, threads: int) -> Rates | None:
    path = _path(device, dtype, threads)
    try:
        with open(path) as file:
            stored = json.load(file)
        if stored["machine"] != dispatch.machine(device):
            return None
        numbers = {name: float(value) for name, value in stored["rates"].items() if name != "source"}
        if not all(0 < number < float("inf") for number in numbers.values()):
            raise ValueError(f"rates are positive numbers; got {numbers}")
        return Rates(**numbers, source="disk")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        warnings.warn(f"torchadx ignores {path}, which cannot be read: {error}", stacklevel=3)
        return None


def _write(device: torch.device, dtype: torch.dtype, threads: int, found: Rates) -> None:
    path = _path(device, dtype, threads)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        # written aside and renamed: another process never reads half a file
        with tempfile.NamedTemporaryFile("w", dir=os.path.dirname(path), delete=False) as file:
            json.dump({"machine": dispatch.machine(device), "rates": dataclasses.asdict(found)}, file, indent=1)
        os.replace(file.name, path)
    except OSError as error:
        warnings.warn(f"torchadx cannot write {path} ({error}); rates are kept for this process only", stacklevel=3)
