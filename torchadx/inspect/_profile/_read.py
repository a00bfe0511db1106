"""Read the evidence of a profile from a trace."""

from collections.abc import Iterator

from torchadx.inspect._modules import RANGE, ModuleWatch
from torchadx.inspect._names import module_name
from torchadx.inspect._profile._evidence import Evidence
from torchadx.inspect._profile._ops import busy_ms, op_rows, range_rows
from torchadx.inspect._profile._rows import module_rows
from torchadx.inspect._trace._frames import Frame, frames
from torchadx.inspect._trace._nest import Nest
from torchadx.inspect._trace._trace import RECORDING, Trace


def read(trace: Trace, watch: ModuleWatch) -> Evidence:
    """Sum a trace up."""
    nest, classes = frames(trace, watch), watch.classes()
    return Evidence(
        modules=module_rows(trace, nest, watch),
        ops=op_rows(trace),
        ranges=range_rows(trace),
        total_ms=trace.end / 1e3,
        kernels=len(trace.kernels),
        busy_ms=busy_ms((kernel.start, kernel.end) for kernel in trace.kernels),
        pairs=tuple(dict.fromkeys(_pairs(nest, classes))),
    )


def labels(trace: Trace, watch: ModuleWatch) -> dict[str, str]:
    """Map the names of ranges that torchadx opened to names for people."""
    classes, names = watch.classes(), {RECORDING: "torchadx.inspect.profile"}
    for span in trace.ranges:
        if span.name.startswith(RANGE):
            path = watch.path(int(span.name.removeprefix(RANGE)))
            # a module made inside of another's forward has its class for a name
            names[span.name] = f"{module_name(path)} ({classes[path]})" if path in classes else path
    return names


def _pairs(nest: Nest[Frame], classes: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the paths of modules of which the first is a Linear and the second ran next, called by the same."""
    last: dict[int, Frame] = {}
    for frame, parent in zip(nest.items, nest.parents, strict=True):
        if not frame.run or frame.backward or frame.module is None:
            continue
        before = last.get(parent)
        if before is not None and before.module is not None and classes.get(before.module) == "Linear":
            yield before.module, frame.module
        last[parent] = frame
