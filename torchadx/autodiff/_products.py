"""Products with the Hessian of a scalar function, without the Hessian."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from torchadx.autodiff._arguments import flat_direction, flat_point, require_scalar
from torchadx.autodiff._errors import DerivativeError
from torchadx.autodiff._watch import differentiating, first_line, is_forward_hole, watched

_MODES = ("auto", "forward-reverse", "reverse-reverse")


def hvp(f: Callable[..., Any], x: Any, v: Any, *, args: tuple[Any, ...] = (), mode: str = "auto") -> Any:
    """Hessian-vector product ``H(x) v`` of a scalar function.

    Forward over reverse, ``jvp(grad(f))``, costs about two gradients and holds little more than one (Pearlmutter, "Fast
    exact multiplication by the Hessian", 1994). Where an operation has no forward-mode formula, ``mode="auto"`` takes
    reverse over reverse, the gradient of ``<grad f, v>``, instead: the same numbers for more memory.

    The product is differentiable again if grad mode is on and ``x``, ``v`` or a captured parameter requires grad.

    Args:
        f: ``f(x, *args)`` returns one floating-point number, of shape ().
        x: A real floating-point tensor, or a tree of them (a dictionary of parameters).
        v: Structured as ``x``: same shapes, dtypes and devices.
        args: Passed on to ``f`` after ``x``; nothing is differentiated by them.
        mode: ``"auto"``, ``"forward-reverse"`` or ``"reverse-reverse"``; with the last two there is no second choice.

    Returns:
        The product, structured as ``x``.

    Raises:
        DerivativeError: If an operation of ``f`` has no such derivative (the flash kernel of
            ``scaled_dot_product_attention`` has none of second order), if ``f`` computes under ``no_grad`` or
            ``inference_mode`` with what depends on ``x``, changes ``x`` in place, or saved-tensor hooks are active.
        TypeError: If ``x``, ``v`` or the output of ``f`` are not of real floating-point dtypes, or differ in dtype.
        ValueError: If ``v`` is not structured and shaped as ``x``, ``f(x)`` is not scalar, or ``mode`` is not known.

    Example:
        >>> from torchadx.autodiff._products import hvp
        >>> hvp(lambda x: (x**3).sum(), torch.tensor([1.0, 2.0]), torch.tensor([1.0, 10.0]))
        tensor([  6., 120.])
    """
    if mode not in _MODES:
        raise ValueError(f"mode must be one of {', '.join(map(repr, _MODES))}: got {mode!r}")
    leaves, spec = flat_point(x)
    directions = flat_direction(v, leaves, spec)
    gradient = _gradient(f, spec, args, len(leaves))
    if mode == "reverse-reverse":
        return pytree.tree_unflatten(_reverse_reverse(gradient, leaves, directions), spec)
    try:
        with differentiating():
            product: Any = torch.func.jvp(gradient, tuple(leaves), tuple(directions))[1]
    except RuntimeError as error:
        if not is_forward_hole(error):
            raise
        if mode == "forward-reverse":
            raise DerivativeError(
                f"forward over reverse is not to be had: {first_line(error)}. For attention, run f under "
                "torch.nn.attention.sdpa_kernel(SDPBackend.MATH); otherwise ask for mode='reverse-reverse' (or 'auto')"
            ) from error
        product = _reverse_reverse(gradient, leaves, directions)
    return pytree.tree_unflatten(product, spec)


def vhp(f: Callable[..., Any], x: Any, v: Any, *, args: tuple[Any, ...] = ()) -> Any:
    """Vector-Hessian product ``v^T H(x)`` of a scalar function, by reverse over reverse.

    The Hessian of a twice continuously differentiable function is symmetric, so that this is ``hvp(f, x, v)``; it needs
    no forward-mode formula, but holds the graph of the gradient. Arguments, result and errors are those of ``hvp``.

    Args:
        f: ``f(x, *args)`` returns one floating-point number, of shape ().
        x: A real floating-point tensor, or a tree of them.
        v: Structured as ``x``.
        args: Passed on to ``f`` after ``x``.

    Returns:
        The product, structured as ``x``.

    Raises:
        DerivativeError: As for ``hvp``.
        TypeError: As for ``hvp``.
        ValueError: As for ``hvp``.

    Example:
        >>> from torchadx.autodiff._products import vhp
        >>> vhp(lambda x: x[0] * x[1], torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0]))
        tensor([5., 3.])
    """
    return hvp(f, x, v, args=args, mode="reverse-reverse")


def _gradient(f: Callable[..., Any], spec: pytree.TreeSpec, args: tuple[Any, ...], count: int) -> Callable[..., Any]:
    def value(*leaves: torch.Tensor) -> torch.Tensor:
        y = f(pytree.tree_unflatten(leaves, spec), *args)
        require_scalar(y)
        return y

    return torch.func.grad(watched(value), argnums=tuple(range(count)))


def _reverse_reverse(
    gradient: Callable[..., Any], leaves: Sequence[torch.Tensor], directions: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    def slope(*point: torch.Tensor) -> torch.Tensor:
        terms = [(g * v).sum() for g, v in zip(gradient(*point), directions, strict=True)]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total

    try:
        with differentiating():
            return torch.func.grad(slope, argnums=tuple(range(len(leaves))))(*leaves)
    except RuntimeError as error:
        if "is not implemented" not in str(error) or isinstance(error, DerivativeError):
            raise
        raise DerivativeError(
            f"reverse over reverse is not to be had: {first_line(error)}. For attention, run f under "
            "torch.nn.attention.sdpa_kernel(SDPBackend.MATH); otherwise write f without this operation"
        ) from error
