"""Time and memory of every module's forward and backward, from one recording by torch's profiler."""

import contextlib
import gzip
import json
import os
import pathlib
import re
import warnings
import zlib
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from torch.profiler import profile as TorchProfile

    from torchadx.inspect._modules import ModuleWatch
    from torchadx.inspect._profile._evidence import Advice, Evidence
    from torchadx.inspect._profile._ops import OpRow
    from torchadx.inspect._profile._rows import ModuleRow
    from torchadx.inspect._trace._trace import Recording

#: what modules are sorted by: the largest sum of these columns comes first
SORTS = {
    "forward": ("forward_ms",),
    "backward": ("backward_ms",),
    "total": ("forward_ms", "backward_ms"),
    "self": ("forward_self_ms", "backward_self_ms"),
    "device": ("device_forward_ms", "device_backward_ms"),
    "memory": ("forward_bytes",),
    "calls": ("calls",),
    "order": (),
}
OP_SORTS = {"self": "self_ms", "total": "total_ms", "device": "device_ms", "memory": "self_bytes", "calls": "calls"}
_OFF = "profile: not enabled (enabled=False), nothing was measured"


def profile(
    enabled: bool = True,
    *,
    model: nn.Module | None = None,
    shapes: bool = True,
    memory: bool = True,
    stacks: bool = False,
    sort: str = "backward",
    top: int = 20,
) -> "Profile":
    """Measure what each module's forward and its backward cost, for all that runs in the block.

    torch's profiler records operators and backward nodes; hooks around every module say which forward they are of. A
    backward node belongs to the innermost module whose forward made it. What a checkpoint recomputes counts to
    backward. Modules that are called often are summed up. Let the code run once before: the first run of anything
    pays for what later ones find ready, and so does the first recording of a process. Record a few steps: leaving the
    block reads the trace, which takes some seconds for 100,000 operators.

    Args:
        enabled: ``False`` measures nothing and costs nothing; the results are empty and say so.
        model: The model, where parts of it are called by themselves.
        shapes: Record operators' shapes, for ``key_averages(group_by_input_shape=True)``.
        memory: Record what allocators do.
        stacks: Record Python functions, for the exported trace and ``key_averages(group_by_stack_n=5)``. This slows
            Python down.
        sort: What the printed table is sorted by; see :meth:`Profile.modules`.
        top: How many modules are printed.

    Returns:
        A context manager, which has the results once it is left.

    Raises:
        ValueError: ``sort`` or ``top`` is not one of those possible.
        TypeError: ``model`` is no module.
        RuntimeError: On entering, another recording of torchadx.inspect is running; on leaving, another profiler of
            torch ran inside of the block.

    >>> layer = nn.Linear(4, 2)
    >>> with profile() as p:
    ...     layer(torch.ones(3, 4)).sum().backward()
    >>> [(row.module, row.class_name, row.calls) for row in p.modules("order")]
    [(None, None, 0), ('', 'Linear', 1)]
    """
    _check_sort(sort, SORTS)
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module or None, got {type(model).__name__}")
    if top < 1:
        raise ValueError(f"top must be at least 1, the number of modules to print; got {top}")
    return Profile(enabled, model, {"shapes": shapes, "memory": memory, "stacks": stacks}, sort, top)


class Profile:
    """What :func:`profile` measured: rows, text, data. Nothing can be read before its block is left."""

    def __init__(self, enabled: bool, model: nn.Module | None, options: dict[str, bool], sort: str, top: int) -> None:
        self._enabled, self._model, self._options, self._sort, self._top = enabled, model, options, sort, top
        self._stack: contextlib.ExitStack | None = None
        self._recording: Recording | None = None
        self._watch: ModuleWatch | None = None
        self._evidence: Evidence | None = None
        self._chrome, self._labels = b"", dict[str, str]()
        self._profiler: TorchProfile | None = None

    def __enter__(self) -> "Profile":
        if not self._enabled:
            return self
        from torchadx.inspect._modules import ModuleWatch
        from torchadx.inspect._trace._trace import Recording

        recording = Recording(**self._options, keep=True)
        watch = ModuleWatch(self._model, ranges=True)
        with contextlib.ExitStack() as stack:
            stack.enter_context(recording)
            stack.enter_context(watch)
            self._stack = stack.pop_all()
        self._recording, self._watch, self._evidence = recording, watch, None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._stack is None or self._recording is None or self._watch is None:
            return
        stack, recording, watch = self._stack, self._recording, self._watch
        # whatever happens, no hook and no module stays behind
        self._stack = self._recording = self._watch = self._model = None
        stack.__exit__(kind, error, traceback)
        if error is None or isinstance(error, Exception):
            self._read(recording, watch)

    def modules(self, sort: str | None = None) -> tuple["ModuleRow", ...]:
        """Return a row for every module that ran, and one for what is outside of modules (``module`` is ``None``).

        Args:
            sort: ``"forward"``, ``"backward"``, ``"total"`` or ``"self"`` time, ``"device"`` time, ``"memory"`` that
                forward allocated, ``"calls"``, or ``"order"``, as they first ran. By default that of ``profile()``.
        """
        sort = self._sort if sort is None else sort
        columns = _check_sort(sort, SORTS)[sort]
        evidence = self._results()
        rows = () if evidence is None else evidence.modules
        return tuple(sorted(rows, key=lambda row: -sum(getattr(row, column) for column in columns)))

    def ops(self, sort: str = "self") -> tuple["OpRow", ...]:
        """Return a row for every operator.

        Args:
            sort: ``"self"`` or ``"total"`` time, ``"device"`` time, ``"memory"`` or ``"calls"``.
        """
        column = _check_sort(sort, OP_SORTS)[sort]
        evidence = self._results()
        return () if evidence is None else tuple(sorted(evidence.ops, key=lambda row: -getattr(row, column)))

    def advice(self, limit: int | None = None) -> tuple["Advice", ...]:
        """Return what to look at first: the largest share of the time, or of the memory forward keeps, comes first."""
        evidence = self._results()
        if evidence is None:
            return ()
        from torchadx.inspect._profile._advice import advise

        return advise(evidence)[:limit]

    def table(self, sort: str | None = None, limit: int | None = None) -> str:
        """Lay the modules out as text; ``limit`` is how many, ``None`` for all."""
        from torchadx.inspect._profile._table import table

        rows = self.modules(sort)
        return "\n".join(table(rows, limit)) if self._enabled else _OFF

    def key_averages(self, *, group_by_input_shape: bool = False, group_by_stack_n: int = 0) -> Any:
        """Return torch's own averages of operators, by shape or stack if asked; their ``table()`` draws them.

        Raises:
            RuntimeError: The profile is not enabled.
        """
        self._results()
        if self._profiler is None:
            raise RuntimeError(f"{_OFF}: there are no averages")
        return self._profiler.key_averages(group_by_input_shape, group_by_stack_n)

    def to_dict(self) -> dict[str, Any]:
        """Return modules and advice as plain numbers, strings, lists and dictionaries, fit for JSON."""
        modules = []
        for row in self.modules():
            plain = dict(vars(row))
            modules.append({"module": plain.pop("module"), "class": plain.pop("class_name"), **plain})
        return {"modules": modules, "advice": [dict(vars(one)) for one in self.advice()]}

    def to_json(self) -> str:
        """Return the same as JSON."""
        return json.dumps(self.to_dict())

    def to_dataframe(self) -> Any:
        """Return the modules as a ``pandas.DataFrame``.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        from torchadx.inspect._profile._rows import ModuleRow
        from torchadx.memory._dataframe import fields

        return fields(self.modules(), ModuleRow)

    def export_chrome_trace(self, path: str | os.PathLike[str]) -> None:
        """Write what was recorded as a trace that https://ui.perfetto.dev and chrome://tracing open.

        It has arrows from operators to the backward nodes that they made, and ranges named by modules.

        Args:
            path: A file; one that ends in ``.gz`` is compressed. If the profile is not enabled, it is not written, and
                a warning says so.
        """
        if self._results() is None:
            warnings.warn(f"{_OFF}: {path} is not written", stacklevel=2)
            return
        names = {json.dumps(name): json.dumps(label) for name, label in self._labels.items()}
        text = zlib.decompress(self._chrome).decode()
        text = re.sub(r'"torchadx\.inspect [^"]*"', lambda found: names.get(found[0], found[0]), text)
        file = pathlib.Path(path)
        file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())

    def __str__(self) -> str:
        """Draw the totals, the modules that cost most, and the first advice."""
        if not self._enabled:
            return _OFF
        if self._evidence is None:
            return "profile: its block has not been left, or was interrupted: there are no results"
        from torchadx.inspect._profile._table import advice_lines, totals

        lines = [totals(self._evidence.modules, self._evidence.total_ms), "", self.table(limit=self._top)]
        advice = self.advice(3)
        return "\n".join([*lines, *([""] if advice else []), *advice_lines(advice)])

    def _results(self) -> "Evidence | None":
        """Return the results; ``None`` if not enabled."""
        if self._enabled and self._evidence is None:
            raise RuntimeError(
                "profile() has no results before its block is left, nor if that was interrupted: "
                "read them after `with profile() as p: ...`"
            )
        return self._evidence

    def _read(self, recording: "Recording", watch: "ModuleWatch") -> None:
        from torchadx.inspect._profile._read import labels, read

        self._evidence = read(recording.trace, watch)
        self._labels = labels(recording.trace, watch)
        self._chrome, self._profiler = zlib.compress(recording.chrome, 1), recording.profiler


def _check_sort(sort: str, known: dict[str, Any]) -> dict[str, Any]:
    if sort not in known:
        raise ValueError(f"sort must be one of {', '.join(map(repr, known))}; got {sort!r}")
    return known
