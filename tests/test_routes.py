"""Every CPU route of every product against float64: an error at most twice that of plain PyTorch in the same dtype."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import jvp

import torchadx
from torchadx import activations, dispatch, tuning

# odd sizes, above what the ATen route finds worth measuring
M, N, K = 67, 65, 71
LAYOUTS = {
    "random": lambda make, m, k: make(m, k),
    "transposed": lambda make, m, k: make(k, m).t(),
    "strided": lambda make, m, k: make(2 * m, 2 * k)[::2, ::2],
    "broadcast": lambda make, m, k: make(1, k).expand(m, k),
    "3-D": lambda make, m, k: make(m, 3, k).transpose(0, 1),
}
ACTIVATIONS = [row.name for row in activations.ROWS if row.onednn]
CASES = [(act, layout) for act in ACTIVATIONS for layout in ("random", "3-D")]
CASES += [(act, layout) for act in ("gelu", "tanh") for layout in ("transposed", "strided", "broadcast")]
OPS = ["affine", "input_grad", "weight_grad", *(f"affine_{name}" for name in ACTIVATIONS if name != "identity")]
ROUTES = [
    (torch.float32, "aten"), (torch.float32, "onednn"),
    (torch.bfloat16, "aten"), (torch.bfloat16, "onednn"),
    (torch.float16, "aten"),
]  # fmt: skip


def operands(layout, dtype):
    """x, weight and bias; the layout is that of x and weight."""

    def make(*shape):
        # pre-activations near 1, where activations bend
        return torch.randn(shape, dtype=dtype) / K**0.25

    weight_layout = "random" if layout == "3-D" else layout
    return LAYOUTS[layout](make, M, K), LAYOUTS[weight_layout](make, N, K), make(N)


def off_kinks(x, weight, bias):
    """1 where the pre-activation is clear of the points at which slopes jump: there, rounding decides the side."""
    z = F.linear(x.double(), weight.double(), bias.double())
    return torch.stack([(z - kink).abs() > 0.05 for kink in (-3, 0, 3)]).all(0)


def results(f, primals, tangents):
    leaves = [t.detach().requires_grad_() for t in primals]
    y = f(*leaves)
    smooth = off_kinks(*primals)
    cotangent = torch.linspace(-1, 1, y.numel()).reshape(y.shape).bfloat16() * smooth
    x, *rest = primals
    return {
        "y": f(*primals),
        "recorded y": y.detach(),
        **dict(zip(("gx", "gw", "gb"), torch.autograd.grad(y, leaves, cotangent.to(y.dtype)), strict=True)),
        "tangent of x": jvp(lambda x: f(x, *rest), (x,), (tangents[0],))[1] * smooth,
        "all tangents": jvp(f, primals, tangents)[1] * smooth,
    }


def distance(got, exact):
    return ((got.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize(("dtype", "route"), ROUTES)
@pytest.mark.parametrize(("act", "layout"), CASES)
def test_error_is_at_most_twice_that_of_pytorch(act, layout, dtype, route):
    if route == "onednn" and dtype not in dispatch.onednn_dtypes():
        pytest.skip(f"oneDNN's fused linear does not serve {dtype} on this CPU")
    for op in OPS:
        tuning.pin(op, route)
    primals, tangents = operands(layout, dtype), operands(layout, dtype)
    row = activations.resolve(act)
    plain = lambda x, w, b: row.forward(F.linear(x, w, b))  # noqa: E731
    got = results(lambda *args: torchadx.linear(*args, row), primals, tangents)
    reference = results(plain, primals, tangents)
    exact = results(plain, *(tuple(t.double() for t in column) for column in (primals, tangents)))
    for name, value in got.items():
        assert value.dtype == dtype
        assert value.shape == exact[name].shape
        assert distance(value, exact[name]) <= 2 * distance(reference[name], exact[name]) + 1e-6, name
    if route == "onednn":
        used = {record.key.op for record in tuning.list() if record.choice == "onednn"}
        assert used >= {"affine", "input_grad", "weight_grad"}
        assert act == "identity" or f"affine_{act}" in used
