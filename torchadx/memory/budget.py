"""A policy that keeps what autograd saves under a limit: it measures one round, plans, and follows the plan."""

import fractions
import importlib.util
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from torchadx import dispatch
from torchadx.memory import _explain
from torchadx.memory._round import Round
from torchadx.memory._schedule import (
    PlanRow,
    Schedule,
    Seen,
    Signature,
    copying_bytes,
    depends_on_data,
    needed,
    smallest,
    with_margin,
)
from torchadx.memory._trials import Prober, Trial
from torchadx.memory.policy import Action, Decision, Planner, TensorMeta
from torchadx.memory.report import size
from torchadx.memory.stores import Store

#: what a budget may do unless it is told otherwise; "lossless@host" where blosc2 is installed
DEFAULT_ACTIONS = tuple(
    action
    for action in ("mask", "sparse", "lossless@host", "@host", "bf16", "int8", "int4")
    if action != "lossless@host" or importlib.util.find_spec("blosc2")
)

# plans that are remembered, e.g. one for each sequence length
_MAX_SCHEDULES = 16

_BYTES = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:(?:([kmgt])(i?))?b)?\s*", re.IGNORECASE)


class BudgetError(RuntimeError):
    """What autograd saves does not fit a budget, whatever is done with it."""


def parse_bytes(limit: int | str) -> int:
    """Read a number of bytes.

    Args:
        limit: A positive number, or text: digits, and a unit if they do not count bytes. ``"KiB"``, ``"MiB"``,
            ``"GiB"`` and ``"TiB"`` are powers of 1024; ``"kB"``, ``"MB"``, ``"GB"`` and ``"TB"`` powers of 1000.

    Raises:
        TypeError: It is neither a whole number nor text.
        ValueError: The text is no number of bytes, or there is less than one.

    >>> parse_bytes("1.5 GiB"), parse_bytes("500 MB"), parse_bytes("1024")
    (1610612736, 500000000, 1024)
    """
    if isinstance(limit, bool) or not isinstance(limit, (int, str)):
        raise TypeError(f"a number of bytes is an int or text such as '2 GiB'; got {limit!r}")
    if isinstance(limit, str):
        match = _BYTES.fullmatch(limit)
        if match is None:
            raise ValueError(f"{limit!r} is no number of bytes; expected e.g. '2 GiB', '500 MB', '1.5GiB' or '1024'")
        number, prefix, binary = match.groups(default="")
        power = " kmgt".index(prefix.lower() or " ")
        nbytes = int(fractions.Fraction(number) * (1024 if binary else 1000) ** power)
    else:
        nbytes = limit
    if nbytes < 1:
        raise ValueError(f"a limit is at least one byte; got {limit!r}")
    return nbytes


class Budget(Planner):
    """Keeps what autograd saves under a limit, at the least time.

    The first round (normally one pass through the model) measures: every action is tried once on every tensor, and each
    tensor gets the one that leaves the fewest bytes, lossy or not, so that no step needs less memory than the first.
    From the second round on a plan is followed: the actions of least time whose bytes fit at every moment. Lossy codecs
    are used only if lossless actions cannot fit, and then for as few bytes as possible. Tensors are known again by
    module, op, shape, dtype and strides; from the first unknown one on, a round is measured again. The latest 16 plans
    are remembered, so that sequence lengths may alternate.

    Of what is lossless and depends on the data, plans count 5% more bytes than were measured. Where more is held than
    was planned all the same (data that changed, another graph), tensors get the action that leaves the fewest bytes,
    and the next round is measured again, or planned with as much less.

    What counts is what is held for backward in the memory that tensors are saved in. What moved to the host counts for
    tensors that were there already, what moved to the disk does not, and copies under way do: plans leave
    ``window_bytes`` to them (or one tensor's, if that is larger), and stores that are made with this ``window_bytes``
    read no more ahead in backward. What a model needs besides does not count.

    Args:
        limit: Bytes, or text: ``"2 GiB"``, ``"500 MB"``.
        max_error: The relative error ``||x - decoded|| / ||x||`` that a lossy codec may make, of each tensor when it is
            measured. 0: lossless only.
        actions: What may be done besides keeping, as policy strings. ``"@disk"`` and e.g. ``"int8@disk"`` are used only
            if they are named.

    Attributes:
        limit: Bytes.
        max_error: As given.
        actions: As given.

    Raises:
        TypeError: ``limit`` is neither a whole number nor text.
        ValueError: ``limit`` is no number of bytes, ``max_error`` no fraction, or an action no policy string.
        ModuleNotFoundError: An action needs an extra that is not installed.
    """

    def __init__(self, limit: int | str, *, max_error: float = 0.01, actions: Iterable[str] = DEFAULT_ACTIONS) -> None:
        """Read the limit and the actions."""
        self.limit = parse_bytes(limit)
        if not 0 <= max_error < 1:
            raise ValueError(f"max_error is a relative error, at least 0 and less than 1; got {max_error!r}")
        self.max_error = max_error
        self.actions = (actions,) if isinstance(actions, str) else tuple(dict.fromkeys(actions))
        parsed = [Action.parse(action) for action in self.actions]
        self._prober = Prober([action for action in parsed if max_error > 0 or action.lossless], max_error)
        self._lock = threading.Lock()
        self._stores: Mapping[str, Store] = {}
        self._schedules: list[Schedule] = []
        self._round: Round | None = None
        self._entering = False
        self._tick = 0

    def begin(self, stores: Mapping[str, Store]) -> None:
        """Start a pass. Whether it is a round of its own shows at its first tensor."""
        with self._lock:
            self._stores = stores
            self._entering = True

    def choose(self, meta: TensorMeta, flat: Tensor, resident: Callable[[], int]) -> Decision:
        """Take the planned action, or measure.

        Raises:
            BudgetError: The limit would be exceeded whatever is done with the tensor.
        """
        with self._lock:
            self._tick += 1
            signature = Signature.of(meta)
            before = resident()
            current = self._enter_round(signature, before)
            current.note(before)
            place = self._place(current, signature)
            if place is None:
                trial, trials, reason = self._measured(meta, flat, resident)
                promised = trial.nbytes
            else:
                trial, trials, reason = self._planned(current, place, meta, flat, resident)
                promised = with_margin(trial, trial.nbytes)
            current.add(meta.ordinal, Seen(signature, trials, promised, self._tick), before, moved=trial.transit > 0)
            return Decision(trial.action, reason)

    def released(self, ordinal: int) -> None:
        """Note that a tensor is alive no longer."""
        with self._lock:
            self._tick += 1
            if self._round is not None:
                self._round.release(ordinal, self._tick)

    # rounds and plans

    def _enter_round(self, signature: Signature, resident: int) -> Round:
        """Return the running round, or a new one, once the last one has been learned from."""
        current = self._round
        if current is None or current.restarts(signature, self._entering, resident):
            if current is not None:
                self._learn(current)
            current = self._round = Round(resident, resident)
        self._entering = False
        return current

    def _learn(self, current: Round) -> None:
        """Make a plan of what was measured, and correct one that did not hold."""
        if current.astray:
            made = Schedule(current.tensors)
            made.leave(current.excess)
            self._schedules.insert(0, made)
            del self._schedules[_MAX_SCHEDULES:]
        else:
            self._correct(current)
            followed = current.schedule
            if current.crowded and followed in self._schedules and len(current.tensors) == len(followed.tensors):
                # all the same tensors: perhaps they live longer or die sooner than before
                self._schedules[self._schedules.index(followed)] = Schedule(current.tensors, followed.reserve)

    def _correct(self, current: Round) -> None:
        """Correct a plan that promised too little: measure again if data are to blame, else leave more to others."""
        followed = current.schedule
        if followed in self._schedules and current.stale:
            self._schedules.remove(followed)
        elif followed is not None and current.excess > followed.reserve:
            followed.leave(current.excess)

    def _place(self, current: Round, signature: Signature) -> int | None:
        """Find a tensor in the plan that is followed, or in another one that knows all that came before it too."""
        if current.astray:
            return None
        place = current.place(signature)
        if place is None:
            known = next((schedule for schedule in self._schedules if current.fits(schedule, signature)), None)
            current.astray = known is None
            if known is not None:
                self._schedules.remove(known)
                self._schedules.insert(0, known)
                known.solve(self.limit, current.base)
                current.follow(known)
                place = current.place(signature)
        return place

    # one tensor

    def _measured(
        self, meta: TensorMeta, flat: Tensor, held: Callable[[], int]
    ) -> tuple[Trial, tuple[Trial, ...], str]:
        """Try all actions, and take the one that leaves the fewest bytes."""
        trials = self._prober.probe(meta, flat, self._stores)
        resident = self._make_room(held, max(map(needed, trials)))
        trial = smallest(trials, self.limit - resident)
        if resident + needed(trial) > self.limit:
            self._give_up()
            movable = dispatch.on_accelerator(flat)
            raise BudgetError(_explain.exceeded(self.limit, self.max_error, meta, trials, trial, resident, movable))
        count = sum(other.refusal is None for other in trials)
        return trial, trials, f"measured: the fewest bytes of {count} actions that could be used"

    def _planned(
        self, current: Round, place: int, meta: TensorMeta, flat: Tensor, held: Callable[[], int]
    ) -> tuple[Trial, tuple[Trial, ...], str]:
        """Take the planned action, or the smallest one where that has no room."""
        schedule = current.schedule
        assert schedule is not None
        trial = schedule.chosen[place]
        takes = with_margin(trial, needed(trial))
        resident = self._make_room(held, takes)
        tight = resident + takes <= self.limit < resident + meta.nbytes
        if depends_on_data(trial) and (tight or current.excess > schedule.reserve):
            # no room for a surprise, or something was one: encoded once more, to know
            takes, promised = self._prober.takes(trial.action, flat), takes
            current.stale |= takes > promised
        if resident + takes <= self.limit:
            return trial, schedule.tensors[place].trials, f"planned: {schedule.reason(place)}"
        current.crowd(resident)
        reason = f"the fewest bytes: {size(resident)} are held, which leaves no room for '{trial.action}' as planned"
        trial, trials, _ = self._measured(meta, flat, held)
        return trial, trials, reason

    def _make_room(self, held: Callable[[], int], nbytes: int) -> int:
        """Wait for copies under way if they may be what leaves no room; return the bytes that are held then."""
        resident = held()
        if resident + nbytes > self.limit:
            for store in self._stores.values():
                store.flush()
            resident = held()
        return resident

    def _give_up(self) -> None:
        """Forget the round, so that no plan is made of half of it."""
        current, self._round = self._round, None
        if current is not None:
            self._correct(current)

    # explanations

    @property
    def window_bytes(self) -> int:
        """Bytes of the limit that plans leave to copies under way: what stores may have in flight, either way."""
        return copying_bytes(self.limit)

    @property
    def plan(self) -> tuple[PlanRow, ...]:
        """The plan that is followed, or that the next pass will follow; empty before the first pass."""
        with self._lock:
            schedule = self._latest()
            return () if schedule is None else tuple(schedule.rows())

    def explain(self) -> str:
        """Say what is done with each tensor and why, what is promised and what it costs; or what will happen."""
        with self._lock:
            schedule = self._latest()
            if schedule is None:
                return _explain.no_plan_yet(self.limit, self.actions, self.max_error)
            return _explain.plan(schedule, tuple(schedule.rows()), self.limit)

    def _latest(self) -> Schedule | None:
        current = self._round
        if current is None:
            if self._schedules and not self._schedules[0].chosen:
                self._schedules[0].solve(self.limit, 0)
            return self._schedules[0] if self._schedules else None
        if current.schedule is not None and not current.astray:
            return current.schedule
        draft = Schedule(current.tensors)
        draft.leave(current.excess)
        draft.solve(self.limit, current.base)
        return draft

    def __reduce__(self) -> tuple[Callable[..., "Budget"], tuple[Any, ...]]:
        """Copy and pickle as a budget that has seen nothing yet."""
        return _anew, (self.limit, self.max_error, self.actions)

    def __repr__(self) -> str:
        return f"Budget({self.limit}, max_error={self.max_error}, actions={self.actions})"


def _anew(limit: int, max_error: float, actions: tuple[str, ...]) -> Budget:
    return Budget(limit, max_error=max_error, actions=actions)
