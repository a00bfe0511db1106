"""Block codes: their values, the errors they are promised to keep, and the machine code that makes them."""

import math
import re

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torchadx.kernels import dequantize, interpreting, quantize
from torchadx.kernels._launch import Launch
from torchadx.kernels._quantize_math import from_float8, symmetric, to_float8
from torchadx.kernels.quantize import plan_dequantize, plan_quantize
from torchadx.memory.codecs import resolve

from .compiling import ARCHITECTURES, compile_for
from .quantizing import FLOAT8, KINDS, LARGEST, TINY, bound, decode, encode, extent, rows, scenarios, unpacked
from .reference import DTYPES

CASES = [pytest.param(kind, dtype, id=f"{kind}-{str(dtype)[6:]}") for kind in KINDS for dtype in DTYPES]
BLOCKS = (16, 32, 64, 128, 1024, 4096)
FRACTIONS = {"e4m3": 3, "e5m2": 2}


def everything(kind, dtype):
    """Return a block size, drawn for the case, and all scenarios in blocks of it; the last block is cut off."""
    block = BLOCKS[(3 * KINDS.index(kind) + DTYPES.index(dtype)) % len(BLOCKS)]
    return block, torch.cat(list(scenarios(block, dtype).values()))[: -block // 3]


def identical(got, expected):
    """Require equal numbers, and NaN where there is NaN."""
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def there_and_back(device, x, block, kind):
    """Encode and decode, and return both results on the CPU."""
    parts = quantize(x.to(device), block, kind)
    y = dequantize(parts, len(x), x.dtype, block, kind)
    assert y.dtype == x.dtype
    return tuple(part.cpu() for part in parts), y.cpu()


def check_values(x, y, parts, block, kind):
    """Require what is not finite to come back as it was, and the rest within its bound."""
    finite = x.isfinite()
    identical(y[~finite], x[~finite])
    error = (y.double() - x.double()).abs()[finite]
    allowed = bound(x, parts, block, kind)[finite]
    # an infinite error would be one too
    assert (error <= allowed).all(), f"worst by {(error / allowed).max()}"


@pytest.mark.parametrize(("kind", "dtype"), CASES)
def test_values_come_back_within_their_bounds(device, kind, dtype):
    block, x = everything(kind, dtype)
    parts, y = there_and_back(device, x, block, kind)
    check_values(x, y, parts, block, kind)


@pytest.mark.parametrize(("kind", "dtype"), CASES)
def test_decoding_is_exact(device, kind, dtype):
    block, x = everything(kind, dtype)
    parts, y = there_and_back(device, x, block, kind)
    exact = decode(parts, len(x), block, kind)
    if kind == "int2":  # two additions in fp32
        rounding = max(2**-20, torch.finfo(dtype).eps)
        torch.testing.assert_close(y, exact.to(dtype), rtol=rounding, atol=TINY, equal_nan=True)
    else:
        identical(y, exact.float().to(dtype))


@pytest.mark.parametrize(("kind", "dtype"), CASES)
def test_codes_and_scales_equal_those_of_plain_pytorch(device, kind, dtype):
    block, x = everything(kind, dtype)
    parts, _ = there_and_back(device, x, block, kind)
    for got, expected in zip(parts, encode(x, block, kind), strict=True):
        identical(got, expected)
        assert torch.equal(got.signbit(), expected.signbit()), "a mark is on the wrong block"


@pytest.mark.parametrize(("kind", "dtype"), CASES)
def test_the_codecs_on_aten_give_the_same_bits(device, monkeypatch, kind, dtype):
    """So that what one device encoded can be decoded on another."""
    monkeypatch.setenv("TORCHADX_BACKEND", "aten")
    codec = resolve(f"fp8:{kind}" if kind in FLOAT8 else f"{kind}:128")
    x = torch.cat([*scenarios(128, dtype).values(), torch.randn(99).to(dtype)])
    parts, y = there_and_back(device, x, 128, kind)
    encoded = codec.encode(x)
    for got, expected in zip(parts, encoded.parts, strict=True):
        assert got.dtype == expected.dtype
        assert torch.equal(got.view(torch.uint8), expected.view(torch.uint8))
    identical(y, codec.decode(encoded))


@pytest.mark.parametrize(("kind", "dtype"), CASES)
def test_scales_are_as_small_as_can_be(device, kind, dtype):
    block, x = everything(kind, dtype)
    scale = there_and_back(device, x, block, kind)[0][1]
    marked = ~rows(x, block).isfinite().all(1)
    assert torch.equal(scale.signbit(), marked)
    steps = torch.where(marked, *reversed(LARGEST.get(kind, (3, 3)))).double()
    needed = extent(x, block, kind)
    reached = scale.double().abs() * steps
    assert (reached <= needed).all()
    assert (reached >= needed * (1 - 2**-21))[needed > 1.0001 * steps * TINY].all()
    assert (reached[needed < steps * TINY] == 0).all()


@pytest.mark.parametrize("n", [1, 2, 3, 5, 15, 16, 17, 31, 63, 4095, 4096, 4097, 8191, 12289])
def test_sizes(device, n):
    for i, kind in enumerate(KINDS):
        x = torch.randn(n).to(DTYPES[(n + i) % 3])
        parts, y = there_and_back(device, x, 16, kind)
        check_values(x, y, parts, 16, kind)
        bits = {"int4": 4, "int2": 2}.get(kind, 8)
        assert [len(part) for part in parts] == [math.ceil(n * bits / 8), *[math.ceil(n / 16)] * (len(parts) - 1)]
        assert len(parts) == 2 + (kind == "int2")
        assert (unpacked(parts[0], kind)[n:] == 0).all(), "codes of missing elements"


@pytest.mark.parametrize("special", [torch.nan, torch.inf, -torch.inf, 0.0, -3.5])
@pytest.mark.parametrize("kind", KINDS)
def test_one_element(device, kind, special):
    x = torch.tensor([special])
    parts, y = there_and_back(device, x, 64, kind)
    torch.testing.assert_close(y, x, rtol=2**-20, atol=0, equal_nan=True)


@pytest.mark.parametrize(("kind", "dtype"), CASES)
def test_no_elements(device, kind, dtype):
    parts, y = there_and_back(device, torch.empty(0, dtype=dtype), 128, kind)
    assert all(part.shape == (0,) for part in parts)
    assert y.shape == (0,)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_decoding_to_another_dtype(device, kind, dtype):
    x = torch.cat(list(scenarios(64, torch.float16).values()))
    parts = quantize(x.to(device), 64, kind)
    wide = dequantize(parts, len(x), torch.float32, 64, kind)
    identical(dequantize(parts, len(x), dtype, 64, kind), wide.to(dtype))


@settings(database=None, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    x=st.lists(st.floats(width=32), min_size=1, max_size=40),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(DTYPES),
)
def test_any_numbers(device, x, kind, dtype):
    x = torch.tensor(x).to(dtype)
    parts, y = there_and_back(device, x, 16, kind)
    check_values(x, y, parts, 16, kind)
    for got, expected in zip(parts, encode(x, 16, kind), strict=True):
        identical(got, expected)


@triton.jit
def convert(x_ptr, y_ptr, size, FUNCTION: tl.constexpr, FRACTION: tl.constexpr, BLOCK: tl.constexpr):
    """Apply a conversion to a vector."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y = FUNCTION(tl.load(x_ptr + index, mask=index < size, other=0), FRACTION)
    tl.store(y_ptr + index, y, mask=index < size)


def converted(function, x, fraction, dtype, device):
    """Return what a conversion makes of a vector."""
    x = x.to(device)
    y = torch.empty(len(x), dtype=dtype, device=device)
    convert[(triton.cdiv(len(x), 1024),)](x, y, len(x), FUNCTION=function, FRACTION=fraction, BLOCK=1024)
    return y.cpu()


@pytest.mark.parametrize("kind", FLOAT8)
def test_float8_rounds_as_pytorch_does(device, kind):
    """Numbers, the middles between neighbours, and what is next to either; and numbers below the smallest."""
    every = torch.arange(256, dtype=torch.uint8).view(FLOAT8[kind]).float()
    numbers = every[every.isfinite()].sort().values
    middles = (numbers[1:] + numbers[:-1]) / 2
    x = torch.cat([numbers, middles, numbers / 1024, torch.tensor([1e-45, -1e-45, 1e-38, -1e-38])])
    up, down = (torch.nextafter(x, torch.full_like(x, limit)) for limit in (torch.inf, -torch.inf))
    x = torch.cat([x, up, down]).clamp(numbers[0], numbers[-1])
    codes = converted(to_float8, x, FRACTIONS[kind], torch.int32, device)
    identical(codes, x.to(FLOAT8[kind]).view(torch.uint8).int())


@pytest.mark.parametrize("kind", FLOAT8)
def test_every_float8_number(device, kind):
    codes = torch.arange(256, dtype=torch.int32)
    expected = codes.to(torch.uint8).view(FLOAT8[kind]).float()
    numbers = converted(from_float8, codes, FRACTIONS[kind], torch.float32, device)
    finite = expected.isfinite()
    identical(numbers[finite], expected[finite])
    assert torch.equal(numbers[finite].signbit(), expected[finite].signbit())


@triton.jit
def in_units(x, FRACTION: tl.constexpr):
    """Return codes for a scale of one."""
    codes = symmetric(x[None, :], tl.full((1,), 1.0, tl.float32), FRACTION)
    return tl.reshape(codes, x.shape)


def test_integers_round_half_to_even(device):
    x = torch.arange(-127, 127) + 0.5
    x = torch.cat([x, *(torch.nextafter(x, torch.full_like(x, limit)) for limit in (torch.inf, -torch.inf))])
    identical(converted(in_units, x, 0, torch.int32, device), x.round().int())


@pytest.mark.parametrize("kind", KINDS)
def test_one_launch_either_way(device, monkeypatch, kind):
    launches = []
    run = Launch.run
    monkeypatch.setattr(Launch, "run", lambda launch: (launches.append(launch), run(launch)))
    there_and_back(device, torch.randn(10000), 32, kind)
    assert [len(launch.grid) for launch in launches] == [1, 1]


def test_the_source_is_only_read(device):
    x = torch.cat(list(scenarios(16, torch.float32).values())).to(device)
    before = x.clone()
    for kind in KINDS:
        quantize(x, 16, kind)
    identical(x, before)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_large_tensors_without_waiting(device, kind):
    if device.type != "cuda":
        pytest.skip("the interpreter takes minutes for as many elements, and has nothing to wait for")
    x = torch.randn(2**24 + 13, device=device)
    x[::100_003] = torch.inf
    torch.cuda.set_sync_debug_mode("error")
    try:
        parts = quantize(x, 128, kind)
        y = dequantize(parts, len(x), x.dtype, 128, kind)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    check_values(x, y, parts, 128, kind)
    for got, expected in zip(parts, encode(x, 128, kind), strict=True):
        identical(got, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_beyond_32_bit_offsets(device, kind):
    if device.type != "cuda" or torch.cuda.mem_get_info()[0] < 2**34:
        pytest.skip("needs 16 GiB of free GPU memory")
    n, tail = 2**31 + 4096 + 5, 4096 + 5
    x = torch.zeros(n, dtype=torch.float16, device=device)
    x[-tail:] = torch.randn(tail, device=device)
    y = dequantize(quantize(x, 64, kind), n, x.dtype, 64, kind)
    expected = dequantize(quantize(x[-tail:].contiguous(), 64, kind), tail, x.dtype, 64, kind)
    identical(y[-tail:], expected)
    assert not y[:-tail].any()


def meta(*shape, dtype=torch.float32):
    """Return a tensor without memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


REFUSED = {
    "kind must be one of int8": lambda: quantize(meta(4), 64, "int3"),
    "block must be a power of two from 16": lambda: quantize(meta(4), 8, "int8"),
    "from 16 to 4096, got 48": lambda: quantize(meta(4), 48, "int8"),
    "4096, got 8192": lambda: dequantize((), 4, torch.float32, 8192, "int8"),
    "use the ATen backend": lambda: quantize(meta(4, dtype=torch.float64), 64, "int8"),
    "one-dimensional and contiguous, got shape .2, 2.": lambda: quantize(meta(2, 2), 64, "int8"),
    "with strides .2,.": lambda: quantize(meta(4)[::2], 64, "int8"),
    "got torch.float64; use": lambda: dequantize((), 4, torch.float64, 64, "int8"),
    "int2 has 3 parts, got 2": lambda: dequantize((meta(1), meta(1)), 4, torch.float32, 64, "int2"),
    r"parts.0. of 4 elements in blocks of 64 must have shape \(4,\)": lambda: dequantize(
        (meta(3, dtype=torch.int8), meta(1)), 4, torch.float32, 64, "int8"
    ),
    "parts.0. of int8 must be torch.int8, got torch.uint8": lambda: dequantize(
        (meta(4, dtype=torch.uint8), meta(1)), 4, torch.float32, 64, "int8"
    ),
    "parts.1. must be contiguous": lambda: dequantize(
        (meta(128, dtype=torch.int8), meta(4)[::2]), 128, torch.float32, 64, "int8"
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_is_refused(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()


def parts_of(n, block, kind):
    """Return parts without memory."""
    bits = {"int4": 4, "int2": 2}.get(kind, 8)
    codes = meta(math.ceil(n * bits / 8), dtype=torch.int8 if kind == "int8" else torch.uint8)
    return codes, *(meta(math.ceil(n / block)) for _ in range(1 + (kind == "int2")))


@pytest.mark.skipif(interpreting(), reason="kernels are interpreted in this process; unset TRITON_INTERPRET")
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_machine_code(monkeypatch, kind, architecture):
    """Nothing spilled; whole tiles in wide accesses, 16 bytes a thread and instruction; multiplications rounded."""
    hip = architecture.capability[0] == "hip"
    monkeypatch.setattr(torch.version, "hip", "7" if hip else None)
    # the dtype and the block differ from case to case, and every other one needs 64-bit sizes
    case = KINDS.index(kind) + ARCHITECTURES.index(architecture)
    n, block = (2**33, 2**24)[case % 2] + 5, BLOCKS[case % len(BLOCKS)]
    x, parts = meta(n, dtype=DTYPES[case % 3]), parts_of(n, block, kind)
    encoding, decoding = plan_quantize(x, parts, block, kind), plan_dequantize(parts, x, block, kind)
    for launch, cuda, amd in ((encoding, "ld", "load"), (decoding, "st", "store")):
        machine = compile_for(launch, architecture)
        assert machine.spills == 0
        assert machine.shared <= architecture.shared_limit
        assert re.search(rf"buffer_{amd}_dwordx4" if hip else rf"{cuda}\.global\S*\.v4", machine.text)
        # AMD divides by them, and fuses nothing unless asked
        assert hip or "fma.rn.f32" not in machine.text
