"""What the fused linear must reach on a quiet two-core CPU with GELU, and whether this run reached it."""

import dataclasses
from collections.abc import Iterator, Sequence

import torch

from torchadx.bench._modes import Shape
from torchadx.bench._results import Case
from torchadx.bench.linear import saved_by_two_layers

WIDE, TALL, THIN, SMALL, TINY = (2048, 512, 2048), (256, 1024, 4096), (64, 1024, 4096), (64, 256, 256), (4, 8, 8)

#: (mode, shape, dtype, contender, least times faster than it)
FASTER: tuple[tuple[str, Shape, str, str, float], ...] = (
    ("jvp", WIDE, "fp32", "eager", 1.8),
    ("jvp", TALL, "fp32", "eager", 1.8),
    ("jvp", SMALL, "fp32", "eager", 1.5),
    ("jvp", WIDE, "bf16", "eager", 1.5),
    ("jvp", TALL, "bf16", "eager", 1.5),
    ("jvp", SMALL, "bf16", "eager", 1.5),
    *(("jvp", shape, dtype, "bare GEMM", 1 / 1.15) for shape in (WIDE, TALL) for dtype in ("fp32", "bf16")),
    ("train", TALL, "fp32", "eager", 1.15),
    ("train", THIN, "fp32", "eager", 1.15),
    ("train", WIDE, "fp32", "eager", 1.08),
    *(("train", shape, "fp32", "compile", 1.05) for shape in (TALL, THIN, WIDE)),
    # equal, of which 0.97 is noise
    *(("train", shape, "bf16", other, 0.97) for shape in (TALL, THIN, WIDE) for other in ("eager", "compile")),
)

#: (mode, most microseconds over eager) at 4 x 8 x 8, where a call is all overhead
OVERHEAD = (("forward", 20.0), ("train", 45.0))


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A target, what was measured, and whether that meets it."""

    what: str
    wanted: str
    measured: str
    met: bool


def judge(cases: Sequence[Case], device: torch.device) -> list[Verdict]:
    """Compare a run with every target that its cases cover."""
    by_key = {(case.mode, case.shape, case.dtype): case for case in cases}
    return [*_speed(by_key), *_overhead(cases), *_bytes(cases), *_bytes_between_layers(cases, device)]


def _speed(by_key: dict[tuple[str, Shape, str], Case]) -> Iterator[Verdict]:
    for mode, shape, dtype, other, least in FASTER:
        case = by_key.get((mode, shape, dtype))
        ratio = case.ratio("torchadx", other) if case else None
        if ratio is None:
            continue
        what = f"{mode} {'x'.join(map(str, shape))} {dtype}: "
        if other == "bare GEMM":
            yield Verdict(f"{what}time over bare GEMMs", f"≤ {1 / least:.2f}x", f"{1 / ratio:.2f}x", ratio >= least)
        else:
            yield Verdict(f"{what}speed over {other}", f"≥ {least:.2f}x", f"{ratio:.2f}x", ratio >= least)


def _overhead(cases: Sequence[Case]) -> Iterator[Verdict]:
    limits = dict(OVERHEAD)
    for case in cases:
        mine, plain = case.median("torchadx"), case.median("eager")
        if case.shape != TINY or case.mode not in limits or mine is None or plain is None:
            continue
        extra = (mine - plain) * 1e6
        what = f"{case.mode} 4x8x8 {case.dtype}: time over eager"
        yield Verdict(what, f"≤ {limits[case.mode]:.0f} µs", f"{extra:+.1f} µs", extra <= limits[case.mode])


def _bytes(cases: Sequence[Case]) -> Iterator[Verdict]:
    pairs = [(case.row("torchadx"), case.row("eager")) for case in cases]
    counted = [(m.saved, e.saved) for m, e in pairs if m and e and m.saved is not None and e.saved is not None]
    if counted:
        worst = max((mine / plain if plain else float(mine > 0)) for mine, plain in counted)
        what = f"bytes saved for backward over eager's, worst of {len(counted)} cases"
        yield Verdict(what, "≤ 1.00x", f"{worst:.2f}x", worst <= 1)


def _bytes_between_layers(cases: Sequence[Case], device: torch.device) -> Iterator[Verdict]:
    if not any(case.mode == "train" for case in cases):
        return
    # a share does not depend on the size
    gelu = saved_by_two_layers("gelu", TINY, device)
    for name in ("relu", "tanh", "sigmoid"):
        share = saved_by_two_layers(name, TINY, device) / gelu
        what = f"bytes saved by {name} between two linears over gelu's"
        yield Verdict(what, "≤ 0.50x", f"{share:.2f}x", share <= 0.5)
