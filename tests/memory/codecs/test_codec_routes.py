"""Where blockwise codecs run: ATen and Triton make the same parts, bit for bit, and read each other's."""

import sys

import pytest
import torch
from elements import FLOATS, check, check_values, normal, same_bits, stretches

from torchadx import dispatch
from torchadx.memory import codecs

NAMES = ("fp8", "fp8:e5m2", "int8", "int4", "int2", "int8:16")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=[pytest.mark.gpu, gpu])])
def device(request):
    if request.param == "interpreter" and not dispatch.interpreting():
        pytest.skip("kernels are not interpreted in this process; test_in_the_interpreter starts one where they are")
    if request.param == "cuda" and dispatch.interpreting():
        pytest.skip("kernels are interpreted in this process; unset TRITON_INTERPRET to run them on a GPU")
    return torch.device("cpu" if request.param == "interpreter" else "cuda")


def everything(dtype):
    return torch.cat([make(130, dtype) for make in stretches(dtype).values()])


@pytest.mark.parametrize("name", NAMES)
def test_both_routes_agree(monkeypatch, device, name):
    # interpreting is slow: one of the dtypes for each
    codec, x = codecs.resolve(name), everything(FLOATS[1 + NAMES.index(name) % 3]).to(device)
    encoded, decoded = {}, {}
    for route in ("aten", "triton"):
        monkeypatch.setenv("TORCHADX_BACKEND", route)
        encoded[route] = codec.encode(x)
    for route in ("aten", "triton"):
        monkeypatch.setenv("TORCHADX_BACKEND", route)
        decoded[route] = codec.decode(encoded["triton" if route == "aten" else "aten"])
    for a, t in zip(encoded["aten"].parts, encoded["triton"].parts, strict=True):
        assert same_bits(a.cpu(), t.cpu())
    torch.testing.assert_close(decoded["aten"], decoded["triton"], rtol=0, atol=0, equal_nan=True)
    check_values(codec, x.cpu(), decoded["triton"].cpu())


@pytest.mark.parametrize("name", NAMES)
def test_float64_takes_aten(monkeypatch, device, name):
    monkeypatch.setenv("TORCHADX_BACKEND", "auto")
    assert check(codecs.resolve(name), everything(torch.float64).to(device))


@pytest.mark.skipif(dispatch.interpreting(), reason="this is the process that it starts")
def test_in_the_interpreter(passed_when_interpreted):
    pytest.importorskip("triton", reason="without Triton there is one route only")
    assert passed_when_interpreted(__file__) == 3 * len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_kernels_are_asked_where_triton_serves(monkeypatch, name):
    """With other kernels in their place: who calls them, and with what."""
    codec, x, calls = codecs.resolve(name), normal(1000, torch.float32), []
    parts = codec.encode(x).parts
    expected = codec.decode(codec.encode(x))

    class Kernels:
        @staticmethod
        def quantize(*arguments):
            calls.append(arguments)
            return parts

        @staticmethod
        def dequantize(*arguments):
            calls.append(arguments)
            return expected

    monkeypatch.setitem(sys.modules, "torchadx.kernels.quantize", Kernels)
    monkeypatch.setattr(dispatch, "select", lambda op, tensor: dispatch.Choice("triton", "for this test"))
    encoded = codec.encode(x)
    assert codec.decode(encoded) is expected
    kind = {"fp8": "e4m3", "fp8:e5m2": "e5m2"}.get(name, name.partition(":")[0])
    block = {"int4": 64, "int2": 64, "int8:16": 16}.get(name, 128)
    assert calls == [(x, block, kind), (parts, 1000, torch.float32, block, kind)]
