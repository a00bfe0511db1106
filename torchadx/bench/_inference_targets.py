"""What the inference wrapper must reach on a quiet two-core CPU, and whether this run reached it."""

from collections.abc import Iterator, Sequence

from torchadx.bench._inference_contenders import COMPILE, EAGER, MINE, MINE_BF16
from torchadx.bench._inference_results import Case
from torchadx.bench._targets import Verdict
from torchadx.bench.inference import BOUND

MLP, ENCODER, DIGITS = "mlp-1024-4096-1024", "encoder", "digits"
#: least times faster than eager and than compiled in fp32, by case of the MLP: contender in fp32, and in bfloat16
MLP_SPEEDS = {1: (2.3, 6.0), 16: (2.3, 4.0), 256: (1.2, 2.2)}

#: (case, contender, rival, least times faster than it)
FASTER: tuple[tuple[str, str, str, float], ...] = (
    *(
        (f"{MLP}@{batch}", mine, rival, least)
        for batch, speeds in MLP_SPEEDS.items()
        for mine, least in zip((MINE, MINE_BF16), speeds, strict=True)
        for rival in (EAGER, COMPILE)
    ),
    *((f"{ENCODER}@{batch}", MINE, rival, 1.0) for batch in (1, 8) for rival in (EAGER, COMPILE)),
    *((f"{DIGITS}@{batch}", MINE, EAGER, 1.0) for batch in (1, 32, 360)),
)
#: most microseconds a call over the bare module, where a call is all overhead
OVERHEAD = 20.0


def judge(cases: Sequence[Case]) -> list[Verdict]:
    """Compare a run with every target that its cases cover."""
    by_name = {case.name: case for case in cases}
    return [*_speed(by_name), *_errors(by_name), *_overhead(by_name)]


def _speed(by_name: dict[str, Case]) -> Iterator[Verdict]:
    for name, mine, rival, least in FASTER:
        case = by_name.get(name)
        ratio = case.ratio(mine, rival) if case else None
        if ratio is None:
            continue
        # to the digits that are shown
        met = round(ratio, 2) >= least
        yield Verdict(f"{name}: speed of {mine} over {rival}", f"≥ {least:.2f}x", f"{ratio:.2f}x", met)


def _errors(by_name: dict[str, Case]) -> Iterator[Verdict]:
    for batch in MLP_SPEEDS:
        case = by_name.get(f"{MLP}@{batch}")
        row = case.row(MINE_BF16) if case else None
        if case and row and row.error is not None:
            what = f"{case.name}: relative error of {MINE_BF16}"
            yield Verdict(what, f"≤ {BOUND:.2%}", f"{row.error:.2%}", row.error <= BOUND)


def _overhead(by_name: dict[str, Case]) -> Iterator[Verdict]:
    case = by_name.get("overhead@4")
    mine, bare = (case.median(MINE), case.median(EAGER)) if case else (None, None)
    if mine is not None and bare is not None:
        extra = (mine - bare) * 1e6
        what = "4x8x8: time a call over the bare module"
        yield Verdict(what, f"< {OVERHEAD:.0f} µs", f"{extra:+.1f} µs", extra < OVERHEAD)
