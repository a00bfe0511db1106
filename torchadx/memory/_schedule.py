"""The tensors of a round, what was measured of them, and the action chosen for each."""

import collections
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from torchadx.memory import _plan
from torchadx.memory._plan import Item, Option
from torchadx.memory._trials import Trial
from torchadx.memory.policy import TensorMeta
from torchadx.memory.report import size

#: lossless codecs shrink one tensor more than the next; plans count their bytes as if they came out this much larger
MARGIN = 1 / 20


def copying_bytes(limit: int) -> int:
    """Return how much of a limit to leave to copies under way, so that not every one has to be waited for."""
    return limit // 8


class Signature(NamedTuple):
    """By what a tensor is known again in later rounds."""

    module: str | None
    op: str | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    stride: tuple[int, ...]
    device: torch.device
    nbytes: int

    @classmethod
    def of(cls, meta: TensorMeta) -> "Signature":
        """Take from a description what the next round is going to repeat."""
        return cls(meta.module, meta.op, meta.shape, meta.dtype, meta.stride, meta.device, meta.nbytes)


@dataclasses.dataclass(slots=True)
class Seen:
    """A tensor of a round: what was measured, what it became, and the ticks between which it was alive."""

    signature: Signature
    trials: tuple[Trial, ...]
    promised: int
    born: int
    died: int | None = None

    @property
    def usable(self) -> list[Trial]:
        """The actions that it may get."""
        return [trial for trial in self.trials if trial.refusal is None]


def smallest(trials: Sequence[Trial], room: int | None = None) -> Trial:
    """Return the usable trial that leaves the fewest bytes; of equals a lossless, then a fast one.

    Args:
        trials: At least one of them usable.
        room: If there are some that need no more than this while they are carried out, one of those.
    """
    usable = [trial for trial in trials if trial.refusal is None]
    if room is not None:
        least = min(map(needed, usable))
        usable = [trial for trial in usable if needed(trial) <= max(room, least)]
    return min(usable, key=lambda trial: (trial.nbytes, not trial.action.lossless, trial.nanoseconds))


def needed(trial: Trial) -> int:
    """Return the bytes that an action takes when it is carried out: held, or on their way elsewhere."""
    return max(trial.nbytes, trial.transit)


def depends_on_data(trial: Trial) -> bool:
    """Whether the bytes that an action makes of a tensor depend on its elements: so they do with lossless codecs."""
    return trial.action.codec is not None and trial.action.codec.lossless


def with_margin(trial: Trial, nbytes: int) -> int:
    """Return what to count in rounds to come for bytes that were measured, if their data are much like these."""
    return nbytes + math.ceil(MARGIN * nbytes) if depends_on_data(trial) else nbytes


@dataclasses.dataclass(frozen=True, slots=True)
class PlanRow:
    """What a plan does with one tensor.

    Attributes:
        number: Its place among the tensors that were planned.
        module: Name of the watched module that saves it; ``None`` outside of watched modules.
        op: What produces it, where known.
        shape: Sizes.
        dtype: Element type.
        nbytes: Bytes that keeping it takes.
        action: What is done, as a policy string.
        held_bytes: Bytes that stay in its memory, at most.
        seconds: Time for the way there and back, copies counted as if nothing ran beside them.
        error: Relative error that was measured; 0 if lossless.
        reason: Why.
    """

    number: int
    module: str | None
    op: str | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    nbytes: int
    action: str
    held_bytes: int
    seconds: float
    error: float
    reason: str

    @property
    def saved_bytes(self) -> int:
        """Bytes that the action frees."""
        return self.nbytes - self.held_bytes


class Schedule:
    """Actions for the tensors of a round.

    Attributes:
        tensors: What a round saw.
        signatures: How many of them there are of each kind.
        reserve: Bytes to leave free, besides those that are held when a round begins.
        chosen: What is done with each tensor; empty until it is solved.
        set_aside: Bytes of the limit that are left to what else is held.
        under_way: Bytes of the limit that are left to copies under way.
    """

    def __init__(self, tensors: Sequence[Seen], reserve: int = 0) -> None:
        self.tensors = tuple(tensors)
        self.signatures = collections.Counter(seen.signature for seen in tensors)
        self.reserve = reserve
        self.chosen: list[Trial] = []
        self.set_aside = self.under_way = 0
        self._shortage = 0
        self._fastest = _fastest(tensors)
        self._solved: int | None = None

    def nanoseconds(self, seen: Seen, trial: Trial) -> int:
        """Return the time that an action takes; where the data make no difference, the best that was seen."""
        return self._fastest.get(_time_key(seen, trial), trial.nanoseconds)

    def solve(self, limit: int, base: int) -> None:
        """Choose an action for every tensor, so that they and ``base`` bytes of others stay within the limit.

        A base that is little smaller than the last one is no reason to choose anew.
        """
        # rounded up, for a base that differs a little each time
        step = max(1, limit // 256)
        base = -(-base // step) * step
        if self._solved is not None and self._solved - limit // 64 <= base <= self._solved:
            return
        self._solved = base
        self.set_aside = base + self.reserve
        # what is smallest is smaller than what is promised for it; whether that is enough shows when it runs
        self.chosen = [smallest(seen.trials) for seen in self.tensors]
        self.under_way = max((trial.transit for trial in self.chosen), default=0)
        plans = [self._plan(limit - self.set_aside, under_way) for under_way in self._allowances(limit)]
        self._shortage = min(shortage for shortage, _ in plans)
        solved = [(self._cost(chosen), place) for place, (_, chosen) in enumerate(plans) if chosen is not None]
        if solved:
            place = min(solved)[1]
            self.chosen = plans[place][1] or []
            self.under_way = self._allowances(limit)[place]

    def leave(self, excess: int) -> None:
        """Choose anew, with so much less to go round, and a quarter of it besides."""
        self.reserve = excess + excess // 4
        self._solved = None

    def _allowances(self, limit: int) -> list[int]:
        """Return for how many bytes of copies under way there may be room: none, some, or the largest tensor."""
        largest = max((trial.transit for seen in self.tensors for trial in seen.usable), default=0)
        return sorted({0, max(largest, copying_bytes(limit))} | {copying_bytes(limit)}) if largest else [0]

    def _plan(self, room: int, under_way: int) -> tuple[int, list[Trial] | None]:
        """Return what lossless actions lack, and a choice among the actions whose copies are no larger than allowed."""
        options = [[trial for trial in seen.usable if trial.transit <= under_way] for seen in self.tensors]
        items = [self._item(seen, trials) for seen, trials in zip(self.tensors, options, strict=True)]
        chosen = _plan.solve(items, room - under_way)
        shortage = _plan.floor(items, lossless=True) - (room - under_way)
        if chosen is None:
            return shortage, None
        return shortage, [trials[option] for trials, option in zip(options, chosen, strict=True)]

    def _item(self, seen: Seen, trials: Sequence[Trial]) -> Item:
        options = (
            Option(with_margin(trial, trial.nbytes), self.nanoseconds(seen, trial), not trial.action.lossless)
            for trial in trials
        )
        return Item(seen.signature.nbytes, tuple(options), seen.born, seen.died)

    def _cost(self, chosen: Sequence[Trial]) -> tuple[int, int]:
        """Return the bytes that are made lossy, and the nanoseconds."""
        pairs = list(zip(self.tensors, chosen, strict=True))
        lossy = sum(seen.signature.nbytes for seen, trial in pairs if not trial.action.lossless)
        return lossy, sum(self.nanoseconds(seen, trial) for seen, trial in pairs)

    def peaks(self) -> tuple[int, int]:
        """Return the most bytes alive at once as promised, and without any action."""
        items = [self._item(seen, seen.usable) for seen in self.tensors]
        promised = [with_margin(trial, trial.nbytes) for trial in self.chosen]
        return _plan.peak(items, promised), _plan.peak(items, [item.nbytes for item in items])

    def rows(self) -> Iterator[PlanRow]:
        """Yield what is done with each tensor."""
        for number, (seen, trial) in enumerate(zip(self.tensors, self.chosen, strict=True)):
            yield PlanRow(
                number,
                seen.signature.module,
                seen.signature.op,
                seen.signature.shape,
                seen.signature.dtype,
                seen.signature.nbytes,
                str(trial.action),
                with_margin(trial, trial.nbytes),
                self.nanoseconds(seen, trial) / 1e9,
                trial.error,
                self.reason(number),
            )

    def reason(self, index: int) -> str:
        """Say why a tensor gets the action it gets."""
        seen, trial = self.tensors[index], self.chosen[index]
        if trial.action.keeps:
            if any(other.nbytes < trial.nbytes for other in seen.usable):
                return "the limit leaves room for it"
            refusals = "; ".join(f"{other.action}: {other.refusal}" for other in seen.trials if other.refusal)
            return f"no action makes it smaller ({refusals})" if refusals else "no action makes it smaller"
        freed = size(seen.signature.nbytes - with_margin(trial, trial.nbytes))
        if trial.action.lossless:
            return f"frees {freed} without loss, in the plan of least time"
        return f"frees {freed}: without loss the limit is exceeded by {size(self._shortage)}"


def _time_key(seen: Seen, trial: Trial) -> tuple[str, int, torch.dtype, torch.device]:
    return str(trial.action), seen.signature.nbytes, seen.signature.dtype, seen.signature.device


def _fastest(tensors: Sequence[Seen]) -> dict[tuple[str, int, torch.dtype, torch.device], int]:
    """Find the best time of each action on tensors of one size, where the data make no difference."""
    fastest: dict[tuple[str, int, torch.dtype, torch.device], int] = {}
    for seen in tensors:
        for trial in seen.usable:
            if not trial.action.lossless:
                key = _time_key(seen, trial)
                fastest[key] = min(trial.nanoseconds, fastest.get(key, trial.nanoseconds))
    return fastest
