"""Values of every kernel, over activations, dtypes, shapes, strides, subsets of arguments and configs."""

import dataclasses
import itertools
import random

import pytest
import torch

from torchadx.activations import Activation, known, resolve
from torchadx.kernels import (
    Config,
    capability,
    configs,
    heuristic,
    linear_dual,
    linear_forward,
    linear_input_grad,
    linear_weight_grad,
)
from torchadx.kernels._candidates import OPS

from . import reference
from .reference import DTYPES, LAYOUTS, assert_near, inputs, move

# M, N, K: single elements, sizes around a tile, ragged ones, several tiles and steps along each dimension
SHAPES = ((1, 1, 1), (16, 16, 16), (5, 7, 3), (33, 17, 1), (17, 40, 50), (50, 33, 70), (2, 65, 20), (64, 32, 48))
# the last finishes a tile in two slices
CONFIGS = (
    Config(32, 32, 32),
    Config(16, 32, 16, split=3),
    Config(32, 16, 16, group=1),
    Config(64, 64, 32, warps=2, split=2),
)
TANGENTS = tuple(s for size in (1, 2, 3) for s in itertools.combinations(("tx", "tw", "tb"), size))
COTANGENTS = ((), ("gy",), ("gz",))  # what is left out

# every activation in every dtype; shape, layout, config and arguments of each case are drawn, the same ones every time
CASES = [pytest.param(row, dtype, id=f"{row.name}-{str(dtype)[6:]}") for row in known() for dtype in DTYPES]


def draws(op, row, dtype):
    """Return the random choices of a case."""
    return random.Random(f"{op} {row.name} {dtype}")


def check_forward(device, row, i, config, save):
    """Compare one forward launch with the reference."""
    y, z = linear_forward(*i.on(device, "x", "w", "b"), row, save=save, config=config)
    assert (z is not None) == save
    assert y.dtype == i.x.dtype
    assert y.is_contiguous()
    assert_near({"y": y, "z": z}, reference.forward(row, i), exact_forward(row, i))


def exact_forward(row, i):
    """Compute y and z by the row's formulas in float64."""
    z = reference.forward(row, i.exact())["z"]
    return {"y": row.value(z), "z": z}


def exact_backward(row, i):
    """Compute gradients by the row's formulas in float64."""
    e = i.exact()
    g = 0
    if e.gy is not None:
        g = g + e.gy * row.derivative(e.gy if e.kept is None else e.kept)
    if e.gz is not None:
        g = g + e.gz
    return {"gx": g @ e.w, "gw": g.mT @ e.x, "gb": g.sum(0)}


def check_backward(device, row, i, config, with_bias):
    """Compare both gradient kernels with the reference."""
    gy, gz, kept, x, w = i.on(device, "gy", "gz", "kept", "x", "w")
    gx = linear_input_grad(gy, gz, kept, w, row, config=config)
    gw, gb = linear_weight_grad(gy, gz, kept, x, row, with_bias=with_bias, dtype=w.dtype, config=config)
    assert (gb is not None) == with_bias
    assert gx.dtype == gw.dtype == i.w.dtype
    assert_near({"gx": gx, "gw": gw, "gb": gb}, reference.backward(row, i), exact_backward(row, i))


def check_dual(device, row, i, config, save):
    """Compare one dual launch with the reference."""
    y, z, ty, tz = linear_dual(*i.on(device, "x", "w", "b", "tx", "tw", "tb"), row, save=save, config=config)
    assert (z is not None) == (tz is not None) == save
    exact = {**reference.dual(row, i.exact()), **exact_forward(row, i)}
    kept = row.kept(exact["y"], exact["z"])
    exact["ty"] = row.derivative(exact["z"] if kept is None else kept) * exact["tz"]
    assert_near({"y": y, "z": z, "ty": ty, "tz": tz}, reference.dual(row, i), exact)


@pytest.mark.parametrize(("row", "dtype"), CASES)
def test_forward(device, row, dtype):
    draw = draws("forward", row, dtype)
    leave_out = draw.choice(((), ("b",)))
    i = inputs(row, draw.choice(SHAPES), dtype, layout=draw.choice(LAYOUTS), leave_out=leave_out)
    check_forward(device, row, i, draw.choice(CONFIGS), save=draw.choice((True, False)))


@pytest.mark.parametrize(("row", "dtype"), CASES)
def test_backward(device, row, dtype):
    draw = draws("backward", row, dtype)
    leave_out = draw.choice(COTANGENTS)
    i = inputs(row, draw.choice(SHAPES), dtype, layout=draw.choice(LAYOUTS), leave_out=leave_out)
    check_backward(device, row, i, draw.choice(CONFIGS), with_bias=draw.choice((True, False)))


@pytest.mark.parametrize(("row", "dtype"), CASES)
def test_dual(device, row, dtype):
    draw = draws("dual", row, dtype)
    leave_out = {"tx", "tw", "tb", "b"} - set(draw.choice(TANGENTS)) - set(draw.choice(((), ("b",))))
    i = inputs(row, draw.choice(SHAPES), dtype, layout=draw.choice(LAYOUTS), leave_out=tuple(leave_out))
    check_dual(device, row, i, draw.choice(CONFIGS), save=draw.choice((True, False)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_tiles_are_finished_in_four_slices(device, dtype):
    row = resolve("gelu_tanh")
    i = inputs(row, (100, 150, 40), dtype)
    check_forward(device, row, i, Config(128, 128, 32), save=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", [Config(32, 32, 32), Config(64, 64, 32, warps=2), Config(32, 64, 64, group=1)])
def test_persistent_programs_walk_over_tiles(device, dtype, config):
    if device.type == "cuda" and capability(device)[1] not in range(90, 130):
        pytest.skip("no tensor memory accelerator")
    row = resolve("mish")
    i = inputs(row, (150, 104, 72), dtype, leave_out=() if config.BN == 32 else ("b",))
    i.x = torch.cat([i.x, i.x], dim=1)[:, :72]
    check_forward(device, row, i, dataclasses.replace(config, persistent=True), save=config.BM == 32)


@pytest.mark.parametrize("op", OPS)
def test_every_config_offered(device, op):
    row = resolve("gelu")
    i = inputs(row, (70, 48, 48), torch.float16, batch=2)
    sizes = {"m": 70, "n": 48, "k": 48, "itemsize": 2, "capability": capability(device), "tangents": 2}
    for config in dict.fromkeys([*configs(op, **sizes), heuristic(op, **sizes)]):
        if op == "forward":
            check_forward(device, row, i, config, save=True)
        elif op == "dual":
            check_dual(device, row, i, config, save=True)
        else:
            check_backward(device, row, i, config, with_bias=True)


@pytest.mark.parametrize("split", [1, 2, 5])
@pytest.mark.parametrize("shared", ["", "tx", "tw,tb", "tb"])
def test_dual_takes_a_batch_of_tangents(device, shared, split):
    row = resolve(("gelu", "tanh")[split % 2])
    i = inputs(row, (17, 40, 33), DTYPES[split % 3], layout="stepped", batch=3, shared=shared)
    check_dual(device, row, i, Config(32, 32, 32, split=split), save=True)


@pytest.mark.parametrize("tangents", TANGENTS)
def test_dual_takes_a_batch_of_each_tangent_alone(device, tangents):
    leave_out = tuple({"tx", "tw", "tb"} - set(tangents))
    row = resolve("silu")
    i = inputs(row, (9, 20, 18), torch.float32, leave_out=leave_out, batch=4)
    check_dual(device, row, i, Config(16, 32, 16, split=2), save=False)


@pytest.mark.parametrize("tangents", TANGENTS)
def test_a_batch_of_one_tangent_keeps_its_dimension(device, tangents):
    leave_out = tuple({"tx", "tw", "tb"} - set(tangents))
    row = resolve("sigmoid")
    i = inputs(row, (3, 5, 4), torch.float32, leave_out=leave_out, batch=1)
    check_dual(device, row, i, Config(16, 32, 16), save=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_input_features(device, dtype):
    row = resolve("softplus")
    i = inputs(row, (5, 40, 0), dtype, batch=2)
    check_forward(device, row, i, Config(16, 32, 32), save=True)
    check_dual(device, row, i, Config(16, 32, 32), save=True)
    check_backward(device, row, i, Config(16, 32, 32), with_bias=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_expanded_cotangent(device, dtype):
    """The gradient of a sum: one number with strides of zero."""
    row = resolve("gelu")
    i = inputs(row, (40, 33, 20), dtype)
    i.gy, i.gz = i.gy[:1, :1].expand(40, 33), i.gz[:, :1].expand(40, 33)
    check_backward(device, row, i, Config(32, 32, 16, split=2), with_bias=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_wide_offsets(device, monkeypatch, layout):
    """Tensors beyond 32-bit offsets do not fit a test; the code for them is made to run on small ones."""
    monkeypatch.setattr("torchadx.kernels._launch._extent", lambda tensor: 2**31)
    row = resolve("elu")
    i = inputs(row, (33, 40, 50), torch.float16, layout=layout, batch=2)
    check_forward(device, row, i, Config(32, 32, 32), save=True)
    check_backward(device, row, i, Config(32, 32, 32, split=2), with_bias=True)
    check_dual(device, row, i, Config(32, 32, 32), save=True)


def logarithm(z):
    """Have a derivative that is infinite at the zeros which fill a ragged tile."""
    return torch.log(z)


def reciprocal(z):
    """Differentiate the logarithm."""
    return 1 / z


def test_infinite_derivatives_stay_outside_the_matrix(device):
    row = Activation("log", logarithm, reciprocal, reciprocal)
    i = inputs(row, (17, 19, 5), torch.float32)
    i.kept = i.kept.abs() + 1
    check_backward(device, row, i, Config(16, 16, 16), with_bias=True)


@pytest.mark.parametrize("split", [1, 2, 3, 7, 64])
def test_weight_gradient_splits_rows(device, split):
    """The parts may be uneven, and there may be fewer steps than parts."""
    row = resolve("silu")
    i = inputs(row, (100, 20, 33), torch.bfloat16)
    check_backward(device, row, i, Config(16, 32, 16, split=split), with_bias=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_gradient_in_another_dtype(device, dtype):
    row = resolve("relu")
    i = inputs(row, (33, 20, 17), torch.float16)
    gy, gz, kept, x = i.on(device, "gy", "gz", "kept", "x")
    gw, gb = linear_weight_grad(gy, gz, kept, x, row, with_bias=True, dtype=dtype, config=Config(16, 32, 16, split=2))
    assert gw.dtype == gb.dtype == dtype
    plain = {name: gradient.to(dtype) for name, gradient in reference.backward(row, i).items()}
    assert_near({"gw": gw, "gb": gb}, plain, exact_backward(row, i))


@pytest.mark.parametrize("row", list(known()), ids=lambda row: row.name)
def test_infinities_and_nan_propagate(device, row):
    z = torch.tensor([-torch.inf, -200.0, -0.0, 0.0, 200.0, torch.inf, torch.nan]).reshape(-1, 1)
    one, zero = torch.ones(1, 1), torch.zeros(1)
    y, _ = linear_forward(*(move(t, device) for t in (z, one, zero)), row, save=False, config=Config(16, 32, 16))
    torch.testing.assert_close(y.cpu(), row.value(z), rtol=1e-5, atol=1e-30, equal_nan=True)
    _, _, ty, _ = linear_dual(
        *(move(t, device) for t in (z, one, zero, one.expand(7, 1))), None, None, row, save=False,
        config=Config(16, 32, 16),
    )  # fmt: skip
    kept = row.kept(row.value(z), z)
    torch.testing.assert_close(
        ty.cpu(), row.derivative(z if kept is None else kept), rtol=1e-5, atol=1e-30, equal_nan=True
    )


@pytest.mark.gpu
def test_gradients_repeat_bit_by_bit(device):
    if device.type != "cuda":
        pytest.skip("programs run one after another in the interpreter")
    row = resolve("gelu")
    i = inputs(row, (4096, 256, 256), torch.bfloat16)
    gy, gz, kept, x = i.on(device, "gy", "gz", "kept", "x")
    config = Config(64, 64, 32, split=8)
    first, second = (
        linear_weight_grad(gy, gz, kept, x, row, with_bias=True, dtype=x.dtype, config=config) for _ in range(2)
    )
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
