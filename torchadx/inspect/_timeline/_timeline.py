"""Memory over one training step: what it was, whose, and what was alive at the peak."""

import collections
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from torchadx.inspect._draw import draw_timeline
from torchadx.inspect._names import module_name
from torchadx.inspect._timeline import _blocks
from torchadx.inspect._timeline._blocks import CATEGORIES, Block, Phase
from torchadx.inspect._timeline._curve import Curve, curve
from torchadx.inspect._timeline._step import Step, run
from torchadx.memory._dataframe import dataframe
from torchadx.memory.report import columns, size

_BARS = " ▁▂▃▄▅▆▇█"


@dataclasses.dataclass(frozen=True, slots=True)
class Alive:
    """Blocks of one kind that were alive at the peak.

    Attributes:
        category: One of ``"parameter"``, ``"optimizer state"``, ``"gradient"``, ``"activation"``, ``"input"`` and
            ``"temporary"``.
        module: Path of the module that allocated them, or whose parameter they are of; ``None`` outside of modules.
        op: The operator that allocated them; ``None`` for what was there before.
        nbytes: Their bytes.
        count: How many they are.
    """

    category: str
    module: str | None
    op: str | None
    nbytes: int
    count: int


@dataclasses.dataclass(frozen=True, slots=True)
class Rise:
    """What a module's runs left allocated when they were over.

    Attributes:
        device: ``"cpu"``, ``"cuda:0"``.
        module: Path of the module; ``None`` outside of modules.
        phase: ``"forward"``, ``"backward"``, ``"optimizer"`` or ``"other"``.
        nbytes: Bytes that outlived the run, the node of backward, or else the phase, that allocated them.
    """

    device: str
    module: str | None
    phase: str
    nbytes: int


@dataclasses.dataclass(frozen=True)
class DeviceTimeline:
    """Memory of one device over a step.

    Attributes:
        curve: Bytes by category over time.
        peak_ms: When most was allocated, in milliseconds since the step began.
        peak_bytes: How much that was.
        alive: What was alive then, most bytes first.
    """

    curve: Curve
    peak_ms: float
    peak_bytes: int
    alive: tuple[Alive, ...]


@dataclasses.dataclass(frozen=True)
class Timeline:
    """Memory over one training step, as torch's allocators saw it. Holds no tensor.

    Attributes:
        devices: By name, ``"cpu"``, ``"cuda:0"``.
        phases: Parts of the step.
        rises: What each module left allocated, most first.
        notes: What else is worth knowing.
    """

    devices: Mapping[str, DeviceTimeline]
    phases: tuple[Phase, ...]
    rises: tuple[Rise, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers, strings, lists and dictionaries, fit for JSON."""
        return {
            "devices": {
                name: {
                    "times": list(device.curve.times),
                    "categories": {category: list(values) for category, values in device.curve.categories.items()},
                    "peak": {
                        "time": device.peak_ms,
                        "bytes": device.peak_bytes,
                        "alive": [dataclasses.asdict(each) for each in device.alive],
                    },
                }
                for name, device in self.devices.items()
            },
            "phases": [dataclasses.asdict(phase) for phase in self.phases],
            "rises": [
                {"device": rise.device, "module": rise.module, "phase": rise.phase, "bytes": rise.nbytes}
                for rise in self.rises
            ],
            "notes": list(self.notes),
        }

    def to_json(self, indent: int | None = None) -> str:
        """Return :meth:`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=indent)

    def to_dataframe(self) -> Any:
        """Return the curves as a ``pandas.DataFrame``: device, time in ms, and a column of bytes for each category.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        points = [point for name, device in self.devices.items() for point in device.curve.points(name)]
        return dataframe(points, ("device", "ms", *CATEGORIES))

    def draw(self, path: str | os.PathLike[str]) -> None:
        """Draw the curves, stacked by category, with the phases behind them.

        Args:
            path: A file to write; matplotlib knows ``.png``, ``.svg`` and ``.pdf``.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        draw_timeline(self, path)

    def __str__(self) -> str:
        """Draw each device's curve and what was alive at its peak, then what modules left allocated."""
        return "\n".join(self._lines())

    def _lines(self, limit: int = 12) -> Iterator[str]:
        for name, device in self.devices.items():
            yield f"{name}: at most {size(device.peak_bytes)}, {device.peak_ms:.2f} ms after the step began"
            yield from _sketch(device, self.phases)
            yield "alive then:"
            lines = [("category", "module", "bytes", "blocks", "allocated by")]
            for each in device.alive[:limit]:
                place = module_name(each.module)
                lines.append((each.category, place, size(each.nbytes), str(each.count), each.op or "before the step"))
            yield from (f"  {line}" for line in columns(lines, ("bytes", "blocks")))
            if len(device.alive) > limit:
                yield f"  ... and {size(sum(each.nbytes for each in device.alive[limit:]))} more"
        yield "left allocated by runs that were over:"
        left = [("module", "phase", "bytes")]
        left += [(module_name(rise.module), rise.phase, size(rise.nbytes)) for rise in self.rises[:limit]]
        yield from (f"  {line}" for line in columns(left, ("bytes",)))
        yield from (f"note: {note}" for note in self.notes)


def _sketch(device: DeviceTimeline, phases: Sequence[Phase], width: int = 72) -> Iterator[str]:
    """Draw a curve in one line of text, and beneath it where the phases begin."""
    end = max((phase.end for phase in phases), default=0.0)
    if not end or not device.peak_bytes:
        return
    tops = [0] * width
    for time, total in device.curve.totals():
        place = min(width - 1, max(0, int(time / end * width)))
        tops[place] = max(tops[place], total)
    for place in range(1, width):
        tops[place] = tops[place] or tops[place - 1]
    yield "  " + "".join(_BARS[round(top / device.peak_bytes * (len(_BARS) - 1))] for top in tops)
    marks = [" "] * width
    for phase in phases:
        if phase.name != "other":
            start = int(phase.start / end * width)
            text = f"|{phase.name}"[: max(1, int((phase.end - phase.start) / end * width))]
            marks[start : start + len(text)] = text
    yield "  " + "".join(marks).rstrip()


def timeline(step: Callable[[], object], *, model: nn.Module | None = None, warmup: int = 1) -> Timeline:
    """Record memory over one training step, on the CPU as on GPUs.

    The step runs under ``torch.profiler``, after ``warmup`` others whose gradients and optimizer state it finds. The
    curve is that of torch's allocators, allocation by allocation. A block is an activation if a graph saves it for
    backward, or if a checkpoint computed it again; a parameter, gradient or optimizer state if modules and optimizers
    hold it; an input if a module was given it; and temporary otherwise.

    Parameters and inputs from before are counted from the beginning. While it records, a function mode is on, which
    sees calls of ``backward()`` and ``autograd.grad``.

    Args:
        step: One training step: forward, backward, optimizer; whatever it changes, it changes ``1 + warmup`` times.
        model: The model, where parts of it are called by themselves.
        warmup: How many steps run before the one that is recorded.

    Raises:
        TypeError: The step is no function, or the model no module.
        ValueError: ``warmup`` is negative.
        RuntimeError: Another recording is running.

    >>> model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
    >>> x = torch.randn(128, 64)
    >>> memory = timeline(lambda: model(x).square().mean().backward())
    >>> [each.nbytes for each in memory.devices["cpu"].alive if each.category == "activation"][0] == 128 * 256 * 4
    True
    """
    return summarize(run(step, model, warmup, lambda modules, outputs: None))


def summarize(step: Step) -> Timeline:
    """Draw up the timeline of a recorded step."""
    span = _blocks.window(step.trace)
    found = [block for block in _blocks.blocks(step) if block.end > span.start and block.start < span.end]
    devices = {}
    for name in sorted({block.device for block in found}):
        own = [block for block in found if block.device == name]
        line = curve(own, span.start, span.end)
        devices[name] = DeviceTimeline(line, line.peak_ms, line.peak_bytes, _alive(own, line.peak_at))
    return Timeline(devices, _blocks.phases(step), _rises(found, span.start), tuple(_notes(found)))


def _notes(found: Sequence[Block]) -> Iterator[str]:
    unseen = [block for block in found if block.unseen]
    if unseen:
        yield (
            f"{len(unseen)} blocks ({size(sum(block.nbytes for block in unseen))}) were freed by threads that torch's "
            "profiler does not follow, such as a disk store's: they, and others like them, count until their place is "
            "used again"
        )


def _alive(found: Sequence[Block], time: float) -> tuple[Alive, ...]:
    groups: dict[tuple[str, str | None, str | None], list[int]] = collections.defaultdict(lambda: [0, 0])
    for block in found:
        if block.start <= time < block.end:
            group = groups[block.category, block.module, block.op]
            group[0] += block.nbytes
            group[1] += 1
    alive = (Alive(*key, *sums) for key, sums in groups.items())
    return tuple(sorted(alive, key=lambda each: (-each.nbytes, CATEGORIES.index(each.category))))


def _rises(found: Sequence[Block], start: float) -> tuple[Rise, ...]:
    sums: collections.Counter[tuple[str, str | None, str]] = collections.Counter()
    for block in found:
        if block.outlives and block.start >= start:
            sums[block.device, block.module, block.phase] += block.nbytes
    return tuple(Rise(*key, nbytes) for key, nbytes in sums.most_common())
