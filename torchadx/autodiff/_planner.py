"""From a recorded function to a schedule: cut the chain, weigh its segments, solve."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from torchadx.autodiff._chain import Chain, Link
from torchadx.autodiff._cost import ChainCosts
from torchadx.autodiff._dynamic import ACTIONS, Table
from torchadx.autodiff._errors import DerivativeError
from torchadx.autodiff._rates import Rates
from torchadx.autodiff._schedule import Move, peak, schedule, seconds
from torchadx.autodiff._segment import Segment, segment
from torchadx.memory.report import size

Mode = Literal["auto", "forward", "reverse", "mixed"]
MODES = ("auto", "forward", "reverse", "mixed")
FORWARD = frozenset(("known", "forward", "push"))
REVERSE = frozenset(("known", "reverse", "pull"))
# the dynamic programme takes the cube of this, in Python
_MOST_SEGMENTS = 36


@dataclasses.dataclass(frozen=True)
class Layout:
    """A chain cut into segments: what an explanation shows and a schedule refers to.

    Attributes:
        places: Nodes before which the chain is cut, both ends included.
        widths: Numbers that pass each place.
        shapes: Shapes of the tensors that pass each place.
        segments: What each stretch does and costs.
    """

    places: tuple[int, ...]
    widths: tuple[int, ...]
    shapes: tuple[tuple[tuple[int, ...], ...], ...]
    segments: tuple[Segment, ...]


@dataclasses.dataclass(frozen=True)
class Decision:
    """What to do, and what the alternatives would have cost.

    Attributes:
        layout: The chain.
        moves: What to do.
        factors: What to do to have the Jacobian as a product of two factors; empty if it has no narrow place.
        recompute: Whether each stretch is evaluated anew when its turn comes.
        forward: Seconds predicted of pure forward mode; infinite if it does not fit into the limit.
        reverse: The same of pure reverse mode.
        limit: Bytes that may be alive at once.
        tape: Bytes that are held throughout.
    """

    layout: Layout
    moves: tuple[Move, ...]
    factors: tuple[Move, ...]
    recompute: bool
    forward: float
    reverse: float
    limit: float
    tape: float

    @property
    def mode(self) -> str:
        """``"forward"``, ``"reverse"`` or ``"mixed"``."""
        actions = {move.action for move in self.moves}
        return "forward" if actions <= FORWARD else "reverse" if actions <= REVERSE else "mixed"

    @property
    def seconds(self) -> float:
        """Predicted, evaluation of the function apart."""
        return seconds(self.moves)

    @property
    def peak(self) -> float:
        """Bytes alive at once, the result apart."""
        return self.tape + peak(self.moves)


def lay_out(chain: Chain, links: Sequence[Link], rates: Rates, itemsize: int) -> Layout:
    """Cut a chain where it may be worth it."""
    places = _places(chain, links)
    metas = chain.program.metas
    return Layout(
        tuple(places),
        tuple(chain.width(place) for place in places),
        tuple(tuple(tuple(metas[value].shape) for value in chain.frontiers[place]) for place in places),
        tuple(segment(chain, links, first, last, rates, itemsize) for first, last in itertools.pairwise(places)),
    )


def _places(chain: Chain, links: Sequence[Link]) -> list[int]:
    """Choose places: not between an operation and a reshape of its result, and not too many."""
    last = len(links)
    reshapes = [len(link.parts) == 1 and link.parts[0].kind == "reshape" for link in links]
    first = next((number for number, is_reshape in enumerate(reshapes) if not is_reshape), last)
    inner = [place for place in range(first + 1, last) if not reshapes[place] and _real(chain, place)]
    if len(inner) >= _MOST_SEGMENTS:
        inner = _narrowest(inner, [chain.width(place) for place in inner])
    return [0, *inner, last]


def _real(chain: Chain, place: int) -> bool:
    """Whether every number there is real: the identity of complex numbers would need two directions for each."""
    return all(chain.program.metas[value].dtype.is_floating_point for value in chain.frontiers[place])


def _narrowest(places: list[int], widths: list[int]) -> list[int]:
    """Keep the places that are narrower than one beside them and not wider than the other; fill up evenly."""
    beside = zip([math.inf, *widths], widths, [*widths[1:], math.inf], strict=False)
    minima = [number for number, (a, width, b) in enumerate(beside) if width <= min(a, b) and width < max(a, b)]
    chosen = set(sorted(minima, key=widths.__getitem__)[: _MOST_SEGMENTS // 2])
    others = _MOST_SEGMENTS - 1 - len(chosen)
    chosen.update(k * len(places) // others for k in range(others))
    return [places[number] for number in sorted(chosen)]


def decide(
    layout: Layout,
    rates: Rates,
    itemsize: int,
    mode: Mode = "auto",
    chunk: int | None = None,
    limit: float = math.inf,
    samples: int = 1,
) -> Decision:
    """Choose how to compute the Jacobian of a chain.

    Raises:
        DerivativeError: Nothing fits into the limit.
    """
    costs = ChainCosts(layout.segments, layout.widths, rates, itemsize, samples, chunk)
    choices = dict.fromkeys((_actions(mode), FORWARD, REVERSE))
    ways = [way for actions in choices for way in _ways(costs, actions, limit, mode)]
    # in chunks a long sweep differs from the sum of its parts, so that a pure mode may turn out to be the best
    allowed = [way for way in ways if way.actions <= _actions(mode)]
    if mode == "mixed":
        allowed = [way for way in allowed if way.actions == ACTIONS] or allowed
    if not allowed:
        raise DerivativeError(_too_small(costs, limit, mode))
    best = min(allowed, key=lambda way: way.seconds)
    forward, reverse = (
        min((way.seconds for way in ways if way.actions == pure), default=math.inf) for pure in (FORWARD, REVERSE)
    )
    return Decision(layout, best.moves, best.factors, best.recompute, forward, reverse, limit, best.held)


class _Way(NamedTuple):
    """One way to do it: out of which actions, the moves and what they take, and what is held throughout."""

    actions: frozenset[str]
    moves: tuple[Move, ...]
    seconds: float
    factors: tuple[Move, ...]
    recompute: bool
    held: float


def _ways(costs: ChainCosts, actions: frozenset[str], limit: float, mode: Mode) -> Iterator[_Way]:
    """Solve, with derivatives held throughout and, under a limit, worked out again for each stretch."""
    for recompute in (False, True) if limit < math.inf else (False,):
        held = costs.ends if recompute else costs.tape
        used, rest = costs.recomputing() if recompute else costs, limit - held
        table = Table(used, rest, actions)
        step = (table.mixed() if mode == "mixed" and actions == ACTIONS else None) or table.fastest(0, used.length)
        if step is not None:
            moves = schedule(step, used, rest)
            yield _Way(actions, moves, seconds(moves), _factors(table, used, rest), recompute, held)


def _actions(mode: Mode) -> frozenset[str]:
    return {"forward": FORWARD, "reverse": REVERSE}.get(mode, ACTIONS)


def _factors(table: Table, costs: ChainCosts, limit: float) -> tuple[Move, ...]:
    """Moves that leave two factors on the stack, cut at the narrowest place."""
    last = costs.length
    rows, columns = costs.width(last), costs.width(0)
    cuts = [k for k in range(1, last) if table.best[0, k] and table.best[k, last]]
    if not cuts:
        return ()
    cut = min(cuts, key=lambda k: (costs.width(k), table.best[0, k][0].seconds + table.best[k, last][0].seconds))
    if costs.width(cut) * (rows + columns) >= rows * columns:
        return ()
    right, left = table.fastest(0, cut), table.fastest(cut, last)
    assert right is not None
    assert left is not None
    return schedule(right, costs, limit) + schedule(left, costs, limit - costs.block(0, cut))


def _too_small(costs: ChainCosts, limit: float, mode: Mode) -> str:
    need = min(
        held + min(step.peak for step in _smallest(kind, mode).best[0, costs.length])
        for kind, held in ((costs, costs.tape), (costs.recomputing(), costs.ends))
    )
    return (
        f"memory={size(limit)} is too little for this Jacobian in mode {mode!r}: {size(need)} are needed beside the "
        "result, one direction at a time. Raise memory=, or ask for fewer samples or another mode."
    )


def _smallest(costs: ChainCosts, mode: Mode) -> Table:
    # a limit that all fits into, finite so that peaks are told
    return Table(costs, float(1 << 62), _actions(mode))
