"""What planned Jacobians must reach on a quiet two-core CPU, and whether this run reached it."""

import statistics
from collections.abc import Iterator, Sequence

from torchadx.bench._jacobian_cases import NEVER_SLOWER, PROBLEMS
from torchadx.bench._jacobian_results import Case, Planning, Sample
from torchadx.bench._table import seconds, size
from torchadx.bench._targets import Verdict

#: most seconds to plan a network of 50 layers
PLANNING = 0.3
#: least median of the ratios to the better of jacrev and jacfwd, over random networks
RANDOM = 0.9
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def judge(cases: Sequence[Case], planning: Planning | None, samples: Sequence[Sample]) -> list[Verdict]:
    """Compare a run with every target that it covers."""
    return [
        *(verdict for case in cases for verdict in (*_speed(case), *_memory(case))),
        *(_planning(planning) if planning else ()),
        *(_random(samples) if samples else ()),
    ]


def _speed(case: Case) -> Iterator[Verdict]:
    problem = next((problem for problem in PROBLEMS if problem.name == case.name), None)
    if problem is None:
        return
    for group, least in (("eager", problem.eager), ("compiled", problem.compiled)):
        best, ratio = case.best(group), case.ratio(group)
        if least is None or best is None or ratio is None:
            continue
        # at 1 it has to be faster, below that equal within noise
        met, sign = (ratio > least, ">") if least == 1 else (ratio >= least, "≥")
        digits = 2 if least == NEVER_SLOWER else 1
        what = f"{case.name}: speed over {best.name}, the best {group}"
        yield Verdict(what, f"{sign} {least:.{digits}f}x", f"{ratio:.{digits}f}x", met)


def _memory(case: Case) -> Iterator[Verdict]:
    row = case.row(f"torchadx in {case.memory}")
    if case.memory is None or row is None or row.peak is None:
        return
    amount, unit = case.memory.split()
    met = row.peak <= int(amount) * UNITS[unit]
    yield Verdict(f"{case.name}: bytes besides the result", f"≤ {case.memory}", size(row.peak), met)


def _planning(planning: Planning) -> Iterator[Verdict]:
    median = planning.timing.median
    yield Verdict(f"planning {planning.layers} layers", f"≤ {seconds(PLANNING)}", seconds(median), median <= PLANNING)


def _random(samples: Sequence[Sample]) -> Iterator[Verdict]:
    median = statistics.median(sample.ratio for sample in samples)
    what = f"{len(samples)} random networks: speed over the better of jacrev and jacfwd, median"
    yield Verdict(what, f"≥ {RANDOM:.2f}x", f"{median:.2f}x", median >= RANDOM)
    above = sum(sample.above for sample in samples)
    yield Verdict(f"{len(samples)} random networks: plans that take more than their limit", "0", str(above), not above)
