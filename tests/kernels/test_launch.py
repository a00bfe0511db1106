"""How launches are described and what is refused; nothing here runs a kernel."""

import pytest
import torch

from torchadx.activations import resolve
from torchadx.kernels import (
    Config,
    capability,
    linear_dual,
    linear_forward,
    linear_input_grad,
    linear_weight_grad,
    persistent_applies,
)
from torchadx.kernels.forward import plan_forward
from torchadx.kernels.weight_grad import plan_weight_grad

CONFIG = Config(32, 32, 32)
GELU = resolve("gelu")


def meta(*shape, dtype=torch.float32):
    """Return a tensor without memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


def forward_constants(x, w, config=CONFIG):
    """Return the compile-time constants of a forward launch."""
    return plan_forward(x, w, None, meta(x.shape[0], w.shape[0], dtype=x.dtype), None, GELU, config).constants


def test_offsets_are_wide_only_where_they_must_be():
    half = 2**15
    assert not forward_constants(meta(half, half), meta(8, half))["WIDE"]
    assert forward_constants(meta(2 * half + 1, half), meta(8, half))["WIDE"]
    assert forward_constants(meta(2 * half, 8), meta(half + 1, 8))["WIDE"], "the output is the large one"
    assert forward_constants(meta(4, half).as_strided((4, half), (2**30, 1)), meta(8, half))["WIDE"]


def test_the_reduced_dimension_is_masked_only_where_it_is_ragged():
    assert forward_constants(meta(5, 64), meta(7, 64))["EVEN"]
    assert not forward_constants(meta(5, 65), meta(7, 65))["EVEN"]


@pytest.fixture
def matmul():
    """Give back torch's setting of fp32 matrix products as it was."""
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    yield settings
    settings.fp32_precision = before


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_precision_follows_torch(matmul, precision):
    matmul.fp32_precision = precision
    assert forward_constants(meta(4, 4), meta(4, 4))["PRECISION"] == precision


def test_precision_does_not_compile_half_kernels_twice(matmul):
    x = meta(4, 4, dtype=torch.float16)
    matmul.fp32_precision = "ieee"
    before = forward_constants(x, x)
    matmul.fp32_precision = "tf32"
    assert forward_constants(x, x) == before


@pytest.mark.parametrize(("rows", "split", "parts"), [(96, 1, 1), (96, 3, 3), (64, 3, 2), (160, 4, 3), (1, 8, 1)])
def test_no_part_of_the_rows_is_empty(rows, split, parts):
    gy, x = meta(rows, 8), meta(rows, 4)
    config = Config(32, 32, 32, split=split)
    launches = plan_weight_grad(gy, None, gy, x, meta(8, 4), meta(8), GELU, config)
    assert len(launches) == (1 if parts == 1 else 2)
    assert launches[0].grid[1] == parts
    assert (parts - 1) * launches[0].arguments["rows_per_split"] < rows


def test_descriptors_need_aligned_rows():
    w = torch.zeros(16, 16)
    assert persistent_applies(torch.zeros(5, 16), w)
    assert persistent_applies(torch.zeros(5, 32)[:, :16], w)
    assert not persistent_applies(torch.zeros(16, 5).t(), w), "columns are not contiguous"
    assert not persistent_applies(torch.zeros(5, 18)[:, :16], w), "rows start off the grid of 16 bytes"
    assert not persistent_applies(torch.zeros(5, 17)[:, 1:], w), "the first row starts off it"
    assert not persistent_applies(torch.zeros(1, 16).expand(5, 16), w), "rows share memory"
    assert not persistent_applies(torch.zeros(5, 16), torch.zeros(15, 16)), "the output's rows are off it"
    assert not persistent_applies(torch.zeros(5, 0), torch.zeros(16, 0)), "there is nothing to read"


def test_persistent_config_refuses_what_it_cannot_read():
    config = Config(32, 32, 32, persistent=True)
    with pytest.raises(ValueError, match="use a config that is not persistent"):
        linear_forward(torch.zeros(16, 5).t(), torch.zeros(16, 16), None, GELU, save=False, config=config)


def test_the_device_must_be_one_that_triton_knows():
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
        capability(torch.device("cpu"))


X, W, B, G = torch.zeros(6, 4), torch.zeros(5, 4), torch.zeros(5), torch.zeros(6, 5)
REFUSED = {
    r"w must have shape \(5, 4\), got \(5, 3\)": lambda: linear_forward(
        X, W[:, :3], None, GELU, save=False, config=CONFIG
    ),
    r"b must have shape \(5,\), got \(4,\)": lambda: linear_forward(X, W, B[:4], GELU, save=False, config=CONFIG),
    "one dtype and device, got x torch.float32 on cpu, w torch.float16": lambda: linear_forward(
        X, W.half(), None, GELU, save=False, config=CONFIG
    ),
    "dtype must be float32, float16 or bfloat16, got torch.float64": lambda: linear_forward(
        X.double(), W.double(), None, GELU, save=False, config=CONFIG
    ),
    "gy and gz are both None": lambda: linear_input_grad(None, None, G, W, GELU, config=CONFIG),
    "needs its pre_activation": lambda: linear_input_grad(G, None, None, W, GELU, config=CONFIG),
    r"gz must have shape \(6, 5\), got \(6, 4\)": lambda: linear_input_grad(G, X, G, W, GELU, config=CONFIG),
    r"x must have shape \(6, 4\), got \(5, 4\)": lambda: linear_weight_grad(
        G, None, G, X[:5], GELU, with_bias=True, dtype=torch.float32, config=CONFIG
    ),
    "no tangent; call linear_forward": lambda: linear_dual(X, W, B, None, None, None, GELU, save=True, config=CONFIG),
    r"share one batch size, got \[\(2,\), \(3,\)\]": lambda: linear_dual(
        X, W, B, X.expand(2, 6, 4), None, B.expand(3, 5), GELU, save=True, config=CONFIG
    ),
    "batch of tangents is empty": lambda: linear_dual(
        X, W, B, X.expand(0, 6, 4), None, None, GELU, save=True, config=CONFIG
    ),
    r"tx, over the batch of tangents, must have shape \(1, 6, 4\)": lambda: linear_dual(
        X, W, B, X[:5], None, None, GELU, save=True, config=CONFIG
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_the_error_says_what_is_wrong(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()
