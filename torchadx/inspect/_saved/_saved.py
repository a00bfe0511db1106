"""What a function, a model or an existing loss keeps for backward."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from torchadx.inspect import _nodes
from torchadx.inspect._graph import Graph, graph
from torchadx.inspect._graph._inferred import inferred
from torchadx.inspect._modules import ModuleWatch
from torchadx.inspect._saved._growth import growth_of
from torchadx.inspect._saved._owners import Owner, identity_of, owners
from torchadx.inspect._saved._report import SavedReport, SavedRow
from torchadx.inspect._saved._rows import find, rows

_OPAQUE = "CopySlices"
_EAGER = (
    "modules compiled by module.compile() may run eagerly while they are watched, because of the hooks around every "
    "module: this is what they keep then; torch.compile(module) is seen as it is"
)


class Watching:
    """Notes who makes the nodes of a graph while it is entered: :meth:`report` says what they keep.

    What ``torchadx.inspect.saved()`` returns as a context manager.

    Args:
        model: The model, where parts of it are called by themselves, or more than one is called.

    >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    >>> with Watching(model) as seen:
    ...     loss = model(torch.randn(4, 8)).square().mean()
    >>> [row.module for row in seen.report(loss).rows if row.alias is None]
    ['1', None]
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        self.modules = ModuleWatch(model)
        self._anomaly: Any = None

    def __enter__(self) -> "Watching":
        # anomaly mode is how torch notes, at each node, the lines of Python that made it
        self._anomaly = torch.autograd.set_detect_anomaly(True, check_nan=False)
        self._anomaly.__enter__()
        self.modules.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.modules.__exit__(*error)
        self._anomaly.__exit__(*error)

    def report(self, *outputs: Any, inputs: Any = ()) -> SavedReport:
        """Say what the graphs of ``outputs`` keep now. Nothing of them is held, moved or decoded.

        Args:
            outputs: Tensors, or lists, tuples and dictionaries of such, whose graphs are looked at.
            inputs: What else the caller holds.

        Raises:
            TypeError: There is no tensor among the outputs.
            RuntimeError: Backward ran, and freed it.
        """
        tensors = _nodes.tensors_of(outputs)
        if not tensors:
            raise TypeError("report() takes the tensors whose graphs are looked at, such as the loss; got none")
        return look(tensors, self.modules, _nodes.tensors_of(inputs))

    def graph(self, output: Any, **options: Any) -> Graph:
        """Take a picture of a graph, its nodes with the modules that were seen to make them.

        Args:
            output: As of :func:`torchadx.inspect.graph`.
            options: Its other options.
        """
        return graph(output, record=self.modules, **options)


@overload
def saved(*, model: nn.Module | None = None) -> Watching: ...


@overload
def saved(
    target: Any, /, *args: Any, model: nn.Module | None = None, measure: bool = False, **kwargs: Any
) -> SavedReport: ...


def saved(
    target: Any = None, /, *args: Any, model: nn.Module | None = None, measure: bool = False, **kwargs: Any
) -> Any:
    """Say what autograd keeps for backward: one row for each storage, with who saved it, where, why, and a remedy.

    - ``saved(model, x)`` or ``saved(function, *args)`` calls it and reports on its outputs. Buffers and random state
      are changed by that as by any call.
    - ``saved(loss)`` reports on a graph that exists. Modules are inferred from the names of ``model``'s parameters;
      lines are known where ``torch.autograd.set_detect_anomaly(True)`` was on.
    - ``with saved() as seen: ...`` notes what happens inside; ``seen.report(loss)`` reports.

    No hook on saved tensors is fired, no gradient changes, and the report holds no tensor. While it watches, anomaly
    mode is on without its checks of values: torch then notes the line that makes a node.

    Args:
        target: A function, a module, a tensor, or nested lists, tuples and dictionaries of tensors.
        args: Arguments of the function.
        model: Whose parameters and submodules have names; by default the outermost module that runs.
        measure: Run the function under torch's profiler, to compare with how much its allocator grew.
        kwargs: Keyword arguments of the function.

    Returns:
        A :class:`SavedReport`; without ``target`` the context manager.

    Raises:
        TypeError: ``target`` is none of these, or there are arguments and nothing to call.
        ValueError: ``measure`` without a function to run.
        RuntimeError: Backward ran, and freed what was saved.

    >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    >>> report = saved(model, torch.randn(4, 8))
    >>> report.activation_bytes == 4 * 32 * 4  # the output of ReLU, which the next layer keeps as its input
    True
    >>> [row.slots for row in report.rows if row.alias is None]
    [('ReluBackward0.result', 'AddmmBackward0.mat1')]
    """
    if callable(target):
        return _of_call(target, args, kwargs, model, measure)
    if args or kwargs:
        raise TypeError(f"saved() got arguments, but {type(target).__name__} is nothing to call with them")
    if measure:
        raise ValueError("saved(measure=True) needs a function to run: saved(function, *args, measure=True)")
    if target is None:
        return Watching(model)
    outputs = _nodes.tensors_of(target)
    if not outputs:
        raise TypeError(
            f"saved() takes a function, a module or tensors with a graph; got {type(target).__name__} without a tensor"
        )
    if all(tensor.grad_fn is None for tensor in outputs):
        raise ValueError(
            "saved(): no graph was recorded for these tensors. Compute them with gradients enabled, from something "
            "that requires grad"
        )
    named = {} if model is None else dict((*model.named_parameters(), *model.named_buffers()))
    classes = {} if model is None else {path: type(module).__name__ for path, module in model.named_modules()}
    nodes = _nodes.walk(outputs)
    return _report(nodes, outputs, owners(named, (), _leaves(nodes)), _inferred(nodes, named).get, classes)


def _of_call(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    model: nn.Module | None,
    measure: bool,
) -> SavedReport:
    if model is None and isinstance(function, nn.Module):
        model = function
    with Watching(model) as seen:
        if measure:
            outputs, grown, peak = growth_of(lambda: function(*args, **kwargs))
        else:
            outputs = function(*args, **kwargs)
    report = look(_nodes.tensors_of(outputs), seen.modules, _nodes.tensors_of((args, kwargs)))
    return report.measured(grown, peak) if measure else report


def look(outputs: Sequence[Tensor], modules: ModuleWatch, inputs: Sequence[Tensor] = ()) -> SavedReport:
    """Say what the graphs of ``outputs`` keep, whose nodes were made while ``modules`` watched."""
    nodes = _nodes.walk(outputs)
    owned = owners(modules.parameters(), [*inputs, *modules.inputs()], _leaves(nodes))
    report = _report(nodes, outputs, owned, modules.owner, modules.classes())
    notes = report.notes + ((_EAGER,) if modules.compiled_in_place() else ())
    return dataclasses.replace(report, notes=notes, beside=modules.beside())


def _leaves(nodes: Sequence[Node]) -> list[Tensor]:
    return [leaf for node in nodes if (leaf := _nodes.leaf_of(node)) is not None]


def _report(
    nodes: Sequence[Node],
    outputs: Sequence[Tensor],
    owned: Mapping[tuple[int, ...], Owner],
    module_of: Callable[[int], str | None],
    classes: Mapping[str, str],
) -> SavedReport:
    returned = frozenset(identity for tensor in outputs if (identity := identity_of(tensor)))
    held, freed = find(nodes)
    found = tuple(rows(nodes, held, owned, module_of, returned))
    return SavedReport(found, len(nodes), classes, notes=tuple(_notes(nodes, found, freed)))


def _inferred(nodes: Sequence[Node], named: Mapping[str, Tensor]) -> dict[int, str]:
    """Guess the module of each sequence number by the names of parameters."""
    names = {id(tensor): name for name, tensor in named.items()}
    guessed = inferred(nodes, lambda leaf: names.get(id(_nodes.leaf_of(leaf))))
    return {_nodes.number_of(node): path for node, path in guessed.items()}


def _notes(nodes: Sequence[Node], found: Sequence[SavedRow], freed: int) -> list[str]:
    notes = []
    if not nodes:
        notes.append("no graph was recorded: gradients are off, or nothing requires grad")
    if freed:
        notes.append(f"nodes that hold nothing any more, because an earlier backward ran through them: {freed}")
    hidden = sum(_nodes.name_of(node) == _OPAQUE for node in nodes)
    if hidden:
        notes.append(f"in-place writes into views ({_OPAQUE}), which do not show what they save: {hidden}")
    strange = sum(
        not row.storage_bytes and row.residence != "recomputed" and 0 not in (row.shape or ()) for row in found
    )
    if strange:
        notes.append(
            f"rows without a known storage (sparse, inside of a transform, packed by hooks), which count 0: {strange}"
        )
    return notes
