"""What moving directions through a chain costs: arithmetic on its segments and on the rates of this machine."""

import itertools
import math
from collections.abc import Sequence

from torchadx.autodiff._rates import Rates
from torchadx.autodiff._segment import Segment


class ChainCosts:
    """Costs of a chain that is cut into segments, as the dynamic programme asks for them.

    Args:
        segments: The stretches, in order.
        widths: Numbers that pass each place; one more than there are segments.
        rates: What this machine does a second.
        itemsize: Bytes of a number.
        samples: How many samples go through at once.
        chunk: Directions at once; ``None`` lets the working set decide.
        recompute: Whether each stretch is evaluated anew when its turn comes, and holds its derivatives only then.
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
        self._calls = [0.0, *itertools.accumulate(segment.calls for segment in segments)]
        self._each = {
            False: [0.0, *itertools.accumulate(segment.forward for segment in segments)],
            True: [0.0, *itertools.accumulate(segment.reverse for segment in segments)],
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
