"""The rules of :class:`torchadx.InferenceAware` for functions."""

import functools
import inspect
from collections.abc import Callable, Generator
from typing import Any, ParamSpec, TypeVar, overload

from torchadx.inference._boundary import Boundary
from torchadx.inference._tensors import named_inputs

P = ParamSpec("P")
R = TypeVar("R")


@overload
def aware(function: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def aware(
    *, policy: str = ..., inference_tensors: str = ..., outputs: str = ...
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def aware(
    function: Callable[..., Any] | None = None,
    /,
    *,
    policy: str = "exact",
    inference_tensors: str = "copy",
    outputs: str = "inference",
) -> Callable[..., Any]:
    """Make a function right in each of PyTorch's gradient modes; a decorator, with or without arguments.

    Tensors are looked for in the arguments, and in tuples, lists, dicts and other registered pytrees among them. The
    body of a generator function is under the same rules, in the mode that is on when it is resumed.

    Args:
        function: What to wrap.
        policy: Under inference mode with a forward level entered: ``"exact"`` runs the function with the mode off (and
            no graph), so that tangents are right; ``"raise"`` refuses inputs and outputs that carry one.
        inference_tensors: Where gradients are recorded, an input made under inference mode is copied for the call, with
            one warning (``"copy"``), or refused (``"raise"``).
        outputs: ``"inference"`` returns what inference mode makes; ``"normal"`` copies of it that autograd accepts.

    Returns:
        The wrapped function.

    Raises:
        TypeError: ``function`` cannot be called.
        ValueError: An option has none of these values.

    Example:
        >>> import torch
        >>> from torchadx.inference import aware, make_dual, unpack_dual
        >>> @aware
        ... def cube(x):
        ...     return x**3
        >>> with torch.autograd.forward_ad.dual_level(), torch.inference_mode():
        ...     unpack_dual(cube(make_dual(torch.tensor(2.0), torch.tensor(1.0)))).tangent
        tensor(12.)
    """
    if function is None:
        return functools.partial(_wrapped, policy=policy, inference_tensors=inference_tensors, outputs=outputs)
    return _wrapped(function, policy=policy, inference_tensors=inference_tensors, outputs=outputs)


def _wrapped(function: Callable[..., Any], **rules: str) -> Callable[..., Any]:
    if not callable(function):
        raise TypeError(f"aware wraps a function, got {type(function).__name__}")
    boundary = Boundary(getattr(function, "__qualname__", repr(function)), **rules)
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def resumed(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            return (yield from resuming(boundary, function, args, kwargs))

        return resumed

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        return boundary.call(function, args, kwargs)

    return called


def resuming(
    boundary: Boundary, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Generator[Any, Any, Any]:
    """Run a generator function by the rules, each time that it is resumed."""
    args, kwargs = boundary.admit(args, kwargs)
    generator = function(*args, **kwargs)
    resume: Callable[[], Any] = functools.partial(next, generator)
    while True:
        finished, value = boundary.run(functools.partial(_step, resume), named_inputs(args, kwargs))
        if finished:
            return value
        try:
            sent = yield value
        except GeneratorExit:
            generator.close()
            raise
        except BaseException as error:  # the generator may handle it, or end by it
            resume = functools.partial(generator.throw, error)
        else:
            resume = functools.partial(generator.send, sent)


def _step(resume: Callable[[], Any]) -> tuple[bool, Any]:
    # a StopIteration that crossed a context manager would become a RuntimeError
    try:
        return False, resume()
    except StopIteration as stop:
        return True, stop.value
