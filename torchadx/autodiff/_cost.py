"""What moving directions costs on this machine: a few rates, measured once, and the arithmetic that uses them."""

import dataclasses
import math
from collections.abc import Sequence

from torchadx.autodiff._chain import Chain, Link
from torchadx.autodiff._rates import Rates

_FREE = ("reshape", "view")


@dataclasses.dataclass(frozen=True)
class Segment:
    """What one stretch of a chain costs.

    Attributes:
        first: First node.
        last: Behind the last node.
        flops: Floating-point operations a direction.
        calls: Seconds a batch of directions, however many they are.
        forward: Seconds a tangent.
        reverse: Seconds a cotangent.
        head: Seconds a tangent that are saved where the segment begins with a known matrix, in place of the identity.
        tail: The same for a cotangent, where it ends with one.
        known: Whether the whole segment is a known matrix.
        room: Bytes a direction has at once at most.
        tape: Bytes that the derivatives of its operations hold.
        operations: Names of what it does, views apart.
    """

    first: int
    last: int
    flops: float
    calls: float
    forward: float
    reverse: float
    head: float
    tail: float
    known: bool
    room: float
    tape: float
    operations: tuple[str, ...]


def segment(chain: Chain, links: Sequence[Link], first: int, last: int, rates: Rates, itemsize: int) -> Segment:
    """Add up what nodes first..last-1 cost."""
    metas = chain.program.metas
    flops = calls = each = room = tape = 0.0
    costs: list[float] = []
    for number in range(first, last):
        link, seconds, fixed = links[number], 0.0, 0.0
        for edge, part in zip(link.node.edges, link.parts, strict=True):
            moved = metas[edge.source].shape.numel() + metas[edge.target].shape.numel()
            fixed += rates.overhead(part.kind)
            seconds += 0.0 if part.kind in _FREE else rates.seconds(part.kind, part.flops, moved * itemsize)
            flops += 0 if part.kind in _FREE else part.flops
        costs.append(seconds)
        calls, each = calls + fixed, each + seconds
        # arguments and results, and as much again for what an operation makes on its way
        room = max(room, 2.0 * itemsize * (chain.width(number) + chain.width(number + 1)))
        tape += 2.0 * sum(metas[index].nbytes for index in link.node.call.outputs if index is not None)
    real = [number for number in range(first, last) if not _reshapes(links[number])]
    matrices = [number for number in (real[:1] + real[-1:]) if _matrix(chain, number, links[number])]
    head = costs[real[0] - first] if real and real[:1] == matrices[:1] and _opens(chain, links, first, real[0]) else 0.0
    tail = costs[real[-1] - first] if real and real[-1:] == matrices[-1:] and _opens(chain, links, real[-1] + 1, last) else 0.0
    names = tuple(links[number].node.call.target.overloadpacket.__name__ for number in real)
    known = len(real) == 1 and bool(head) and bool(tail)
    return Segment(first, last, flops, calls, each, each, head, tail, known, room, tape, names)


def _reshapes(link: Link) -> bool:
    return len(link.parts) == 1 and link.parts[0].kind == "reshape"


def _matrix(chain: Chain, number: int, link: Link) -> bool:
    return chain.alone(number, link) and link.parts[0].matrix is not None


def _opens(chain: Chain, links: Sequence[Link], first: int, last: int) -> bool:
    """Whether nothing but reshapes of a single tensor lies between two nodes."""
    return all(chain.alone(number, links[number]) and _reshapes(links[number]) for number in range(first, last))


class ChainCosts:
    """Costs of a chain that is cut into segments, as the dynamic programme asks for them.

    Args:
        segments: The stretches, in order.
        widths: Numbers that pass each place; one more than there are segments.
        rates: What this machine does a second.
        itemsize: Bytes of a number.
        samples: How many samples go through at once.
        chunk: Directions at once; ``None`` lets the working set decide.
        recompute: Whether each stretch is evaluated anew when its turn comes, so that it holds its derivatives only then.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        widths: Sequence[int],
        rates: Rates,
        itemsize: int,
        samples: int = 1,
        chunk: int | None = None,
        recompute: bool = False,
    ) -> None:
        self.length = len(segments)
        self._recompute = recompute
        self.segments = tuple(segments)
        self._widths = tuple(widths)
        self._rates = rates
        self._itemsize = itemsize
        self._samples = samples
        self._chunk = chunk
        self._calls = _sums(segment.calls for segment in segments)
        self._each = {
            False: _sums(segment.forward for segment in segments),
            True: _sums(segment.reverse for segment in segments),
        }

    def width(self, place: int) -> int:
        """Numbers that pass a place."""
        return self._widths[place]

    def known(self, i: int) -> float | None:
        """Seconds for a segment's Jacobian without moving directions: none, or there is no such way."""
        return 0.0 if self.segments[i].known else None

    def room(self, i: int, j: int, adjoint: bool) -> float:
        """Bytes that a single direction needs on its way, and what is held for all of them."""
        return self._direction(i, j) + self._held(i, j)

    def bytes_for(self, i: int, j: int, chunk: int) -> float:
        """Bytes that so many directions at once need on their way."""
        return chunk * self._direction(i, j) + self._held(i, j)

    def _direction(self, i: int, j: int) -> float:
        # what directions begin as and end as is copied at most once
        ends = self._itemsize * (self._widths[i] + self._widths[j])
        return self._samples * (ends + max(segment.room for segment in self.segments[i:j]))

    def _held(self, i: int, j: int) -> float:
        if not self._recompute:
            return 0.0
        # evaluating again also passes what lies before
        before = max((segment.tape for segment in self.segments[:i]), default=0.0)
        return self._samples * (before + sum(segment.tape for segment in self.segments[i:j]))

    def chunk(self, i: int, j: int, count: int, adjoint: bool, space: float) -> int:
        """Return how many directions go through segments i..j-1 at once; 0 if not even one fits into ``space``."""
        room = self._direction(i, j)
        space -= self._held(i, j)
        fitting = count if room * count <= space else int(space // room)
        if self._chunk is not None:
            return min(self._chunk, fitting, count)
        # beyond some size a batch falls out of the caches; below some number calls cost more than they move
        wanted = max(int(self._rates.working_set // room), 8)
        return min(wanted if wanted < count else count, max(fitting, 0))

    def sweep(self, i: int, j: int, count: int, adjoint: bool, seeded: bool, space: float) -> float:
        """Seconds for directions through segments i..j-1."""
        chunk = self.chunk(i, j, count, adjoint, space)
        if chunk < 1:
            return math.inf
        each = self._each[adjoint]
        moving = each[j] - each[i]
        if seeded:
            moving -= self.segments[j - 1].tail if adjoint else self.segments[i].head
        calls = self._calls[j] - self._calls[i]
        return math.ceil(count / chunk) * calls + self._samples * count * moving

    def multiply(self, rows: int, inner: int, columns: int) -> float:
        """Seconds for a dense product."""
        flops = 2.0 * rows * inner * columns
        moved = self._itemsize * (rows * inner + inner * columns + rows * columns)
        # a product ends a sweep and begins another
        return 2 * self._rates.overhead("product") + self._samples * self._rates.seconds("product", flops, moved)

    def block(self, i: int, j: int) -> float:
        """Bytes of a Jacobian; that of all is the caller's."""
        if (i, j) == (0, self.length):
            return 0.0
        return float(self._samples * self._itemsize * self._widths[i] * self._widths[j])

    def recomputing(self) -> "ChainCosts":
        """Return the same chain, with each stretch evaluated anew when its turn comes."""
        given = self._widths, self._rates, self._itemsize, self._samples, self._chunk
        return ChainCosts(self.segments, *given, recompute=True)

    @property
    def ends(self) -> float:
        """Bytes that are held throughout when stretches are evaluated anew: what an operation has in flight."""
        return self._samples * max(segment.tape for segment in self.segments)

    @property
    def tape(self) -> float:
        """Bytes that the derivatives of all operations hold."""
        return self._samples * sum(segment.tape for segment in self.segments)


def _sums(values: object) -> list[float]:
    sums = [0.0]
    for value in values:  # type: ignore[attr-defined]
        sums.append(sums[-1] + value)
    return sums
