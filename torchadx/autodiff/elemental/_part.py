"""What a row of the table is given, and what it returns."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from torch import Tensor

from torchadx.autodiff._program import Call, Ref

Linear = Callable[[Tensor], Tensor]
Kind = Literal["reshape", "view", "stream", "product", "convolution", "sweep"]


class Part(NamedTuple):
    """The derivative of one result of an operation by one of its arguments, at one point: a linear map.

    A batch of N directions goes through at once, in a leading dimension.

    Attributes:
        push: Tangents ``(N, *argument)`` to tangents ``(N, *result)``.
        pull: Cotangents ``(N, *result)`` to cotangents ``(N, *argument)``.
        kind: What moving a direction costs: ``"reshape"`` (the elements keep their order) and ``"view"`` nothing,
            ``"stream"`` a pass over both sides, ``"product"`` and ``"convolution"`` arithmetic, ``"sweep"`` a run of
            torch.func.
        flops: Floating-point operations a direction, either way.
        matrix: The map as a matrix (result x argument, both flattened), where it is at hand without moving directions.
        note: What a reader of the plan has to know, such as why the operation is swept.
    """

    push: Linear
    pull: Linear
    kind: Kind = "stream"
    flops: float = 0.0
    matrix: Callable[[], Tensor] | None = None
    note: str = ""


@dataclasses.dataclass(eq=False)
class Site:
    """One result of a recorded operation and one argument that it depends on, with values for both.

    Attributes:
        call: The operation.
        args: Its positional arguments, with values.
        kwargs: Its keyword arguments.
        results: All of its results.
        wrt: Position of the argument: of the n-th positional one ``(n,)``, of the k-th entry of a list ``(n, k)``.
        of: Position of the result.
    """

    call: Call
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[Any, ...]
    wrt: tuple[int, ...]
    of: int

    @functools.cached_property
    def x(self) -> Tensor:
        """The argument."""
        value: Any = self.args
        for position in self.wrt:
            value = value[position]
        return value

    @property
    def y(self) -> Tensor:
        """The result."""
        return self.results[self.of]

    def arg(self, position: int, name: str = "", default: Any = None) -> Any:
        """Return a positional argument, or the keyword argument of that name, or what it is by default."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)

    def function(self) -> Callable[[Tensor], Tensor]:
        """Return the operation as a function of this argument with this result."""
        read, several, of, target = self.wrt, self.call.several, self.of, self.call.target

        def f(x: Tensor) -> Tensor:
            args = list(self.args)
            if len(read) == 1:
                args[read[0]] = x
            else:
                items = list(args[read[0]])
                items[read[1]] = x
                args[read[0]] = items
            result = target(*args, **self.kwargs)
            return result[of] if several else result

        return f


def positions(args: Any, index: int) -> list[tuple[int, ...]]:
    """Return every place among recorded positional arguments where a value is read."""
    found: list[tuple[int, ...]] = []
    for n, item in enumerate(args):
        if isinstance(item, Ref) and item.index == index:
            found.append((n,))
        elif type(item) in (list, tuple):
            found += [(n, k) for k, leaf in enumerate(item) if isinstance(leaf, Ref) and leaf.index == index]
    return found
