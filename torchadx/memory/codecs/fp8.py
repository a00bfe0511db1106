"""Eight-bit floating point, and a scale for each block."""

from typing import ClassVar

import torch
from torch import Tensor

from torchadx.memory.codecs._symmetric import Symmetric


class Float8(Symmetric):
    """Rounds to float8 numbers, so that the error is relative to the element: up to 1/16 (e4m3) or 1/8 (e5m2) of it.

    Takes 0.258 of float32's bytes. Both formats are treated alike, though e5m2 has infinities of its own.
    """

    nan_number = torch.nan
    _default_block = 128
    _FORMATS: ClassVar = {
        # dtype, largest numbers of plain and of marked blocks, codes of infinities and NaN
        "e4m3": (torch.float8_e4m3fn, 448, 240, (0x7E, 0xFE, 0x7F)),
        "e5m2": (torch.float8_e5m2, 57344, 28672, (0x7B, 0xFB, 0x7F)),
    }

    def __init__(self, form: str = "e4m3") -> None:
        """Make the codec for ``"e4m3"`` or ``"e5m2"``."""
        self._kind = form
        super().__init__()
        self.name = "fp8" if form == "e4m3" else f"fp8:{form}"
        self._dtype, self.largest, self.marked_largest, self.special_codes = self._FORMATS[form]

    @classmethod
    def of(cls, option: str | None) -> "Float8":
        """Make ``"fp8"``, which is ``"fp8:e4m3"``, or ``"fp8:e5m2"``.

        Raises:
            ValueError: The option is another.
        """
        form = "e4m3" if option is None else option
        if form not in cls._FORMATS:
            names = ", ".join(f"'fp8:{name}'" for name in cls._FORMATS)
            raise ValueError(f"codec 'fp8:{option}': expected one of {names}")
        return cls(form)

    def _to_codes(self, numbers: Tensor, codes: Tensor) -> None:
        codes.view(self._dtype).copy_(numbers)

    def _to_numbers(self, codes: Tensor, out: Tensor) -> None:
        # through the bits of float16, which ATen converts several times faster
        bits = codes.view(torch.int8).to(torch.int16)
        if self._dtype == torch.float8_e5m2:
            out.copy_((bits << 8).view(torch.float16))
        else:
            # exponents have one bit less: the sign moves over it, and the bias differs by 8
            out.copy_(((bits << 7) & ~0x4000).view(torch.float16))
            out *= 2**8

    def _half_step(self, x: Tensor, scale: Tensor) -> Tensor:
        info = torch.finfo(self._dtype)
        return info.eps / 2 * torch.maximum(x.abs(), info.smallest_normal * scale)
