"""Codecs by name: options, errors that list what there is, and registering another."""

import sys

import pytest
import torch

from torchadx.memory import codecs, register_codec
from torchadx.memory.codecs import Codec, Encoded
from torchadx.memory.policy import Action

CANONICAL = {
    "int8": "int8", "int8:128": "int8", "int8:64": "int8:64", "int4:32": "int4:32", "int2:64": "int2",
    "fp8": "fp8", "fp8:e4m3": "fp8", "fp8:e5m2": "fp8:e5m2", "bf16": "bf16", "fp16": "fp16", "mask": "mask",
    "sparse": "sparse", "lossless": "lossless", "lossless:zstd": "lossless", "lossless:lz4": "lossless:lz4",
}  # fmt: skip


@pytest.fixture
def table(monkeypatch):
    """Undo what a test registers."""
    monkeypatch.setattr(codecs, "_TABLE", dict(codecs._TABLE))
    monkeypatch.setattr(codecs, "_made", dict(codecs._made))
    codecs.resolve.cache_clear()
    yield
    codecs.resolve.cache_clear()


@pytest.mark.parametrize("text", CANONICAL)
def test_names(text):
    codec = codecs.resolve(text)
    assert codec.name == CANONICAL[text]
    assert codec is codecs.resolve(CANONICAL[text])
    assert codec.name in repr(codec)
    assert Action.parse(f"{text}@host").codec is codec


def test_known_names_resolve():
    assert {name.partition(":")[0] for name in CANONICAL} <= set(codecs.known())
    for name in codecs.known():
        assert codecs.resolve(name).name == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int3", "codec 'int3': expected one of bf16, fp16, .*lossless.*register_codec"),
        ("", "expected one of bf16"),
        ("INT8", "expected one of bf16"),
        *((f"int8:{block}", f"'int8:{block}': expected a power of two from 16 to 4096") for block in (0, 8, 48, 8192)),
        *((f"int4:{block}", f"'int4:{block}': expected a number") for block in ("", "x", "-64", "6.4e1")),
        ("fp8:e3m4", "'fp8:e3m4': expected one of 'fp8:e4m3', 'fp8:e5m2'"),
        ("lossless:gzip", "'lossless:gzip': expected one of 'lossless:zstd', 'lossless:lz4'"),
        *((f"{name}:2", f"{name}.*no option") for name in ("bf16", "fp16", "mask", "sparse")),
    ],
)
def test_errors_say_what_there_is(text, message):
    with pytest.raises(ValueError, match=message):
        codecs.resolve(text)


def test_without_blosc2(monkeypatch, table):
    monkeypatch.setitem(sys.modules, "blosc2", None)
    monkeypatch.setattr(codecs, "_made", {})
    with pytest.raises(ModuleNotFoundError, match=r'pip install "torchadx\[lossless\]"'):
        codecs.resolve("lossless")


class Negated(Codec):
    """Keeps the negative of everything."""

    lossless = True

    def __init__(self, option):
        self.name = "negated" if option is None else f"negated:{option}"

    def accepts(self, dtype):
        return dtype == torch.float32

    def encode(self, flat):
        return Encoded((-flat,), flat.numel(), flat.dtype)

    def decode(self, encoded):
        return -encoded.parts[0]

    def bound(self, flat):
        return torch.zeros(flat.shape, dtype=torch.float64)


def test_another_codec(table):
    with pytest.raises(ValueError, match="negated"):
        codecs.resolve("negated")
    register_codec("negated", Negated)
    assert codecs.known()[-1] == "negated"
    assert codecs.resolve("negated:x").name == "negated:x"
    assert str(Action.parse("negated@disk")) == "negated@disk"


@pytest.mark.parametrize("name", ["", "keep", "a:b", "a@b"])
def test_names_that_policies_could_not_write(table, name):
    with pytest.raises(ValueError, match="expected a word"):
        register_codec(name, Negated)


def test_a_name_is_taken_once(table):
    with pytest.raises(ValueError, match="'int8' is registered already"):
        register_codec("int8", Negated)
