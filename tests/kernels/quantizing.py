"""Block codes as their format defines them: values and error bounds in float64, codes by plain PyTorch."""

import torch
from torch import Tensor

KINDS = ("int8", "int4", "int2", "e4m3", "e5m2")
FLOAT8 = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
#: The largest code, or float8 number, in plain and in marked blocks.
LARGEST = {"int8": (127, 126), "int4": (7, 6), "e4m3": (448, 240), "e5m2": (57344, 28672)}
TINY = 2.0**-126


def scenarios(block: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return blocks of elements, ``(block,)`` each, by what is special about them."""
    info = torch.finfo(dtype)
    normal = torch.randn(block)
    alternating = torch.ones(block)
    alternating[::2] = -1
    made = {
        "normal": normal,
        "wide": normal.sign() * torch.logspace(-42, 38, block, dtype=torch.float64).clamp(max=info.max),
        "zeros": torch.zeros(block),
        "negative zeros": -torch.zeros(block),
        "constant": torch.full((block,), -1.1),
        "almost constant": 1000 * (1 + info.eps * torch.randint(4, (block,))),
        "least": alternating * info.smallest_normal * info.eps,
        "subnormal": normal.clamp(-1, 1).double() * info.smallest_normal,
        "small": normal.double() * 200 * info.smallest_normal,
        "largest": alternating * info.max,
        "halves": torch.arange(block) - 0.5 * block,
        "one infinity": _put(normal, torch.inf),
        "minus infinity": _put(normal, -torch.inf),
        "one NaN": _put(normal, torch.nan),
        "all three": _put(normal, torch.inf, -torch.inf, torch.nan),
        "all three and largest": _put(alternating * info.max, torch.inf, -torch.inf, torch.nan),
        "infinity and zeros": _put(torch.zeros(block), -torch.inf),
        "infinity and subnormals": _put(normal.clamp(-1, 1).double() * info.smallest_normal, torch.inf, torch.nan),
        "only NaN": torch.full((block,), torch.nan),
        "only infinities": alternating * torch.inf,
        "negative NaN": _put(normal, -torch.tensor(torch.nan)),
        # the last, which tests cut off: zeros past its end would be its least element
        "positive": normal.abs() + 3,
    }
    return {name: values.to(dtype) for name, values in made.items()}


def _put(values: Tensor, *special: float | Tensor) -> Tensor:
    """Overwrite some elements."""
    values = values.clone()
    for i, number in enumerate(special):
        values[(3 * i + 1) % len(values)] = number
    return values


def rows(x: Tensor, block: int) -> Tensor:
    """Return ``(blocks, block)`` in float64; the last element fills up the last block."""
    missing = -len(x) % block
    return torch.cat([x, x[-1:].expand(missing)]).double().view(-1, block)


def per_element(values: Tensor, n: int, block: int) -> Tensor:
    """Repeat what belongs to a block for each of its elements."""
    return values.repeat_interleave(block)[:n]


def unpacked(codes: Tensor, kind: str) -> Tensor:
    """Return every code, those of missing elements too, as a number in float64."""
    if kind in FLOAT8:
        return codes.view(FLOAT8[kind]).double()
    if kind == "int8":
        return codes.double()
    bits = int(kind[3:])
    numbers = torch.stack([codes.int() >> shift & 2**bits - 1 for shift in range(0, 8, bits)], dim=1).view(-1)
    return (numbers - 16 * (numbers > 7)).double()


def decode(parts: tuple[Tensor, ...], n: int, block: int, kind: str) -> Tensor:
    """Return the exact value of every element, in float64."""
    numbers = unpacked(parts[0], kind)[:n]
    scale, marked = (per_element(t, n, block) for t in (parts[1].double().abs(), parts[1].signbit()))
    if kind == "int2":
        values = per_element(parts[2].double(), n, block) + numbers * scale
        infinite, minus_infinite, nan = numbers == 1, numbers == 2, numbers == 3
    else:
        values = numbers * scale
        infinite, minus_infinite = numbers == LARGEST[kind][0], numbers == -LARGEST[kind][0]
        nan = numbers.isnan() if kind in FLOAT8 else numbers < -LARGEST[kind][0]
    values[marked & infinite] = torch.inf
    values[marked & minus_infinite] = -torch.inf
    values[marked & nan] = torch.nan
    return values


def extent(x: Tensor, block: int, kind: str) -> Tensor:
    """Return, for each block, how far its finite elements are from zero at most, or in ``int2``, from each other."""
    values = rows(x, block)
    if kind != "int2":
        return values.where(values.isfinite(), 0).abs().amax(1)
    finite = values.isfinite()
    least, most = values.where(finite, torch.inf).amin(1), values.where(finite, -torch.inf).amax(1)
    return (most - least).where(finite.any(1), 0)


def bound(x: Tensor, parts: tuple[Tensor, ...], block: int, kind: str) -> Tensor:
    """Return the error that the docstring of quantize allows each finite element, in float64."""
    scale, marked = (per_element(t, len(x), block) for t in (parts[1].double().abs(), parts[1].signbit()))
    x, info = x.double(), torch.finfo(x.dtype)
    half_step, flushed = scale / 2, 3 * TINY
    if kind == "int2":
        half_step = half_step.where(~marked, 1.5 * scale)
    else:
        flushed = LARGEST[kind][0] * TINY
    if kind == "e4m3":
        half_step = torch.maximum(2**-4 * x.abs(), 2**-10 * scale)
    if kind == "e5m2":
        half_step = torch.maximum(2**-3 * x.abs(), 2**-17 * scale)
    allowed = half_step.where(scale > 0, flushed) + 2**-20 * per_element(extent(x, block, "int8"), len(x), block)
    return allowed + info.eps / 2 * ((x.abs() + allowed) + info.smallest_normal)


def encode(x: Tensor, block: int, kind: str) -> tuple[Tensor, ...]:
    """Return what the kernel must, bit by bit: the same arithmetic, done in fp32 by PyTorch."""
    values = rows(x, block).float()
    finite = values.isfinite()
    marked = ~finite.all(1)
    sign = 1 - 2 * marked.float()
    nudge = 1 - 2**-22
    if kind == "int2":
        some = finite.any(1)
        least = values.where(finite, torch.inf).amin(1).where(some, 0)
        most = values.where(finite, -torch.inf).amax(1).where(some, 0)
        step = (most * 0.5 - least * 0.5) * (nudge / 1.5)
        step = step.where(step >= TINY, 0)
        first = least + 0.5 * step
        thresholds = (first, first + step, first + step + step)
        codes = sum((values > threshold[:, None]).int() for threshold in thresholds) * ~marked[:, None]
        special = (1, 2, 3)
        scales = (step * sign, least.where(~marked, least * 0.5 + most * 0.5))
    else:
        largest, marked_largest = LARGEST[kind]
        size = values.where(finite, 0).abs().amax(1)
        scale = torch.where(marked, size * (nudge / marked_largest), size * (nudge / largest))
        scale = scale.where(scale >= TINY, 0)
        steps = values * (1 / scale).where(scale > 0, 0)[:, None]
        as_float8 = kind in FLOAT8
        codes = (steps.to(FLOAT8[kind]).view(torch.uint8) if as_float8 else steps.where(finite, 0).round()).int()
        special = {"e4m3": (0x7E, 0xFE, 0x7F), "e5m2": (0x7B, 0xFB, 0x7F)}.get(kind, (largest, -largest, -largest - 1))
        scales = (scale * sign,)
    for number, where in zip(special, (values == torch.inf, values == -torch.inf, values.isnan()), strict=True):
        codes = codes.masked_fill(where, number)
    return _packed(codes.view(-1)[: len(x)], kind), *scales


def _packed(codes: Tensor, kind: str) -> Tensor:
    if kind == "int8":
        return codes.to(torch.int8)
    bits = int(kind[3:]) if kind not in FLOAT8 else 8
    per_byte = 8 // bits
    groups = torch.nn.functional.pad(codes & 2**bits - 1, (0, -len(codes) % per_byte)).view(-1, per_byte)
    return sum(groups[:, i] << bits * i for i in range(per_byte)).to(torch.uint8)
