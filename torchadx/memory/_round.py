"""A sequence of saved tensors that repeats, and how far it has come along its plan."""

import collections
import dataclasses

from torchadx.memory._schedule import Schedule, Seen, Signature

# a round ends here whatever is alive, so that a pass may be endless
MAX_TENSORS = 4096


@dataclasses.dataclass(slots=True)
class Round:
    """A sequence of tensors that repeats: normally one pass; passes whose graphs are alive together are one round.

    Attributes:
        base: Bytes that others held when it began.
        highest: The most bytes held so far, by all.
        tensors: Its tensors.
        alive: Those that are held, by ordinal. Of earlier passes of the round nobody tells when they are not any more.
        own: Bytes promised for what it holds.
        standing: Bytes of the tensors that are alive, as they were.
        tallest: The most that ever were.
        schedule: The plan it follows.
        open: For each signature, which tensors of the plan have not come yet.
        astray: Whether a tensor came that no plan knows: from there on everything is measured.
        moved: Whether any of them moved elsewhere.
        excess: By how much more was held than promised, at most: by tensors too small to ask about, by other graphs, by
            data that compress less well.
        crowded: Whether a planned action had no room.
        stale: Whether a tensor turned out larger than was promised for it.
    """

    base: int
    highest: int
    tensors: list[Seen] = dataclasses.field(default_factory=list)
    alive: dict[int, Seen] = dataclasses.field(default_factory=dict)
    own: int = 0
    standing: int = 0
    tallest: int = 0
    schedule: Schedule | None = None
    open: dict[Signature, collections.deque[int]] = dataclasses.field(default_factory=dict)
    astray: bool = False
    moved: bool = False
    excess: int = 0
    crowded: bool = False
    stale: bool = False

    def restarts(self, signature: Signature, entering: bool, resident: int) -> bool:
        """Whether a tensor is the first one of another round.

        So it is at the start of a pass, once most of the bytes that were held for this round are free (what earlier
        passes of it moved elsewhere, nobody knows of), and within a pass, once most of its tensors are gone and the
        sequence begins anew.
        """
        if len(self.tensors) >= MAX_TENSORS:
            return True
        if entering:
            return resident - self.base <= (self.highest - self.base) / 2
        return signature == self.tensors[0].signature and self.standing <= self.tallest / 2

    def place(self, signature: Signature) -> int | None:
        """Return a tensor's place in the plan, and take it; ``None`` if the plan has none left."""
        places = self.open.get(signature)
        return places.popleft() if places else None

    def fits(self, schedule: Schedule, signature: Signature) -> bool:
        """Whether a plan has places for all tensors that came, and for another one."""
        return collections.Counter([*(seen.signature for seen in self.tensors), signature]) <= schedule.signatures

    def follow(self, schedule: Schedule) -> None:
        """Take up a plan; what came already takes its places in it."""
        self.schedule = schedule
        self.open = collections.defaultdict(collections.deque)
        for index, planned in enumerate(schedule.tensors):
            self.open[planned.signature].append(index)
        for seen in self.tensors:
            self.open[seen.signature].popleft()

    def note(self, resident: int) -> None:
        """Compare what is held with what was promised."""
        # what is on its way elsewhere is held, but not for long
        if not self.moved:
            self.excess = max(self.excess, resident - self.base - self.own)

    def crowd(self, resident: int) -> None:
        """Note that a planned action had no room, and nothing is under way."""
        self.crowded = True
        self.excess = max(self.excess, resident - self.base - self.own)

    def add(self, ordinal: int, seen: Seen, before: int, moved: bool) -> None:
        """Count a tensor in, before which so many bytes were held."""
        self.tensors.append(seen)
        self.alive[ordinal] = seen
        self.own += seen.promised
        self.standing += seen.signature.nbytes
        self.tallest = max(self.tallest, self.standing)
        self.highest = max(self.highest, before + seen.promised)
        self.moved |= moved

    def release(self, ordinal: int, tick: int) -> None:
        """Count a tensor out, if it is one of this round."""
        seen = self.alive.pop(ordinal, None)
        if seen is not None:
            seen.died = tick
            self.own -= seen.promised
            self.standing -= seen.signature.nbytes
