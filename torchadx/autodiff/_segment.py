"""What one stretch of a chain costs."""

import dataclasses
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
    head = costs[real[0] - first] if real and _opens(chain, links, first, real[0]) else 0.0
    tail = costs[real[-1] - first] if real and _opens(chain, links, real[-1], last - 1) else 0.0
    names = tuple(links[number].node.call.target.overloadpacket.__name__ for number in real)
    return Segment(
        first, last, flops, calls, each, each, head, tail, len(real) == 1 and head > 0 < tail, room, tape, names
    )


def _reshapes(link: Link) -> bool:
    return len(link.parts) == 1 and link.parts[0].kind == "reshape"


def _opens(chain: Chain, links: Sequence[Link], first: int, last: int) -> bool:
    """Whether nodes first..last pass a single tensor, reshape it at most, and one end of theirs is a known matrix."""
    stretch = range(first, last + 1)
    known = [number for number in stretch if links[number].parts[0].matrix is not None]
    return len(known) == 1 and all(
        chain.alone(number, links[number]) and (number in known or _reshapes(links[number])) for number in stretch
    )
