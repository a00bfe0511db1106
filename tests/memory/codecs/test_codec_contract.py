"""What every codec in the table promises, for every type it takes: tests that a new codec gets by being registered."""

import concurrent.futures

import pytest
import torch
from elements import ACCEPTED, EVERY, FLOATS, OTHERS, any_bits, bits, check, normal, same_bits, stretches, tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torchadx.memory import codecs
from torchadx.memory.codecs import Declined, Encoded, _chunks, lossless

CASES = [pytest.param(name, dtype, id=f"{name}-{str(dtype)[6:]}") for name, dtype in ACCEPTED]
pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
examples = settings(
    database=None, deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize(("name", "dtype"), CASES)
@examples
@given(data=st.data())
def test_any_tensor(name, dtype, data):
    check(codecs.resolve(name), data.draw(tensors(dtype)))


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_every_kind_of_elements(name, dtype):
    """Each kind alone, all together, and with single elements in their blocks that are not finite."""
    codec = codecs.resolve(name)
    kinds = stretches(dtype)
    for make in kinds.values():
        check(codec, make(300, dtype))
    check(codec, torch.cat([make(130, dtype) for make in kinds.values()]))
    for single in (torch.inf, torch.nan, -torch.inf) if dtype in FLOATS else ():
        drop = torch.tensor([single], dtype=dtype)
        check(codec, torch.cat([part for make in kinds.values() for part in (make(130, dtype), drop)]))


def taken(codec, dtype):
    """Return a tensor of several chunks and a rest that the codec does not decline."""
    n = 3 * 8192 + 1001
    candidates = (normal(n, dtype), normal(n, dtype).where(torch.rand(n) < 0.3, torch.zeros((), dtype=dtype)))
    for x in (*candidates, (torch.rand(n) < 0.5).to(dtype)):
        if isinstance(codec.encode(x), Encoded):
            return x
    raise AssertionError(f"{codec} declines all of these")


@pytest.mark.parametrize("name", EVERY)
def test_chunks_do_not_show(monkeypatch, name):
    codec = codecs.resolve(name)
    dtypes = [dtype for accepting, dtype in ACCEPTED if accepting == name]
    dtype = dtypes[EVERY.index(name) % len(dtypes)]
    x = taken(codec, dtype)
    if dtype in FLOATS and name != "mask":
        x[8000:8003] = torch.tensor([torch.nan, torch.inf, -torch.inf], dtype=dtype)
    assert check(codec, x)
    whole = codec.encode(x)
    monkeypatch.setattr(_chunks, "_CACHED_BYTES", 4096 * dtype.itemsize)
    assert check(codec, x)
    if not codec.on_host:
        in_chunks = codec.encode(x)
        assert all(same_bits(a, b) for a, b in zip(in_chunks.parts, whole.parts, strict=True))


@pytest.mark.parametrize("name", ["lossless", "lossless:lz4"])
def test_more_bytes_than_blosc2_takes_at_once(monkeypatch, name):
    monkeypatch.setattr(lossless, "_CHUNK_BYTES", 4096)
    x = torch.arange(5001, dtype=torch.int32)
    assert check(codecs.resolve(name), x)
    encoded = codecs.resolve(name).encode(x)
    assert len(encoded.extra) == 5
    assert sum(encoded.extra) == encoded.nbytes


@pytest.mark.parametrize("name", EVERY)
def test_several_threads(name):
    codec = codecs.resolve(name)
    dtype = next(dtype for dtype in (torch.float32, *OTHERS) if codec.accepts(dtype))
    inputs = [taken(codec, dtype).roll(i)[: 9000 + 100 * i].clone() for i in range(8)]
    expected = [codec.decode(codec.encode(x)) for x in inputs]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda x: codec.decode(codec.encode(x)), inputs * 3))
    assert all(same_bits(a, b) for a, b in zip(got, expected * 3, strict=True))


@pytest.mark.parametrize("name", EVERY)
def test_lossy_codecs_leave_all_but_real_numbers_alone(name):
    codec = codecs.resolve(name)
    if not codec.lossless:
        assert not any(codec.accepts(dtype) for dtype in OTHERS)


@pytest.mark.parametrize("name", EVERY)
def test_large_tensors_shrink(name):
    codec = codecs.resolve(name)
    dtype = next(dtype for dtype in (torch.float32, *OTHERS) if codec.accepts(dtype))
    encoded = codec.encode(taken(codec, dtype))
    assert encoded.nbytes < encoded.numel * dtype.itemsize or name == "copy"


def test_the_checks_see_faults():
    """A codec that forgets NaN, one that writes to its input, and one that lends its memory."""
    codec = codecs.resolve("int8")

    class Forgetful(type(codec)):
        def decode(self, encoded):
            return super().decode(encoded).nan_to_num(0.0)

    class Careless(type(codec)):
        def encode(self, flat):
            encoded = super().encode(flat)
            flat.mul_(2)
            return encoded

    class Lender(type(codec)):
        def encode(self, flat):
            return Encoded((flat, torch.ones(1)), flat.numel(), flat.dtype)

    for faulty in (Forgetful(), Careless(), Lender()):
        with pytest.raises(AssertionError):
            check(faulty, torch.tensor([1.0, torch.nan]))


def test_helpers_draw_what_they_say():
    assert bits(any_bits(1000, torch.float32)).unique().numel() > 200
    assert isinstance(codecs.resolve("sparse").encode(torch.ones(100)), Declined)
