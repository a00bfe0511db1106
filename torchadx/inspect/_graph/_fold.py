"""Folding the graph: one box per module, at the depth at which the picture stays readable."""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

from torchadx.inspect._graph._build import GraphEdge, GraphNode
from torchadx.inspect._graph._inferred import parts_of
from torchadx.memory.report import size

#: how many boxes people can read
LIMIT = 60
# a picture with fewer boxes than that says little
_FEW = 12


@dataclasses.dataclass(frozen=True)
class Box:
    """Several nodes in one.

    Attributes:
        label: Paths of modules, their class, and what is inside.
        kind: As of a node; ``"module"`` where more than one tensor is inside.
    """

    label: str
    kind: str


@dataclasses.dataclass(frozen=True)
class _Key:
    """What the nodes of a box have in common.

    Attributes:
        group: Path of the module down to the depth, ``None`` outside of modules.
        stretch: Counts what a module makes itself between its submodules; -1 if the box is for all of a module.
        single: Id of a tensor that is drawn by itself.
    """

    group: str | None
    stretch: int = -1
    single: int = -1


class Folded:
    """Boxes and the edges between them.

    Args:
        nodes: All, in the order in which forward made them.
        edges: All.
        classes: Names of classes by paths of modules.
        depth: How many parts of a path are told apart; ``None`` chooses so that at most ``LIMIT`` boxes are left, and
            puts neighbours together where there are more modules than that side by side.
    """

    def __init__(
        self, nodes: Sequence[GraphNode], edges: Sequence[GraphEdge], classes: Mapping[str, str], depth: int | None
    ) -> None:
        self._nodes, self._classes = nodes, classes
        self._modules = {node.module for node in nodes if node.module is not None}
        self._targets: dict[int, int] = {}
        self._sources: dict[int, int] = {}
        for edge in edges:
            self._targets.setdefault(edge.source, edge.target)
            self._sources.setdefault(edge.target, edge.source)
        keys = self._chosen() if depth is None else [(key,) for key in self._keys(depth)]
        inside: dict[tuple[_Key, ...], list[GraphNode]] = collections.defaultdict(list)
        for node, key in zip(nodes, keys, strict=True):
            inside[key].append(node)
        places = {key: index for index, key in enumerate(inside)}
        #: in the order of their first nodes
        self.boxes = [self._box(*members) for members in inside.items()]
        #: how many edges lead from one box to another, and their style
        self.edges: collections.Counter[tuple[int, int, str]] = collections.Counter()
        for edge in edges:
            source, target = places[keys[edge.source]], places[keys[edge.target]]
            if source != target:
                self.edges[source, target, edge.style] += 1

    def _chosen(self) -> list[tuple[_Key, ...]]:
        """Return the keys of every node: several where the boxes of several are one."""
        deepest = max(len(parts_of(module)) for module in self._modules)
        depth = deepest
        while depth > 0 and len(set(self._keys(depth))) > LIMIT:
            depth -= 1
        keys = self._keys(depth)
        if len(set(keys)) < _FEW and depth < deepest:
            keys = self._keys(depth + 1)
        together = _together(list(dict.fromkeys(keys)))
        return [together[key] for key in keys]

    def _keys(self, depth: int) -> list[_Key]:
        groups = [self._group(node, depth) for node in self._nodes]
        # a module of which submodules are drawn has made the rest itself
        paths = [parts_of(group) for group in set(groups) if group is not None]
        outer = {".".join(parts[:length]) for parts in paths for length in range(len(parts))}
        keys: dict[int, _Key] = {}
        stretch, before = 0, object()
        for node, group in zip(self._nodes, groups, strict=True):
            if node.kind == "backward" and not self._of_leaf(node):
                stretch += group != before
                before = group
                keys[node.id] = _Key(group, stretch) if group is None or group in outer else _Key(group)
        # edges lead from leaves to their nodes, and from nodes to what they saved
        for node, group in zip(self._nodes, groups, strict=True):
            if node.kind == "saved":
                keys[node.id] = keys[self._sources[node.id]]
            elif node.id not in keys:
                keys[node.id] = self._key_of_tensor(node, group, groups, keys, outer)
        return [keys[node.id] for node in self._nodes]

    def _key_of_tensor(
        self,
        node: GraphNode,
        group: str | None,
        groups: Sequence[str | None],
        keys: Mapping[int, _Key],
        outer: Iterable[str],
    ) -> _Key:
        if node.kind in ("output", "base"):
            return _Key(None, single=node.id)
        accumulates = node.id if node.kind == "backward" else self._targets[node.id]
        if group is None:
            return _Key(None, single=self._sources[accumulates])
        if group not in outer:
            return _Key(group)
        user = self._targets[accumulates]
        return keys[user] if groups[user] == group else _Key(group, 0)

    def _of_leaf(self, node: GraphNode) -> bool:
        source = self._sources.get(node.id)
        return source is not None and self._nodes[source].kind == "leaf"

    @staticmethod
    def _group(node: GraphNode, depth: int) -> str | None:
        return None if node.module is None else ".".join(parts_of(node.module)[:depth])

    def _box(self, keys: tuple[_Key, ...], nodes: Sequence[GraphNode]) -> Box:
        tensors = [node for node in nodes if node.kind in ("leaf", "output", "base")]
        if len(keys) == 1 and keys[0].single >= 0:
            return Box(tensors[0].label, tensors[0].kind)
        lines = [self._title(keys)]
        paths = {key.group for key in keys if key.group is not None and key.stretch < 0}
        classes = {self._classes[path] for path in paths if path in self._classes}
        if classes != {lines[0]} and (len(paths) == 1 or len(classes) == 1):
            lines += classes
        if len(paths) > 1:
            lines.append(f"{len(paths)} modules")
        inside = f"{len(nodes)} nodes" if len(nodes) > 1 else "1 node"
        saved = sum(node.saved_bytes or 0 for node in nodes)
        packed = sum(node.packed for node in nodes)
        lines.append(
            ", ".join((inside, *([f"{size(saved)} saved"] * bool(saved)), *([f"{packed} packed"] * bool(packed))))
        )
        return Box("\n".join(lines), "module")

    def _title(self, keys: Sequence[_Key]) -> str:
        titles = list(dict.fromkeys(self._name(key) for key in keys if key.stretch < 0))
        titles = titles or list(dict.fromkeys(map(self._name, keys)))
        return titles[0] if len(titles) == 1 else f"{titles[0]} \N{HORIZONTAL ELLIPSIS} {titles[-1]}"

    def _name(self, key: _Key) -> str:
        if key.single >= 0:
            return next(iter(self._nodes[key.single].label.splitlines()), "")
        if key.group is None:
            return "(outside)"
        return (key.group or "(model)") + (" itself" if key.stretch >= 0 else "")


def _together(keys: Sequence[_Key]) -> dict[_Key, tuple[_Key, ...]]:
    """Put neighbours into one box, as few as leave at most ``LIMIT``: those in the same module, if that suffices."""
    runs = [list(run) for _, run in itertools.groupby(keys, key=_parent)]
    parts = next(
        (parts for length in range(1, len(keys) + 1) if len(parts := list(_cut(runs, length))) <= LIMIT),
        list(_cut([list(keys)], -(-len(keys) // LIMIT))),
    )
    return {key: tuple(part) for part in parts for key in part}


def _cut(runs: Iterable[list[_Key]], length: int) -> Iterator[list[_Key]]:
    for run in runs:
        for start in range(0, len(run), length):
            yield run[start : start + length]


def _parent(key: _Key) -> str | None:
    if key.group is None or key.stretch >= 0:
        return key.group
    return key.group.rpartition(".")[0]
