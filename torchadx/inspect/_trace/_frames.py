"""Which module a time of a trace belongs to, and whether to its forward or its backward."""

import dataclasses

from torchadx.inspect._modules import RANGE, ModuleWatch
from torchadx.inspect._trace._nest import Nest
from torchadx.inspect._trace._trace import Node, Range, Trace


@dataclasses.dataclass(frozen=True, slots=True)
class Frame:
    """A module's run, or a node of the graph, which belongs to the module whose forward made it.

    Attributes:
        module: Path of the module; ``None`` for a node made outside of modules.
        run: It is a run of the module's forward.
        backward: It ran in backward: a node, or a run that recomputes what a checkpoint did not keep.
    """

    module: str | None
    start: float
    end: float
    thread: int
    run: bool
    backward: bool


def frames(trace: Trace, watch: ModuleWatch) -> Nest[Frame]:
    """Lay out every module's runs and nodes, nested as they ran.

    A node that no run made, or that another thread than the one watched made, counts to the frame around it: what a
    checkpoint recomputes in a device's thread, to the module that called the checkpoint.
    """
    runs = [span for span in trace.ranges if span.name.startswith(RANGE)]
    nest: Nest[Range | Node] = Nest([*runs, *trace.nodes])
    found: list[Frame] = []
    for item, end, parent in zip(nest.items, nest.ends, nest.parents, strict=True):
        around = found[parent] if parent >= 0 else None
        module: str | None
        if isinstance(item, Range):
            module = watch.path(int(item.name.removeprefix(RANGE)))
            backward = around is not None and around.backward
        else:
            own = item.forward_thread == trace.thread
            module = watch.owner(item.sequence) if own and item.sequence is not None else None
            module = around.module if module is None and around is not None else module
            backward = True
        found.append(Frame(module, item.start, end, item.thread, isinstance(item, Range), backward))
    return Nest(found)
