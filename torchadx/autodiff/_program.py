"""A recorded function: operations in order, values by number."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


@dataclasses.dataclass(frozen=True, slots=True)
class Ref:
    """Stands in recorded arguments for the value of that number."""

    index: int


class Meta(NamedTuple):
    """What is known of a value before it is computed."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return self.shape.numel() * self.dtype.itemsize


class Constant(NamedTuple):
    """A tensor that the function reads and that is no argument: of a module by name, so that it is never stale."""

    tensor: Tensor
    owner: torch.nn.Module | None = None
    name: str = ""

    def read(self) -> Tensor:
        """Return the tensor as it is now."""
        return self.tensor if self.owner is None else getattr(self.owner, self.name)


@dataclasses.dataclass(frozen=True)
class Call:
    """One operation: an ATen overload, its arguments with values as :class:`Ref`, the values that it makes.

    Attributes:
        target: The overload.
        args: Positional arguments.
        kwargs: Keyword arguments.
        outputs: Numbers of the tensors that it returns, in order; ``None`` for results that are no tensors.
        several: Whether it returns a tuple or a list.
        blocked: Why derivatives do not pass it although it is differentiable: ``"detach"``, ``"no_grad"``,
            ``"inference_mode"``; empty if they do.
        line: Where in the user's code that happened, ``"file:line"``.
    """

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[int | None, ...]
    several: bool
    blocked: str = ""
    line: str = ""

    @functools.cached_property
    def inputs(self) -> tuple[int, ...]:
        """Numbers of the values that it reads; once for every place."""
        return tuple(leaf.index for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Ref))

    @property
    def shapes_only(self) -> bool:
        """Whether values of its arguments do not matter: ``zeros_like`` and such."""
        name = self.target.overloadpacket.__name__
        return name.endswith("_like") or name.startswith("new_")

    @functools.cached_property
    def _places(self) -> tuple[tuple[int, int], ...] | None:
        """Positions of values among the positional arguments, if they are all there and none is inside of a list."""
        places = tuple((n, item.index) for n, item in enumerate(self.args) if isinstance(item, Ref))
        return places if len(places) == len(self.inputs) else None

    def bind(self, values: Sequence[Any]) -> tuple[Any, Any]:
        """Return arguments with values in the place of references."""
        if self._places is None:
            return substitute(self.args, values), substitute(self.kwargs, values)
        args = list(self.args)
        for position, index in self._places:
            args[position] = values[index]
        return args, self.kwargs

    def run(self, values: Any) -> None:
        """Compute it, reading from and writing to ``values``."""
        args, kwargs = self.bind(values)
        result = self.target(*args, **kwargs)
        if not self.several:
            values[self.outputs[0]] = result
            return
        for index, value in zip(self.outputs, result, strict=True):
            if index is not None:
                values[index] = value


@dataclasses.dataclass(frozen=True)
class Program:
    """A function of tensors as a list of operations.

    Attributes:
        metas: Shape, dtype and device of every value, by number.
        inputs: Numbers of the arguments.
        constants: Captured tensors by number.
        calls: Operations in the order in which they ran.
        outputs: Numbers of the results.
        random: Whether an operation draws random numbers.
    """

    metas: tuple[Meta, ...]
    inputs: tuple[int, ...]
    constants: dict[int, Constant]
    calls: tuple[Call, ...]
    outputs: tuple[int, ...]
    random: bool = False

    def start(self, arguments: Sequence[Tensor], constants: Mapping[int, Tensor] | None = None) -> list[Any]:
        """Return a table of values that holds arguments and constants, which are read anew unless they are given."""
        values: list[Any] = [None] * len(self.metas)
        for index, constant in self.constants.items():
            values[index] = constant.read() if constants is None else constants[index]
        for index, argument in zip(self.inputs, arguments, strict=True):
            values[index] = argument
        return values

    def run(self, *arguments: Tensor) -> list[Tensor]:
        """Compute the results."""
        values = self.start(arguments)
        for call in self.calls:
            call.run(values)
        return [values[index] for index in self.outputs]

    def without_dead_calls(self) -> "Program":
        """Return the same function without operations whose results nobody reads."""
        needed, calls = set(self.outputs), []
        for call in reversed(self.calls):
            if not needed.isdisjoint(call.outputs):
                needed.update(call.inputs)
                calls.append(call)
        constants = {index: constant for index, constant in self.constants.items() if index in needed}
        return dataclasses.replace(self, calls=tuple(reversed(calls)), constants=constants)


def substitute(tree: Any, values: Sequence[Any]) -> Any:
    """Return recorded arguments with values in the place of references."""
    return rewrite(tree, lambda leaf: values[leaf.index] if isinstance(leaf, Ref) else leaf)


def rewrite(tree: Any, leaf: Callable[[Any], Any]) -> Any:
    """Map the leaves of arguments as operators take them: nothing nests but lists and tuples, and those seldom."""
    if type(tree) in (list, tuple):
        return type(tree)([rewrite(item, leaf) for item in tree])
    if type(tree) is dict:
        return {key: rewrite(item, leaf) for key, item in tree.items()}
    return leaf(tree)
