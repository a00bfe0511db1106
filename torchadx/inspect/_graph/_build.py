"""From tensors to nodes and edges: what is drawn of the graph, without holding on to any of it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor
from torch.autograd.graph import Node

from torchadx.inspect._graph._inferred import inferred, module_of_parameter
from torchadx.inspect._graph._slots import (
    Storages,
    attributes,
    is_opaque,
    memory_key,
    shape_of,
    shown,
    storage_key,
)
from torchadx.inspect._modules import ModuleWatch
from torchadx.inspect._nodes import Slot, held_by, leaf_of, name_of, number_of, walk
from torchadx.memory import Residence
from torchadx.memory.report import size

#: the kinds of nodes
KINDS = ("backward", "leaf", "saved", "output", "base")


class GraphNode(NamedTuple):
    """One box of the picture.

    Attributes:
        id: Its place in the list, which is the order in which forward made what it stands for.
        label: What is written in it.
        kind: ``"backward"``: a node of autograd; or a tensor: ``"leaf"``, ``"saved"`` for backward, ``"output"``, or
            ``"base"``, which an output is a view of.
        module: Path of the module that made it; ``""`` for the model itself, ``None`` for none or unknown.
        detail: What else is known of it, as text.
        saved_bytes: What the node holds for backward, each storage once in the graph, at the node that saved it first
            (without leaves and what ``params`` names, which others hold anyway, and what hooks hold in their own
            way); ``None`` once backward freed it.
        packed: How many tensors hooks hold for it in ways that show no bytes.
    """

    id: int
    label: str
    kind: str
    module: str | None
    detail: Mapping[str, str]
    saved_bytes: int | None = 0
    packed: int = 0


class GraphEdge(NamedTuple):
    """An arrow, the way forward goes: from a leaf to its node, to the nodes that use it, to an output.

    A saved tensor is the target of the node that saved it. From a base to its view, the arrow is dotted.

    Attributes:
        source: Id of the node where it begins.
        target: Id of the node where it ends.
        style: ``"solid"`` or ``"dotted"``.
    """

    source: int
    target: int
    style: str = "solid"


class Builder:
    """Reads the graph below outputs once; what it holds of the graph goes with it.

    Args:
        outputs: The outputs that have a ``grad_fn``, by what they are called.
        names: What the tensors that the caller knows are called.
        record: Which modules made which nodes, where somebody watched.
        show_saved: Draw what is saved.
        attr_chars: How many characters of an attribute are written; ``None`` writes no attributes.
    """

    def __init__(
        self,
        outputs: Mapping[str, Tensor],
        names: Mapping[str, Tensor],
        record: ModuleWatch | None,
        *,
        show_saved: bool,
        attr_chars: int | None,
    ) -> None:
        self._outputs, self._record = outputs, record
        self._show_saved, self._attr_chars = show_saved, attr_chars
        self._bases = {id(view): view._base for view in outputs.values() if view._base is not None}
        self._made = walk((*outputs.values(), *self._bases.values()))
        self._names: dict[int, str] = {}
        for name, tensor in names.items():
            self._names.setdefault(id(tensor), name)
        self._modules = inferred(self._made, self._leaf_name) if record is None else {}
        self._storages = Storages((*names.values(), *(leaf for leaf in map(leaf_of, self._made) if leaf is not None)))
        self._shown, self._owners = shown({**names, **outputs})
        self._ids: dict[int, int] = {}
        self.nodes: list[GraphNode] = []
        self.edges: list[GraphEdge] = []

    def build(self) -> None:
        """Fill ``nodes`` and ``edges``."""
        inner = [node for node in reversed(self._made) if leaf_of(node) is None]
        arrows = []
        for node in inner:
            inputs = [following for following, _ in node.next_functions if following is not None]
            for following in inputs:
                if id(following) not in self._ids:
                    self._leaf(following)
            self._backward(node)
            arrows += [(id(following), id(node)) for following in inputs]
        # numbers are counted by thread: what a node leads to may come after it
        for source, target in arrows:
            self._edge(self._ids[source], self._ids[target])
        for name, tensor in self._outputs.items():
            self._output(tensor, name)

    def _leaf_name(self, node: Node) -> str | None:
        return self._names.get(id(leaf_of(node)))

    def _leaf(self, node: Node) -> None:
        tensor = leaf_of(node)
        if tensor is None:
            return
        name = self._names.get(id(tensor))
        module = None if name is None else module_of_parameter(name)
        # one box per leaf, though two nodes may be for it: the first may have died while a graph still held it
        if id(tensor) not in self._ids:
            self._tensor(tensor, name or "leaf", "leaf", module)
        self._edge(self._ids[id(tensor)], self._add(node, name_of(node), "backward", module, {}))

    def _backward(self, node: Node) -> None:
        number = number_of(node)
        module = self._modules.get(node) if self._record is None else self._record.owner(number)
        detail = {"number": str(number)}
        label = name_of(node)
        if self._attr_chars is not None:
            shown = attributes(node, self._attr_chars)
            detail |= shown
            label = "\n".join((label, *(f"{name}: {text}" for name, text in shown.items())))
        slots = held_by(node)
        if slots is None and self._show_saved:
            raise RuntimeError(
                f"show_saved: got a graph whose saved tensors backward already freed (at {name_of(node)}); "
                "call graph() before backward, or run backward with retain_graph=True"
            )
        saved_bytes = None if slots is None else sum(self._storages.new_bytes(slot.held) for slot in slots)
        opaque = sum(map(is_opaque, slots or ()))
        if saved_bytes:
            detail["saved"] = size(saved_bytes)
        if opaque:
            detail["packed"] = str(opaque)
        index = self._add(node, label, "backward", module, detail, saved_bytes, opaque)
        if self._show_saved and slots:
            for slot in slots:
                self._saved(slot, index, module)

    def _saved(self, slot: Slot, index: int, module: str | None) -> None:
        lines = [slot.name]
        detail = {"slot": slot.name}
        if isinstance(slot.held, Tensor | Residence):
            lines.append(shape_of(slot.held))
            detail |= _of_tensor(slot.held)
        what = self._what(slot)
        if what is not None:
            lines.append(what)
            detail["what"] = what
        self._edge(index, self._add(None, "\n".join(lines), "saved", module, detail))

    def _what(self, slot: Slot) -> str | None:
        """Say what a saved tensor is, beyond a tensor of its own."""
        if isinstance(slot.held, Residence):
            return f"packed as {slot.held.action}"
        if slot.hook is not None:
            hook = getattr(slot.hook, "__qualname__", type(slot.hook).__qualname__)
            return f"packed as {type(slot.held).__qualname__}\nfor {hook}"
        name = self._names.get(id(slot.held))
        if slot.held.requires_grad and slot.held.is_leaf:
            return f"leaf {name}" if name else "leaf"
        key = memory_key(slot.held)
        if name or key is None:
            return name
        # what a node saves of its output, and what a manager keeps, is another object
        owner = self._owners.get(storage_key(key))
        return self._shown.get(key) or (f"view of {owner}" if owner else None)

    def _output(self, tensor: Tensor, name: str) -> None:
        if id(tensor) in self._ids:
            return
        index = self._tensor(tensor, self._names.get(id(tensor), name), "output", None)
        self._edge(self._ids[id(tensor.grad_fn)], index)
        base = self._bases.get(id(tensor))
        if base is None:
            return
        if id(base) not in self._ids:
            known = next((called for called, other in self._outputs.items() if other is base), None)
            if known is None:
                self._base(base)
            else:
                self._output(base, known)
        self._edge(self._ids[id(base)], index, "dotted")

    def _base(self, base: Tensor) -> None:
        index = self._tensor(base, self._names.get(id(base), "view base"), "base", None)
        if base.grad_fn is not None:
            self._edge(self._ids[id(base.grad_fn)], index)

    def _tensor(self, tensor: Tensor, name: str, kind: str, module: str | None) -> int:
        return self._add(tensor, f"{name}\n{shape_of(tensor)}", kind, module, _of_tensor(tensor))

    def _add(
        self,
        thing: Any,
        label: str,
        kind: str,
        module: str | None,
        detail: Mapping[str, str],
        saved_bytes: int | None = 0,
        packed: int = 0,
    ) -> int:
        index = len(self.nodes)
        if thing is not None:
            self._ids[id(thing)] = index
        self.nodes.append(GraphNode(index, label, kind, module, detail, saved_bytes, packed))
        return index

    def _edge(self, source: int, target: int, style: str = "solid") -> None:
        self.edges.append(GraphEdge(source, target, style))


def _of_tensor(tensor: Tensor | Residence) -> dict[str, str]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {"shape": shape_of(tensor), "dtype": dtype, "device": str(tensor.device)}
