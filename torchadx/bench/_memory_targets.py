"""What the activation manager must reach on a quiet two-core CPU, and whether this run reached it."""

from collections.abc import Iterator, Sequence

from torchadx.bench import memory
from torchadx.bench._memory_overhead import IDENTITY, KEEP
from torchadx.bench._memory_results import Growth, Loss, Overhead, Steps
from torchadx.bench._targets import Verdict

#: (strategy, most bytes saved over plain's)
SAVED = (("int8", 0.30), ("bf16", 0.52))
#: most bytes resident at once over plain's
RESIDENT = ("@disk", 0.10)
#: must save less than plain at all
LOSSLESS = "lossless@host"
#: (steps, most relative difference from plain's loss)
LOSS = (200, 0.01)
#: most microseconds a saved tensor over hooks that do nothing
OVERHEAD = 8.0


def judge(steps: Steps | None, loss: Loss | None, overhead: Overhead | None, growth: Sequence[Growth]) -> list[Verdict]:
    """Compare a run with every target that it covers; bytes and losses are judged at the stated size only."""
    return [
        *(_bytes(steps) if steps and steps.size == memory.SIZE else ()),
        *(_loss(loss) if loss and loss.size == memory.SIZE else ()),
        *(_overhead(overhead) if overhead else ()),
        *map(_growth, growth),
    ]


def _bytes(steps: Steps) -> Iterator[Verdict]:
    plain = steps.row("plain")
    assert plain is not None
    for name, most in SAVED:
        row = steps.row(name)
        if row:
            share = row.saved / plain.saved
            yield Verdict(f"{name}: bytes saved over plain's", f"≤ {most:.2f}x", f"{share:.3f}x", share <= most)
    row = steps.row(LOSSLESS)
    if row:
        share = row.saved / plain.saved
        yield Verdict(f"{LOSSLESS}: bytes saved over plain's", "< 1x", f"{share:.3f}x", share < 1)
        yield _bitwise(LOSSLESS, row.check.bitwise)
    name, most = RESIDENT
    row = steps.row(name)
    if row:
        share = row.peak / plain.saved
        yield Verdict(f"{name}: resident at most, over plain's", f"≤ {most:.2f}x", f"{share:.3f}x", share <= most)
        yield _bitwise(name, row.check.bitwise)


def _bitwise(name: str, bitwise: bool) -> Verdict:
    return Verdict(f"{name}: gradients", "bitwise plain's", "bitwise" if bitwise else "different", bitwise)


def _loss(loss: Loss) -> Iterator[Verdict]:
    steps, most = LOSS
    if loss.steps < steps or not set(memory.LONG) <= set(loss.losses):
        return
    plain, other = (loss.losses[name] for name in memory.LONG)
    apart = other / plain - 1
    what = f"{memory.LONG[1]}: loss after {loss.steps} steps against plain's"
    yield Verdict(what, f"≤ {most:.0%} apart", f"{apart:+.2%}", abs(apart) <= most)


def _overhead(overhead: Overhead) -> Iterator[Verdict]:
    extra = overhead.microseconds(KEEP, IDENTITY)
    what = "keep: time over identity hooks, a saved tensor"
    yield Verdict(what, f"≤ {OVERHEAD:.0f} µs", f"{extra:+.1f} µs", extra <= OVERHEAD)


def _growth(growth: Growth) -> Verdict:
    grown = growth.grown()
    return Verdict(f"{growth.store}: growth over {growth.steps} steps", "none", ", ".join(grown) or "none", not grown)
