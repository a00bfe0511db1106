"""The autograd graph, as a picture: of all its nodes, or of the modules that made them."""

import collections
import dataclasses
import importlib.util
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path

from torchadx.inspect._graph import _dot
from torchadx.inspect._graph._build import KINDS, Builder, GraphEdge, GraphNode
from torchadx.inspect._graph._fold import Folded
from torchadx.inspect._modules import ModuleWatch
from torchadx.memory.report import size

if TYPE_CHECKING:
    import graphviz

#: ``"module"``: one box per module, at the depth that stays readable; a number: at that depth; ``None``: all nodes
Collapse = Literal["module"] | int | None
_Asked = Collapse | Literal["as made"]

_PICTURES = (".svg", ".png", ".pdf")
_TEXTS = (".dot", ".gv")
_SUFFIXES = (*_PICTURES, *_TEXTS, ".html")


@dataclasses.dataclass(frozen=True)
class Graph:
    """The nodes and edges of an autograd graph, as text and numbers: no tensor is kept alive.

    In a notebook it shows itself, as a picture where graphviz is installed and as DOT text elsewhere.

    Attributes:
        nodes: In the order in which forward made them.
        edges: Arrows between them, the way forward goes.
        classes: Names of classes by paths of modules, where somebody watched.
        collapse: How pictures are drawn unless they are asked for otherwise: ``"module"`` (one box per module, at the
            depth that leaves at most 60 boxes), how many parts of a module's path are told apart, or ``None`` (all
            nodes, each module a frame around its own).
    """

    nodes: tuple[GraphNode, ...]
    edges: tuple[GraphEdge, ...]
    classes: Mapping[str, str]
    collapse: Collapse = "module"

    @property
    def saved_bytes(self) -> int | None:
        """Bytes held for backward, without leaves and parameters; ``None`` where backward freed some of it."""
        held = [node.saved_bytes for node in self.nodes]
        return None if None in held else sum(each for each in held if each is not None)

    def dot(self, collapse: _Asked = "as made") -> str:
        """Write the graph as DOT, which graphviz and other tools read.

        Args:
            collapse: As of :func:`graph`; ``"as made"`` takes what the graph was made with.

        Returns:
            DOT text. Names are shown as they are, whatever is in them.
        """
        return _dot.document(self._body(collapse))

    def digraph(self, collapse: _Asked = "as made") -> "graphviz.Digraph":
        """Return the picture as a ``graphviz.Digraph``, as torchviz does.

        Args:
            collapse: As of :func:`graph`; ``"as made"`` takes what the graph was made with.

        Raises:
            ModuleNotFoundError: The package ``graphviz`` is not installed.
        """
        try:
            import graphviz
        except ModuleNotFoundError as error:
            message = (
                'pictures of graphs need the package graphviz: pip install "torchadx[inspect]"; '
                "without it, draw() writes .dot, and dot() gives the text"
            )
            raise ModuleNotFoundError(message, name=error.name) from error
        return graphviz.Digraph(body=[f"\t{line}\n" for line in self._body(collapse)])

    def draw(self, path: str | os.PathLike[str], collapse: _Asked = "as made") -> None:
        """Write the picture to a file.

        Args:
            path: Ends in ``.svg``, ``.png`` or ``.pdf`` (needs graphviz: its package for Python and its program
                ``dot``), ``.dot`` or ``.gv`` (needs nothing), or ``.html`` (a page that needs no network).
            collapse: As of :func:`graph`; ``"as made"`` takes what the graph was made with. A page folds by itself.

        Raises:
            ValueError: Another suffix.
            ModuleNotFoundError: A package that the format needs is not installed.
            RuntimeError: graphviz's program ``dot`` is not installed.
        """
        path = pathlib.Path(path)
        if path.suffix not in _SUFFIXES:
            known = ", ".join(_SUFFIXES)
            raise ValueError(f"a graph is written as {known}: got a path with suffix {path.suffix!r}, {str(path)!r}")
        if path.suffix in _PICTURES:
            path.write_bytes(self._rendered(path.suffix[1:], collapse))
        elif path.suffix in _TEXTS:
            path.write_text(self.dot(collapse), encoding="utf-8")
        else:
            path.write_text(self._page(), encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """Return ``nodes`` and ``edges`` as plain lists and dictionaries, fit for JSON; nothing is folded."""
        nodes = [
            {
                **{name: getattr(node, name) for name in ("id", "label", "kind", "module")},
                "detail": dict(node.detail),
            }
            for node in self.nodes
        ]
        return {"nodes": nodes, "edges": [edge._asdict() for edge in self.edges]}

    def to_json(self) -> str:
        """Return what ``to_dict()`` gives, as JSON."""
        return json.dumps(self.to_dict(), allow_nan=False)

    def __str__(self) -> str:
        """Count what is in the graph."""
        kinds = collections.Counter(node.kind for node in self.nodes)
        counts = ", ".join(f"{kinds[kind]} {kind}" for kind in KINDS if kinds[kind])
        lines = [f"autograd graph: {len(self.nodes)} nodes ({counts}), {len(self.edges)} edges"]
        modules = {node.module for node in self.nodes if node.module is not None}
        if any(modules):
            lines.append(f"made in {len(modules)} modules" if len(modules) > 1 else "made in 1 module")
        saved = self.saved_bytes
        lines.append("saved: freed by backward" if saved is None else f"saved for backward: {size(saved)}")
        packed = sum(node.packed for node in self.nodes)
        if packed:
            lines[-1] += f", and {packed} tensors that hooks packed"
        return "\n".join(lines)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        if importlib.util.find_spec("graphviz") is None or shutil.which("dot") is None:
            return {"text/plain": self.dot()}
        return {"image/svg+xml": self._rendered("svg").decode(), "text/plain": str(self)}

    def _body(self, collapse: _Asked = "as made") -> list[str]:
        if collapse == "as made":
            collapse = self.collapse
        _check(collapse)
        # a graph of which no module is known, or none but the model, has nothing to fold
        if collapse is None or not any(node.module for node in self.nodes):
            return list(_dot.whole(self.nodes, self.edges, self.classes))
        depth = None if collapse == "module" else int(collapse)
        drawn = Folded(self.nodes, self.edges, self.classes, depth)
        return list(_dot.folded(drawn.boxes, drawn.edges))

    def _rendered(self, suffix: str, collapse: _Asked = "as made") -> bytes:
        digraph = self.digraph(collapse)
        from graphviz import ExecutableNotFound

        try:
            return digraph.pipe(format=suffix)
        except ExecutableNotFound as error:
            raise RuntimeError(
                f"a graph is drawn as .{suffix} by graphviz's program dot, which is not installed: "
                "apt-get install graphviz; without it, draw() writes .dot and .html, and dot() gives the text"
            ) from error

    def _page(self) -> str:
        from torchadx.inspect._page import render

        shown = {"name": "", "saved": None, "timeline": None, "graph": self.to_dict(), "profile": None}
        subtitle = f"{len(self.nodes)} nodes, torch {torch.__version__}"
        return render({"title": self.classes.get("", "Autograd graph"), "subtitle": subtitle, "passes": [shown]})


def graph(
    output: Any,
    params: Mapping[str, Tensor] | nn.Module | None = None,
    *,
    show_saved: bool = False,
    show_attrs: bool = False,
    collapse: Collapse = "module",
    record: ModuleWatch | None = None,
    max_attr_chars: int = 50,
) -> Graph:
    """Take a picture of the autograd graph that leads to a tensor; it can be called as torchviz's ``make_dot``.

    The graph is read, never run: no hook on saved tensors is fired, so that nothing is recomputed, decoded or brought
    back for a picture, and no gradient changes.

    Which module made a node is inferred from the names of parameters: a node that a parameter leads to, straight or
    through transposes, views and casts, belongs to that parameter's module, and any other to the deepest module that
    contains both of its neighbours in the order of forward. That is a guess: it has no way to see a module without
    parameters, such as an activation, and a parameter that several modules share counts for the first. Without names
    of parameters, no modules are known.

    Colors are torchviz's: nodes of autograd grey, leaves light blue, saved tensors orange, outputs light green, what
    they are views of dark green with a dotted arrow.

    Args:
        output: A tensor, or tensors in nested tuples, lists and dictionaries; those without ``grad_fn`` are left out.
        params: Names of tensors, such as ``dict(model.named_parameters())``, or the model.
        show_saved: Draw each tensor that is saved for backward, at each place that holds it, by the name that the node
            has for it.
        show_attrs: Write what else nodes hold: sizes, scalars, flags.
        collapse: What pictures show: ``"module"``: one box per module, at the depth that leaves at most 60 boxes (what
            a module does itself between its submodules has boxes of its own; of more modules side by side, neighbours
            share a box); a number: at that depth; ``None``: all nodes, with a frame around each module's.
        record: Which modules made which nodes, from who watched forward, in place of the guess: ``seen.graph(loss)``
            gives it, after ``with torchadx.inspect.saved() as seen: ...``.
        max_attr_chars: How many characters of an attribute are written, 3 or more.

    Returns:
        Nodes and edges, without a reference to any tensor.

    Raises:
        ValueError: No tensor in ``output`` has a ``grad_fn``, or a number is out of range.
        TypeError: ``params`` is neither a mapping of tensors nor a module.
        RuntimeError: ``show_saved`` after backward freed what was saved.

    Example:
        >>> a = torch.ones(3, requires_grad=True)
        >>> print(graph((a * a).sum(), {"a": a}))
        autograd graph: 5 nodes (3 backward, 1 leaf, 1 output), 5 edges
        saved for backward: 0 B
    """
    _check(collapse)
    if max_attr_chars < 3:
        raise ValueError(f"max_attr_chars: expected 3 or more, got {max_attr_chars}")
    builder = Builder(
        _outputs(output),
        _names(params, record),
        record,
        show_saved=show_saved,
        attr_chars=max_attr_chars if show_attrs else None,
    )
    builder.build()
    classes: Mapping[str, str] = {}
    if record is not None:
        classes = record.classes()
    elif isinstance(params, nn.Module):
        classes = {path: type(module).__name__ for path, module in params.named_modules()}
    return Graph(tuple(builder.nodes), tuple(builder.edges), classes, collapse)


def _check(collapse: Any) -> None:
    depth = isinstance(collapse, int) and not isinstance(collapse, bool) and collapse >= 0
    if not (collapse is None or collapse == "module" or depth):
        raise ValueError(f'collapse: expected "module", a depth of 0 or more, or None, got {collapse!r}')


def _outputs(output: Any) -> dict[str, Tensor]:
    """Return the tensors that a graph leads to, by where they are in ``output``."""
    found = {
        f"output{keystr(path)}": leaf for path, leaf in tree_flatten_with_path(output)[0] if isinstance(leaf, Tensor)
    }
    outputs = {name: tensor for name, tensor in found.items() if tensor.grad_fn is not None}
    if outputs:
        return outputs
    if not found:
        kind = type(output).__name__
        raise ValueError(f"output: expected a tensor, or tuples, lists and dictionaries of tensors, got {kind}")
    leaves = any(tensor.requires_grad for tensor in found.values())
    why = "it is a leaf, which no operation made" if leaves else "it does not require grad"
    raise ValueError(
        f"got {'a tensor' if len(found) == 1 else f'{len(found)} tensors'} without grad_fn: {why}; pass what the model "
        "returns, or a loss of it, computed from parameters or inputs that require grad, outside of torch.no_grad(), "
        "torch.inference_mode() and detach()"
    )


def _names(params: Any, record: ModuleWatch | None) -> Mapping[str, Tensor]:
    if params is None:
        return {} if record is None else record.parameters()
    if isinstance(params, nn.Module):
        return dict(params.named_parameters())
    if isinstance(params, Mapping) and all(isinstance(tensor, Tensor) for tensor in params.values()):
        return params
    raise TypeError(
        "params: expected a mapping of names to tensors, such as dict(model.named_parameters()), or a module, "
        f"got {type(params).__name__}"
    )
