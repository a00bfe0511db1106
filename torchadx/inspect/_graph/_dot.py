"""The graph in the language of graphviz."""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence

from torchadx.inspect._graph._build import GraphEdge, GraphNode
from torchadx.inspect._graph._fold import Box
from torchadx.inspect._graph._inferred import parts_of

COLORS: Mapping[str, str] = {
    "backward": "lightgrey",
    "leaf": "lightblue",
    "saved": "orange",
    "output": "darkolivegreen1",
    "base": "darkolivegreen3",
    "module": "lightgrey",
}
# beyond that, placing nodes as well as dot can takes minutes
_MANY = 1000
_HEAD = (
    'graph [ranksep=0.3, fontname="monospace", fontsize=10]',
    'node [style=filled, shape=box, fontsize=10, height=0.2, fontname="monospace"]',
    'edge [fontsize=9, fontname="monospace", arrowsize=0.7]',
)


@functools.lru_cache(maxsize=4096)
def quoted(text: str, end: str = "") -> str:
    """Write text as a string of DOT, which shows it as it is: no escapes, entities or HTML of its own.

    Args:
        text: Any.
        end: What ends every line: nothing for lines in the middle, backslash and ``l`` for lines to the left.
    """
    lines = text.split("\n")
    shown = [_clean(line).replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"') for line in lines]
    return '"' + ("".join(line + end for line in shown) if end else "\\n".join(shown)) + '"'


def _clean(line: str) -> str:
    if line.isprintable():
        return line
    # control characters are not allowed in SVG, nor lone surrogates in UTF-8
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in line)


def document(body: Iterable[str]) -> str:
    """Return a whole file."""
    return "\n".join(("digraph {", *(f"\t{line}" for line in body), "}")) + "\n"


def folded(boxes: Sequence[Box], edges: Mapping[tuple[int, int, str], int]) -> Iterator[str]:
    """Write boxes and the edges between them, with how many each stands for."""
    yield from _HEAD
    for index, box in enumerate(boxes):
        yield _box(index, quoted(box.label), box.kind)
    for (source, target, style), count in edges.items():
        yield _edge(source, target, style, f' label=" \N{MULTIPLICATION SIGN}{count}"' if count > 1 else "")


def whole(nodes: Sequence[GraphNode], edges: Sequence[GraphEdge], classes: Mapping[str, str]) -> Iterator[str]:
    """Write all nodes, those of a module inside of its frame."""
    yield from _HEAD
    if len(nodes) > _MANY:
        yield "graph [nslimit=2, nslimit1=2, mclimit=0.2, splines=line]"
    inside: dict[str, list[GraphNode]] = {}
    for node in nodes:
        inside.setdefault(node.module or "", []).append(node)
    lines: list[str] = []
    _frame("", inside, _children(inside), classes, lines, "")
    yield from lines
    for edge in edges:
        yield _edge(edge.source, edge.target, edge.style, " dir=none" if nodes[edge.target].kind == "saved" else "")


def _children(inside: Iterable[str]) -> Mapping[str, Sequence[str]]:
    children: dict[str, dict[str, None]] = {}
    for path in inside:
        parts = parts_of(path)
        for length in range(len(parts)):
            child = ".".join(parts[: length + 1])
            children.setdefault(".".join(parts[:length]), {}).setdefault(child)
    return {path: list(found) for path, found in children.items()}


def _frame(
    path: str,
    inside: Mapping[str, Sequence[GraphNode]],
    children: Mapping[str, Sequence[str]],
    classes: Mapping[str, str],
    lines: list[str],
    indent: str,
) -> None:
    """Write what is in a module's frame, and the frames in it."""
    for node in inside.get(path, ()):
        several = node.kind == "backward" and "\n" in node.label
        lines.append(indent + _box(node.id, quoted(node.label, "\\l" if several else ""), node.kind))
    for child in children.get(path, ()):
        label = f"{child}: {classes[child]}" if child in classes else child
        # frames are told apart by where they begin
        lines.append(f"{indent}subgraph cluster_{len(lines)} {{")
        lines.append(f"{indent}\tgraph [label={quoted(label)}, color=grey60, style=rounded, labeljust=l]")
        _frame(child, inside, children, classes, lines, indent + "\t")
        lines.append(indent + "}")


def _box(index: int, label: str, kind: str) -> str:
    return f"{index} [label={label}, fillcolor={COLORS[kind]}]"


def _edge(source: int, target: int, style: str, more: str) -> str:
    attributes = (" style=dotted" if style == "dotted" else "") + more
    return f"{source} -> {target}" + (f" [{attributes.strip()}]" if attributes else "")
