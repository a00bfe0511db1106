"""Derivatives of any order along one direction."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from torchadx.autodiff._arguments import flat_direction, flat_point, require_floating
from torchadx.autodiff._errors import DerivativeError
from torchadx.autodiff._watch import differentiating, first_line, is_forward_hole, watched


def directional(f: Callable[..., Any], x: Any, v: Any, *, order: int = 1, args: tuple[Any, ...] = ()) -> Any:
    """The ``order``-th derivative of ``t -> f(x + t v)`` at ``t = 0``, by nested forward mode; exact.

    Order 1 is ``J(x) v``, order 2 of a scalar function is ``v^T H(x) v``. The cost is about ``2**order`` evaluations of
    ``f``, and nothing is kept for a reverse sweep. The result is differentiable again if grad mode is on and ``x``,
    ``v`` or a captured parameter requires grad.

    Args:
        f: ``f(x, *args)`` returns a real floating-point tensor or a tree of them.
        x: A real floating-point tensor, or a tree of them.
        v: Structured as ``x``: same shapes, dtypes and devices.
        order: How often to differentiate, 0 or more; 0 is ``f(x, *args)``.
        args: Passed on to ``f`` after ``x``.

    Returns:
        The derivative, structured and shaped as ``f(x, *args)``.

    Raises:
        DerivativeError: If an operation of ``f`` has no forward-mode formula, or ``f`` changes its input in place, or
            computes under ``inference_mode`` or ``no_grad`` with what depends on ``x`` (inside a ``no_grad`` of the
            caller's, another one changes nothing: forward mode goes through it, and the derivative is right).
        TypeError: If ``x``, ``v`` or the output of ``f`` are not of real floating-point dtypes, or differ in dtype.
        ValueError: If ``v`` is not structured and shaped as ``x``, or ``order`` is no integer from 0 on.

    Example:
        >>> from torchadx.autodiff._directional import directional
        >>> directional(lambda x: (x**3).sum(), torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0]), order=2)
        tensor(6.)
    """
    if isinstance(order, bool) or not isinstance(order, int) or order < 0:
        raise ValueError(f"order must be an integer from 0 on: got {order!r}")
    leaves, spec = flat_point(x)
    directions = flat_direction(v, leaves, spec)
    with forward_mode():
        return along(f, leaves, directions, spec, args, order)


def along(
    f: Callable[..., Any],
    leaves: Sequence[torch.Tensor],
    directions: Sequence[torch.Tensor],
    spec: pytree.TreeSpec,
    args: tuple[Any, ...],
    order: int,
) -> Any:
    """``directional`` after its checks; may run under vmap."""

    @watched
    def value(*point: torch.Tensor) -> Any:
        y = f(pytree.tree_unflatten(point, spec), *args)
        for leaf in pytree.tree_leaves(y):
            require_floating(leaf, "the output of f")
        return y

    if order == 0:
        return value(*leaves)

    def curve(t: torch.Tensor) -> Any:
        return value(*(x + t * v for x, v in zip(leaves, directions, strict=True)))

    derivative: Callable[[torch.Tensor], Any] = curve
    for _ in range(order):
        derivative = _derivative(derivative)
    return derivative(leaves[0].new_zeros(()))


def _derivative(curve: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor], Any]:
    def slope(t: torch.Tensor) -> Any:
        return torch.func.jvp(curve, (t,), (torch.ones_like(t),))[1]

    return slope


@contextlib.contextmanager
def forward_mode() -> Iterator[None]:
    """As ``differentiating``, and a missing forward-mode formula is a DerivativeError too."""
    try:
        with differentiating():
            yield
    except NotImplementedError as error:
        if not is_forward_hole(error):
            raise
        raise DerivativeError(
            f"forward mode is not to be had: {first_line(error)}. For attention, run f under "
            "torch.nn.attention.sdpa_kernel(SDPBackend.MATH); otherwise take reverse mode (vhp, or mode='reverse')"
        ) from error
