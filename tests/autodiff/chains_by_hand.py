"""Chains whose costs are written down, and every way there is to compute their Jacobians."""

import dataclasses
import math

from hypothesis import strategies as st


@dataclasses.dataclass(frozen=True)
class Written:
    """Costs as the dynamic programme asks for them, all of them integers, so that sums are exact.

    ``calls`` are paid once a chunk, ``head`` and ``tail`` are saved a direction of the identity.
    """

    widths: tuple[int, ...]
    tangent: tuple[int, ...]
    adjoint: tuple[int, ...]
    free: tuple[int | None, ...] = ()
    head: tuple[int, ...] = ()
    tail: tuple[int, ...] = ()
    calls: tuple[int, ...] = ()
    rooms: tuple[int, ...] = ()

    @property
    def length(self):
        return len(self.tangent)

    def width(self, place):
        return self.widths[place]

    def known(self, i):
        return self.free[i] if self.free else None

    def room(self, i, j, adjoint):
        return max(self.rooms[i:j], default=0)

    def sweep(self, i, j, count, adjoint, seeded, space):
        room = self.room(i, j, adjoint)
        chunk = count if room * count <= space else space // room
        if chunk < 1:
            return math.inf
        each = sum((self.adjoint if adjoint else self.tangent)[i:j])
        if seeded:
            each -= sum(self.tail[j - 1 : j] if adjoint else self.head[i : i + 1])
        return math.ceil(count / chunk) * sum(self.calls[i:j]) + count * each

    def multiply(self, rows, inner, columns):
        return rows * inner * columns

    def block(self, i, j):
        return 0 if (i, j) == (0, self.length) else self.widths[i] * self.widths[j]


def every_tree(costs, limit=math.inf, actions=("known", "forward", "reverse", "push", "pull", "multiply")):
    """(seconds, peak, action) of every bracket tree over the whole chain, whatever it costs, by enumeration alone.

    A tree needs what its parts need in their turn, then the blocks it reads, the one it makes and a direction between.
    """
    found = {}
    for span in range(1, costs.length + 1):
        for i in range(costs.length - span + 1):
            found[i, i + span] = list(_trees(costs, limit, actions, found, i, i + span))
    return found[0, costs.length]


def _trees(costs, limit, actions, found, i, j):
    own = costs.block(i, j)
    n, m = costs.width(i), costs.width(j)
    if "known" in actions and j == i + 1 and costs.known(i) is not None:
        yield costs.known(i), own, "known"
    for action, count, adjoint in (("forward", n, False), ("reverse", m, True)):
        if action in actions:
            seconds = costs.sweep(i, j, count, adjoint, True, limit - own)
            yield seconds, own + costs.room(i, j, adjoint), action
    for k in range(i + 1, j):
        lower, upper = costs.block(i, k), costs.block(k, j)
        if "push" in actions:
            seconds = costs.sweep(k, j, n, False, False, limit - own - lower)
            need = own + lower + costs.room(k, j, False)
            yield from ((seconds + part[0], max(need, part[1]), "push") for part in found[i, k])
        if "pull" in actions:
            seconds = costs.sweep(i, k, m, True, False, limit - own - upper)
            need = own + upper + costs.room(i, k, True)
            yield from ((seconds + part[0], max(need, part[1]), "pull") for part in found[k, j])
        if "multiply" in actions:
            seconds = costs.multiply(m, costs.width(k), n)
            for right in found[i, k]:
                for left in found[k, j]:
                    need = max(right[1], lower + left[1], lower + upper + own)
                    yield seconds + right[0] + left[0], need, "multiply"


def cheapest(trees, limit=math.inf):
    """Least seconds among the trees that fit; ``None`` if none does."""
    return min((seconds for seconds, peak, _ in trees if peak <= limit and seconds < math.inf), default=None)


def tuples(length, low, high):
    return st.tuples(*[st.integers(low, high)] * length)


@st.composite
def written(draw, longest=5, limited=False):
    """A random chain; with what a limit is about, or without."""
    q = draw(st.integers(1, longest))
    free = st.tuples(*[st.one_of(st.none(), st.integers(0, 5))] * q)
    tangent, adjoint = draw(tuples(q, 1, 12)), draw(tuples(q, 1, 12))
    return Written(
        widths=draw(tuples(q + 1, 1, 6)),
        tangent=tangent,
        adjoint=adjoint,
        free=draw(free),
        head=tuple(min(saved, cost) for saved, cost in zip(draw(tuples(q, 0, 4)), tangent, strict=True)),
        tail=tuple(min(saved, cost) for saved, cost in zip(draw(tuples(q, 0, 4)), adjoint, strict=True)),
        calls=draw(tuples(q, 0, 9)),
        rooms=draw(tuples(q, 1, 9)) if limited else (),
    )
