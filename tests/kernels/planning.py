"""Plan the launches of an op on tensors without memory, as its launcher would."""

import torch

from torchadx.activations import resolve
from torchadx.kernels import Config
from torchadx.kernels._launch import Launch
from torchadx.kernels.dual import plan_dual
from torchadx.kernels.forward import plan_forward
from torchadx.kernels.input_grad import plan_input_grad
from torchadx.kernels.persistent import plan_persistent
from torchadx.kernels.weight_grad import plan_weight_grad

LARGE = (8192, 4096, 4096)


def plan(
    op: str,
    config: Config,
    *,
    shape: tuple[int, int, int] = LARGE,
    dtype: torch.dtype = torch.bfloat16,
    activation: str = "gelu",
    absent: tuple[str, ...] = ("gz", "tw", "tb"),
    batch: int = 1,
) -> list[Launch]:
    """Describe what an op would launch for M, N, K = shape; the tensors named in ``absent`` are None."""
    (m, n, k), row = shape, resolve(activation)

    def tensor(name, *size):
        return None if name in absent else torch.empty(size, dtype=dtype, device="meta")

    x, w, b = tensor("x", m, k), tensor("w", n, k), tensor("b", n)
    y, z = tensor("y", m, n), tensor("z", m, n)
    if op == "forward":
        return [(plan_persistent if config.persistent else plan_forward)(x, w, b, y, z, row, config)]
    if op == "dual":
        tx, tw, tb = tensor("tx", batch, m, k), tensor("tw", batch, n, k), tensor("tb", batch, n)
        lead = (batch,) if batch > 1 else ()
        ty, tz = tensor("ty", *lead, m, n), tensor("tz", *lead, m, n)
        return [plan_dual(x, w, b, tx, tw, tb, y, z, ty, tz, row, config)]
    gy, gz = tensor("gy", m, n), tensor("gz", m, n)
    kept = None if row.keeps == "nothing" or gy is None else tensor("kept", m, n)
    if op == "input_grad":
        return [plan_input_grad(gy, gz, kept, w, tensor("gx", m, k), row, config)]
    return plan_weight_grad(gy, gz, kept, x, tensor("gw", n, k), b, row, config)
