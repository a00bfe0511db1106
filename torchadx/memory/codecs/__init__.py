"""Codecs by name. The next one is a file here and a row below."""

import functools
from collections.abc import Callable

from torchadx.memory.codecs.cast import BFloat16, Float16
from torchadx.memory.codecs.codec import Codec, Declined, Encoded
from torchadx.memory.codecs.copy import Copy
from torchadx.memory.codecs.fp8 import Float8
from torchadx.memory.codecs.int2 import Int2
from torchadx.memory.codecs.int4 import Int4
from torchadx.memory.codecs.int8 import Int8
from torchadx.memory.codecs.lossless import Lossless
from torchadx.memory.codecs.mask import Mask
from torchadx.memory.codecs.sparse import Sparse

__all__ = ["Codec", "Declined", "Encoded", "known", "register_codec", "resolve"]

# from the option that may follow the name after a colon, else None, to a codec
Factory = Callable[[str | None], Codec]

_TABLE: dict[str, Factory] = {
    "bf16": BFloat16.of,
    "fp16": Float16.of,
    "fp8": Float8.of,
    "int8": Int8.of,
    "int4": Int4.of,
    "int2": Int2.of,
    "mask": Mask.of,
    "sparse": Sparse.of,
    "lossless": Lossless.of,
    "copy": Copy.of,
}

_made: dict[str, Codec] = {}


def known() -> list[str]:
    """Return the names of all codecs, without options."""
    return list(_TABLE)


@functools.cache
def resolve(text: str) -> Codec:
    """Find a codec; the same object for all ways to write its name.

    Args:
        text: ``"name"`` or ``"name:option"``, e.g. ``"int8:64"`` for blocks of 64, ``"fp8:e5m2"``, ``"lossless:lz4"``.

    Raises:
        ValueError: There is no such codec, or it has no such option.
        ModuleNotFoundError: It needs an extra that is not installed.
    """
    name, colon, option = text.partition(":")
    if name not in _TABLE:
        raise ValueError(f"codec {text!r}: expected one of {', '.join(_TABLE)}; add others by register_codec()")
    codec = _TABLE[name](option if colon else None)
    return _made.setdefault(codec.name, codec)


def register_codec(name: str, factory: Factory) -> None:
    """Make a codec available to policy strings.

    Args:
        name: As policy strings write it; no ``":"`` nor ``"@"``.
        factory: Gets the text after the colon of ``"name:option"``, or ``None``, and returns the codec, whose ``name``
            is the text that names it.

    Raises:
        ValueError: The name is taken, or no name for a policy string.
    """
    if not name or name == "keep" or set(name) & set(":@"):
        raise ValueError(f"codec name {name!r}: expected a word without ':' and '@' other than 'keep'")
    if name in _TABLE:
        raise ValueError(f"codec {name!r} is registered already; choose another name")
    _TABLE[name] = factory
