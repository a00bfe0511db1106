"""Which module made which node of the graph, where nobody watched: a guess by the names of parameters."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence

from torch.autograd.graph import Node

from torchadx.inspect._nodes import leaf_of, name_of

# what stands between a parameter and the operation that it is for
_BETWEEN = frozenset(
    (
        *("T", "Transpose", "Permute", "View", "ViewAs", "UnsafeView", "ReshapeAlias", "Expand", "Squeeze"),
        *("Unsqueeze", "Select", "Slice", "Split", "SplitWithSizes", "Unbind", "AsStrided", "Alias", "Clone", "ToCopy"),
    )
)
_VERSION = re.compile(r"Backward\d*(Autograd\w+)?$")


def parts_of(path: str) -> list[str]:
    """Split a module's path; the model's own has no parts."""
    return path.split(".") if path else []


@functools.lru_cache(maxsize=4096)
def common(first: str, second: str) -> str:
    """Return the path of the deepest module that contains both."""
    if first == second:
        return first
    shared = []
    for one, other in zip(parts_of(first), parts_of(second), strict=False):
        if one != other:
            break
        shared.append(one)
    return ".".join(shared)


def module_of_parameter(name: str) -> str:
    """Return the path of the module that a parameter with this full name is in."""
    return name.rpartition(".")[0]


def inferred(nodes: Sequence[Node], leaf_name: Callable[[Node], str | None]) -> Mapping[Node, str]:
    """Guess the modules of nodes.

    Args:
        nodes: From the last that was made to the first, then those of leaves.
        leaf_name: The full name of the parameter that a leaf's node is for, where it has one.
    """
    modules = {}
    for node in nodes:
        name = None if leaf_of(node) is None else leaf_name(node)
        if name is not None:
            modules[node] = module_of_parameter(name)
    if not modules:
        return {}
    made = [node for node in reversed(nodes) if leaf_of(node) is None]
    modules.update(_users(made, modules))
    return modules | _rest(made, modules)


def _users(made: Sequence[Node], leaves: Mapping[Node, str]) -> dict[Node, str]:
    """Give the nodes that a parameter leads straight to its module; of several the one that contains all."""
    users: dict[Node, str] = {}
    # named leaves, and what only hands one on
    sources = dict(leaves)
    for node in made:
        inputs = [following for following, _ in node.next_functions if following is not None]
        found = [sources[following] for following in inputs if following in sources]
        if not found:
            continue
        module = found[0]
        for other in found[1:]:
            module = common(module, other)
        users[node] = module
        if len(found) == len(inputs) and _VERSION.sub("", name_of(node)) in _BETWEEN:
            sources[node] = module
    return users


def _rest(made: Sequence[Node], owned: Mapping[Node, str]) -> dict[Node, str]:
    """Give every other node the deepest module that contains its neighbours; beyond the ends that is the model."""
    after: list[str | None] = []
    following = None
    for node in reversed(made):
        following = owned.get(node, following)
        after.append(following)
    rest = {}
    before = None
    for node, later in zip(made, reversed(after), strict=True):
        before = owned.get(node, before)
        if node not in owned:
            rest[node] = "" if before is None or later is None else common(before, later)
    return rest
