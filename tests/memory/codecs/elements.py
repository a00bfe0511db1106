"""Elements that codecs find hard, as hypothesis draws them, and what every codec owes to any of them."""

import math

import torch
from hypothesis import strategies as st

from torchadx.memory import codecs
from torchadx.memory.codecs import Codec, Declined

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
OTHERS = (
    torch.float8_e4m3fn, torch.float8_e5m2, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.complex32, torch.complex64, torch.complex128,
)  # fmt: skip
#: What is made when no option is given, and the options that change how elements are treated.
EVERY = [*codecs.known(), "fp8:e5m2", "int8:16", "int4:16", "int2:4096", "lossless:lz4"]
ACCEPTED = [(name, dtype) for name in EVERY for dtype in (*FLOATS, *OTHERS) if codecs.resolve(name).accepts(dtype)]
#: Around the block sizes above, and around bytes of packed codes.
LENGTHS = (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 63, 64, 65, 127, 128, 129, 200)


def any_bits(n: int, dtype: torch.dtype) -> torch.Tensor:
    """Every bit pattern of the type: NaN with payloads, both zeros, subnormals, everything."""
    if dtype == torch.bool:
        return torch.rand(n) < 0.5
    return torch.randint(256, (n * dtype.itemsize,), dtype=torch.uint8).view(dtype)


def normal(n: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
    """Normally distributed elements, as far as the type goes."""
    if dtype.is_complex:
        return torch.complex(torch.randn(n, dtype=torch.float64), torch.randn(n, dtype=torch.float64)).to(dtype)
    x = torch.randn(n, dtype=torch.float64) * scale
    if not dtype.is_floating_point:
        return x.round().to(dtype) if dtype.is_signed else x.abs().round().to(dtype)
    largest = torch.finfo(dtype).max
    return x.clamp(-largest, largest).to(dtype)


def _filled(number):
    return lambda n, dtype: torch.full((n,), number, dtype=torch.float64).to(dtype)


def _of_info(field, factor=1.0):
    def make(n, dtype):
        return (torch.randn(n).sign() * getattr(torch.finfo(dtype), field) * factor).to(dtype)

    return make


def _subnormal(n, dtype):
    return (torch.rand(n, dtype=torch.float64) * 2 - 1).mul(torch.finfo(dtype).tiny).to(dtype)


def _close_to_tiny(n, dtype):
    """Scales of such blocks are about as small as scales can be."""
    return normal(n, dtype, 200 * torch.finfo(dtype).tiny)


def _wide(n, dtype):
    info = torch.finfo(dtype)
    low, high = math.log2(info.tiny), math.log2(info.max)
    exponents = low + (high - low) * torch.rand(n, dtype=torch.float64)
    return (torch.randn(n).sign() * 2**exponents).clamp(-info.max, info.max).to(dtype)


ANY_TYPE = {
    "any bits": any_bits,
    "normal": normal,
    "zeros": lambda n, dtype: torch.zeros(n, dtype=dtype),
    "ones": lambda n, dtype: torch.ones(n).to(dtype),
    "zeros and ones": lambda n, dtype: (torch.rand(n) < 0.5).to(dtype),
    "few": lambda n, dtype: any_bits(n, dtype).where(torch.rand(n) < 0.2, torch.zeros((), dtype=dtype)),
}
FLOATS_ONLY = {
    "negative zeros": _filled(-0.0),
    "constant": _filled(-1.1),
    "offset": lambda n, dtype: (torch.rand(n) + 1000).to(dtype),
    "subnormal": _subnormal,
    "least": _of_info("smallest_normal"),
    "close to tiny": _close_to_tiny,
    "largest": _of_info("max"),
    "half of largest": _of_info("max", 0.5),
    "small": lambda n, dtype: normal(n, dtype, 1e-5),
    "large": lambda n, dtype: normal(n, dtype, 1e4),
    "wide": _wide,
    "infinity": _filled(torch.inf),
    "minus infinity": _filled(-torch.inf),
    "NaN": _filled(torch.nan),
}


def stretches(dtype: torch.dtype) -> dict:
    """Return what stretches of a tensor may be like."""
    return ANY_TYPE | FLOATS_ONLY if dtype in FLOATS else ANY_TYPE


def tensors(dtype: torch.dtype) -> st.SearchStrategy[torch.Tensor]:
    """Draw flat tensors, stretch by stretch, that begin anywhere in their storage; or numbers one by one."""
    kinds = stretches(dtype)
    piece = st.tuples(st.sampled_from(sorted(kinds)), st.sampled_from(LENGTHS))
    pieces = st.tuples(st.lists(piece, max_size=6), st.integers(0, 2**31), st.integers(0, 3))
    drawn = pieces.map(lambda drawn: _made(kinds, dtype, *drawn))
    if dtype not in FLOATS:
        return drawn
    numbers = st.lists(st.floats(width=16 if dtype == torch.float16 else 32), max_size=40)
    return drawn | numbers.map(lambda values: torch.tensor(values, dtype=torch.float64).to(dtype))


def _made(kinds, dtype, pieces, seed, offset):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = [kinds[kind](n, dtype) for kind, n in pieces]
    return torch.cat([torch.zeros(offset, dtype=dtype), *parts])[offset:]


def bits(x: torch.Tensor) -> torch.Tensor:
    """Return the bytes of a tensor."""
    return x.contiguous().view(torch.uint8)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are equal bit for bit."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


def _memory(tensor):
    return {tensor.untyped_storage().data_ptr()} - {0}


def check(codec: Codec, flat: torch.Tensor) -> bool:
    """Require of a codec all that its contract promises, for one tensor; return whether it took it."""
    before = flat.clone()
    encoded = codec.encode(flat)
    assert same_bits(flat, before), "the input was changed"
    if isinstance(encoded, Declined):
        assert encoded.reason
        return False
    assert (encoded.numel, encoded.dtype) == (flat.numel(), flat.dtype)
    assert all(part.is_contiguous() and not _memory(part) & _memory(flat) for part in encoded.parts)
    assert encoded.nbytes == sum(part.numel() * part.element_size() for part in encoded.parts)
    hash(encoded.extra)
    decoded = codec.decode(encoded)
    assert (decoded.dtype, decoded.shape) == (flat.dtype, flat.shape)
    assert decoded.is_contiguous()
    kept = decoded.clone()
    bits(decoded).fill_(0x55)
    assert same_bits(codec.decode(encoded), kept), "decoding again gave something else"
    check_values(codec, flat, kept)
    return True


def check_values(codec: Codec, flat: torch.Tensor, decoded: torch.Tensor) -> None:
    """Require elements to come back within their bound, and what is not finite as it was."""
    bound = codec.bound(flat)
    assert (bound.dtype, bound.shape) == (torch.float64, flat.shape)
    if codec.lossless:
        assert same_bits(decoded, flat)
        assert not bound.any()
        return
    finite = flat.isfinite()
    torch.testing.assert_close(decoded[~finite], flat[~finite], rtol=0, atol=0, equal_nan=True)
    assert decoded[finite].isfinite().all()
    error = (decoded.double() - flat.double()).abs()[finite]
    assert (error <= bound[finite]).all(), f"worst by {(error / bound[finite]).max()}"
