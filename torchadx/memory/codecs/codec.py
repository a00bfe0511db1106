"""The contract of a codec: from the elements of a tensor to fewer bytes, and back."""

import abc
from collections.abc import Hashable
from typing import NamedTuple

import torch
from torch import Tensor


class Encoded(NamedTuple):
    """What is left of a tensor.

    Attributes:
        parts: Contiguous tensors, of any dtype, that share no memory with the source: what stores move.
        numel: How many elements were encoded.
        dtype: Their type.
        extra: What else decoding needs; small.
    """

    parts: tuple[Tensor, ...]
    numel: int
    dtype: torch.dtype
    extra: Hashable = None

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts)


class Declined(NamedTuple):
    """A codec's refusal of one tensor, and why: the tensor is kept as it is."""

    reason: str


class Codec(abc.ABC):
    """Encodes flat tensors. Instances are immutable, and safe to use from several threads.

    Attributes:
        name: As policy strings write it, option included: ``"int8"``, ``"int8:64"``.
        lossless: Whether decoding gives the same bits back (NaN payloads and the sign of zero too).
        on_host: Whether it works in host memory only; tensors elsewhere are copied there first.
    """

    name: str
    lossless: bool
    on_host: bool = False

    @abc.abstractmethod
    def accepts(self, dtype: torch.dtype) -> bool:
        """Whether it encodes elements of this type at all."""

    @abc.abstractmethod
    def encode(self, flat: Tensor) -> Encoded | Declined:
        """Encode a contiguous tensor ``(n,)`` of an accepted dtype, which is only read. Runs without grad mode."""

    @abc.abstractmethod
    def decode(self, encoded: Encoded) -> Tensor:
        """Give back ``(encoded.numel,)`` in ``encoded.dtype``, in new memory where the parts are. Repeatable."""

    @abc.abstractmethod
    def bound(self, flat: Tensor) -> Tensor:
        """Bound ``|decode(encode(flat)) - flat|`` for each finite element, ``(n,)`` in float64; zeros if lossless.

        NaN decodes to NaN and infinities to themselves, always.
        """

    def __repr__(self) -> str:
        return f"<codec {self.name}>"

    @classmethod
    def of(cls, option: str | None) -> "Codec":
        """Make the codec; this one has no option.

        Raises:
            ValueError: An option was given.
        """
        if option is not None:
            raise ValueError(f"codec {cls.name!r} has no option, got {option!r}")
        return cls()


class LosslessCodec(Codec):
    """A codec that gives the same bits back."""

    lossless = True

    def bound(self, flat: Tensor) -> Tensor:
        """No error."""
        return torch.zeros(flat.shape, dtype=torch.float64, device=flat.device)
