"""A plan in words, and why there is none."""

from collections.abc import Iterable, Iterator, Sequence

from torchadx.memory._schedule import PlanRow, Schedule, needed
from torchadx.memory._trials import Trial
from torchadx.memory.policy import TensorMeta
from torchadx.memory.report import columns, module_name, size, tensor_name

_HEADER = ("number", "module", "op", "tensor", "bytes", "action", "saved", "seconds", "error", "why")
_NUMBERS = ("number", "bytes", "saved", "seconds", "error")


def plan(schedule: Schedule, rows: Sequence[PlanRow], limit: int) -> str:
    """Lay a plan out: its totals, then a line a tensor."""
    promised, without = schedule.peaks()
    lines = [
        f"limit {size(limit)}: at most {size(promised)} promised, {size(without)} without a plan; "
        f"{sum(row.seconds for row in rows):.4f} s paid a step for {len(rows)} tensors"
    ]
    if schedule.under_way:
        lines.append(f"{size(schedule.under_way)} of the limit are left to copies under way")
    if schedule.set_aside:
        lines.append(f"{size(schedule.set_aside)} of the limit are left to what else is held")
    if promised + schedule.under_way + schedule.set_aside > limit:
        lines.append("no choice is sure to fit: every tensor gets the action that leaves the fewest bytes")
    return "\n".join([*lines, "", *columns([_HEADER, *map(_cells, rows)], _NUMBERS)])


def no_plan_yet(limit: int, actions: Iterable[str], max_error: float) -> str:
    """Say what is going to happen."""
    lossy = f"lossy ones up to a relative error of {max_error:g}" if max_error else "lossless ones only"
    return (
        f"limit {size(limit)}: no plan yet. The first pass tries every action ({', '.join(actions)}; {lossy}) on every "
        "tensor, and each tensor gets the one that leaves the fewest bytes. From the second pass on, the actions of "
        "least time that fit are used; lossy ones only if lossless ones cannot fit."
    )


def exceeded(
    limit: int,
    max_error: float,
    meta: TensorMeta,
    trials: Sequence[Trial],
    smallest: Trial,
    resident: int,
    movable: bool,
) -> str:
    """Say what does not fit, by how much, and what would help."""
    missing = resident + needed(smallest) - limit
    remedies = _remedies(max_error, trials, smallest, movable)
    place = {None: "outside of watched modules", "": "in the model itself"}.get(meta.module, f"in {meta.module}")
    return (
        f"a budget of {size(limit)} cannot be met: {size(resident)} of saved tensors are held, and tensor "
        f"{meta.ordinal} ({meta.op or 'unknown op'} {place}, {meta.dtype}, shape {list(meta.shape)}, "
        f"{size(meta.nbytes)}) takes at least {size(needed(smallest))} more (by '{smallest.action}'): "
        f"{size(missing)} too much so far. What helps: "
        + "; ".join([f"a limit of {limit + missing} bytes, and more for what follows", *remedies, "a smaller batch"])
    )


def _remedies(max_error: float, trials: Sequence[Trial], smallest: Trial, movable: bool) -> Iterator[str]:
    stores = {trial.action.store for trial in trials}
    if movable and "host" not in stores:
        yield "'@host' in actions"
    if "disk" not in stores:
        yield "'@disk' in actions, which is slow but leaves next to nothing in memory"
    if max_error == 0:
        yield "a max_error above 0, which allows lossy codecs"
    for trial in trials:
        if trial.refusal and 0 < trial.error and trial.nbytes < smallest.nbytes:
            yield f"max_error={trial.error:.2g}, which allows {trial.action} ({size(trial.nbytes)})"


def _cells(row: PlanRow) -> tuple[str, ...]:
    return (
        str(row.number),
        module_name(row.module),
        row.op or "-",
        tensor_name(row.dtype, row.shape),
        size(row.nbytes),
        row.action,
        size(row.saved_bytes),
        f"{row.seconds:.6f}",
        f"{row.error:.2g}",
        row.reason,
    )
