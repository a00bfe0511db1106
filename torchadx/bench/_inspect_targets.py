"""What the inspection must reach on a quiet two-core CPU, and whether this run reached it."""

from collections.abc import Iterator, Sequence

from torchadx.bench import _inspect_check
from torchadx.bench._inspect_graphs import SAVED
from torchadx.bench._inspect_models import DEEP
from torchadx.bench._inspect_results import Case, Memory, Page, Profiled, Saved
from torchadx.bench._targets import Verdict

#: most seconds that looking at the deep model takes
SECONDS = 2.0
#: most microseconds of a block that is not profiled
ENTRY = 5.0
#: most bytes of a page
PAGE = 6e6


def judge(cases: Sequence[Case], stated: bool) -> list[Verdict]:
    """Compare a run with every target that its cases cover.

    Args:
        cases: Measured ones.
        stated: Whether the models are as large as the targets are stated for; those of size and time count then only.
    """
    return [verdict for case in cases for verdict in _judge(case, stated)]


def _judge(case: Case, stated: bool) -> Iterator[Verdict]:
    what = f"{case.section}, {case.name}: "
    if isinstance(case, Saved):
        yield _agreement(f"{what}growth of torch's allocator over what is told", case.agreement)
        seconds = case.median(SAVED)
        if stated and case.name == DEEP and seconds is not None:
            yield Verdict(f"{what}{case.described}", f"< {SECONDS:g} s", f"{seconds:.2f} s", seconds < SECONDS)
    if isinstance(case, Memory):
        yield _agreement(f"{what}peak over that of torch's own events", case.agreement)
    if isinstance(case, Profiled):
        took = case.entry_ns / 1e3
        yield Verdict(f"{what}a block with enabled=False", f"< {ENTRY:g} µs", f"{took:.2f} µs", took < ENTRY)
    if isinstance(case, Page) and stated and case.written is not None:
        nbytes = case.written.nbytes
        yield Verdict(f"{what}bytes of the page", f"< {PAGE / 1e6:g} MB", f"{nbytes / 1e6:.2f} MB", nbytes < PAGE)


def _agreement(what: str, ratio: float) -> Verdict:
    most = _inspect_check.TOLERANCE
    return Verdict(what, f"within {most:.0%}", f"{ratio:.4f}x", abs(ratio - 1) <= most)
