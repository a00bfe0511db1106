"""What single codecs make of tensors: exact sizes, exact values, and what they decline."""

import math

import pytest
import torch
from elements import same_bits

from torchadx.memory import codecs
from torchadx.memory.codecs import Declined, Encoded

BLOCKWISE = {
    "fp8": (8, 128),
    "fp8:e5m2": (8, 128),
    "int8": (8, 128),
    "int4": (4, 64),
    "int2": (2, 64),
    "int8:32": (8, 32),
}


def through(name, x):
    """Encode and decode."""
    codec = codecs.resolve(name)
    return codec.decode(codec.encode(x))


def reason(name, x):
    """Return why a codec declines a tensor."""
    declined = codecs.resolve(name).encode(x)
    assert isinstance(declined, Declined)
    return declined.reason


@pytest.mark.parametrize("n", [0, 1, 3, 63, 64, 65, 1000, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", BLOCKWISE)
def test_sizes_of_blockwise_codecs(name, dtype, n):
    code_bits, block = BLOCKWISE[name]
    parts = codecs.resolve(name).encode(torch.randn(n).to(dtype)).parts
    scales = math.ceil(n / block)
    assert [len(part) for part in parts] == [math.ceil(n * code_bits / 8)] + [scales] * (1 + (name == "int2"))
    assert parts[0].element_size() == 1
    assert all(part.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) for part in parts[1:])


@pytest.mark.parametrize(
    ("name", "share"),
    [("bf16", 0.5), ("fp16", 0.5), ("fp8", 0.258), ("int8", 0.258), ("int4", 0.141), ("int2", 0.094), ("mask", 1 / 32)],
)
def test_shares_of_float32(name, share):
    x = (torch.rand(10**5) < 0.5).float()
    assert codecs.resolve(name).encode(x).nbytes / x.nbytes == pytest.approx(share, abs=5e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [*BLOCKWISE, "bf16", "fp16"])
def test_bounds_are_reached(name, dtype):
    x = torch.randn(10**5).to(dtype)
    error = (through(name, x).double() - x.double()).abs()
    assert (error / codecs.resolve(name).bound(x)).max() > 0.85


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
@pytest.mark.parametrize("source", [torch.float32, torch.float64])
def test_casts_round_as_pytorch_does(name, dtype, source):
    x = torch.cat([torch.randn(1000), torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 1e-40])]).to(source)
    assert same_bits(through(name, x), x.to(dtype).to(source))
    assert not codecs.resolve(name).accepts(dtype)


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
@pytest.mark.parametrize("source", [torch.float32, torch.float64])
def test_casts_decline_what_would_become_infinite(name, dtype, source):
    limit = torch.finfo(dtype).max
    fits = torch.tensor([limit, -limit, 1.0, torch.inf, torch.nan, -torch.inf], dtype=source)
    torch.testing.assert_close(through(name, fits), fits, rtol=0, atol=0, equal_nan=True)
    for beyond in (limit * (1 + torch.finfo(dtype).eps / 2), torch.finfo(source).max):
        for x in (torch.tensor([1.0, beyond], dtype=source), torch.tensor([torch.nan, -beyond], dtype=source)):
            assert "finite numbers beyond" in reason(name, x)


@pytest.mark.parametrize(("name", "levels"), [("int8", 127), ("int4", 7)])
def test_codes_are_multiples_of_a_fraction_of_the_largest(name, levels):
    x = torch.cat([torch.arange(-levels, levels + 1) * 0.75, torch.zeros(300)])
    torch.testing.assert_close(through(name, x), x, rtol=2**-20, atol=0)


def test_codes_of_int2_are_four_levels():
    x = torch.tensor([3.0, 5.0, 7.0, 9.0] * 30)
    torch.testing.assert_close(through("int2", x), x, rtol=2**-20, atol=0)
    # the middle of what is finite, where three codes mean what is not
    x[7] = torch.inf
    torch.testing.assert_close(through("int2", x)[:7], torch.full((7,), 6.0), rtol=0, atol=0)
    torch.testing.assert_close(through("int2", x)[64:], x[64:], rtol=2**-20, atol=0)


@pytest.mark.parametrize(
    ("name", "dtype", "largest"), [("fp8", torch.float8_e4m3fn, 448), ("fp8:e5m2", torch.float8_e5m2, 57344)]
)
def test_float8_numbers_come_back(name, dtype, largest):
    every = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    x = every[every.isfinite()]
    for factor in (1.0, 2.0**100, 2.0**-90):
        # the largest in every block makes the factor its scale, but for the rounding down
        blocks = (
            torch.cat([torch.full((len(x), 1), largest), x[:, None], torch.zeros(len(x), 126)], 1).view(-1) * factor
        )
        torch.testing.assert_close(through(name, blocks), blocks, rtol=2**-20, atol=0)


@pytest.mark.parametrize("name", BLOCKWISE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_extreme_blocks_stay_finite_and_small_ones_survive(name, dtype):
    info = torch.finfo(dtype)
    for size in (info.max, info.tiny * 1e6):
        x = torch.tensor([1.0, -1.0, 0.5, 0.25] * 64, dtype=dtype) * size
        y = through(name, x)
        assert y.isfinite().all()
        assert (y[:2].double() - x[:2].double()).abs().max() <= 2**-7 * size


@pytest.mark.parametrize("name", BLOCKWISE)
def test_one_block_does_not_disturb_another(name):
    block = BLOCKWISE[name][1]
    x = torch.randn(3 * block)
    clean = through(name, x)
    x[block + 1] = torch.nan
    x[block + 2] = 1e30
    y = through(name, x)
    assert torch.equal(y[:block], clean[:block])
    assert torch.equal(y[2 * block :], clean[2 * block :])


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.float64, torch.float32, torch.float16, torch.bfloat16]
)
@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 1000])
def test_masks_take_a_bit_each(dtype, n):
    import numpy as np

    x = (torch.rand(n) < 0.5).to(dtype)
    (packed,) = codecs.resolve("mask").encode(x).parts
    assert packed.tolist() == np.packbits(x.bool().numpy(), bitorder="little").tolist()
    assert same_bits(through("mask", x), x)


def test_masks_in_memory_that_nobody_wrote():
    x = torch.tensor([0, 255, 1, 0, 2, 0, 0, 128], dtype=torch.uint8).view(torch.bool)
    assert through("mask", x).tolist() == [False, True, True, False, True, False, False, True]


@pytest.mark.parametrize("stranger", [-0.0, 2.0, 0.5, -1.0, torch.nan, torch.inf, 1e-40])
@pytest.mark.parametrize("at", [0, 500, 999])
def test_masks_decline_other_numbers(stranger, at):
    x = (torch.rand(1000) < 0.5).float()
    x[at] = stranger
    assert "other than 0 and 1" in reason("mask", x)
    assert "other than 0 and 1" in reason("mask", torch.tensor([1, 255, 0], dtype=torch.uint8))


@pytest.mark.parametrize(
    ("dtype", "payload"), [(torch.float32, 0x7FC12345), (torch.float16, 0x7E55), (torch.float64, 0x7FF8000000000123)]
)
def test_sparse_keeps_bits(dtype, payload):
    words = torch.zeros(100, dtype={2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize])
    words[17] = payload
    x = words.view(dtype)
    x[40] = -0.0
    x[41] = torch.inf
    encoded = codecs.resolve("sparse").encode(x)
    assert encoded.nbytes == 13 + 3 * dtype.itemsize
    assert same_bits(codecs.resolve("sparse").decode(encoded), x)


def test_sparse_declines_exactly_what_would_not_shrink():
    x = torch.zeros(64)
    x[:61] = 1
    assert codecs.resolve("sparse").encode(x).nbytes == 8 + 61 * 4
    x[61] = 1
    assert "2 of 64 elements are zero" in reason("sparse", x)
    assert "would not shrink" in reason("sparse", torch.empty(0))


@pytest.mark.parametrize("name", ["lossless", "lossless:lz4"])
def test_lossless_declines_what_does_not_shrink(name):
    assert "would not shrink" in reason(name, torch.randint(256, (4096,), dtype=torch.uint8))
    smooth = torch.linspace(0, 1, 10**5)
    encoded = codecs.resolve(name).encode(smooth)
    assert isinstance(encoded, Encoded)
    assert [(part.dtype, part.device.type) for part in encoded.parts] == [(torch.uint8, "cpu")]
    assert encoded.nbytes < 0.8 * smooth.nbytes
