"""Finding activations by whatever users call them, and adding to them."""

from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from torchadx.activations.activation import Activation, Keeps
from torchadx.activations.rows import ROWS

_by_name: dict[str, Activation] = {}
_by_function: dict[Callable[..., Tensor], Activation] = {}


def _add(row: Activation) -> None:
    taken = [name for name in (row.name, *row.aliases) if name in _by_name]
    if taken:
        raise ValueError(f"activation {taken[0]!r} is already registered as {_by_name[taken[0]]}; choose another name")
    for name in (row.name, *row.aliases):
        _by_name[name] = row
    for function in row.functions:
        _by_function[function] = row


for _row in ROWS:
    _add(_row)


def known() -> Iterator[Activation]:
    """Yield every registered activation once, in order of registration."""
    yield from dict.fromkeys(_by_name.values())


ActivationLike = str | nn.Module | Callable[..., Tensor] | Activation | None


def resolve(activation: ActivationLike) -> Activation:
    """Find the row that an activation stands for.

    Args:
        activation: A name (``"gelu"``), an instance of a ``torch.nn`` module (``torch.nn.GELU("tanh")``), a function
            (``torch.nn.functional.silu``), a row, or ``None`` for the identity.

    Returns:
        The registered row.

    Raises:
        ValueError: The activation, or its hyperparameters, are not known; the message lists what is.

    Example:
        >>> resolve(torch.nn.GELU(approximate="tanh"))
        Activation('gelu_tanh', keeps='pre_activation')
    """
    if activation is None:
        return _by_name["identity"]
    if isinstance(activation, str):
        found = _by_name.get(activation)
    elif isinstance(activation, Activation):
        found = activation if _by_name.get(activation.name) is activation else None
    elif isinstance(activation, nn.Module):
        found = next((row for row in known() for twin in row.modules if _same_module(twin, activation)), None)
    else:
        found = _by_function.get(activation) if isinstance(activation, Hashable) else None
    if found is None:
        names = ", ".join(row.name for row in known())
        raise ValueError(
            f"unknown activation {activation!r}; known: {names}. "
            "Add others with torchadx.register_activation(), or apply them after a linear without activation."
        )
    return found


def _same_module(twin: nn.Module, module: nn.Module) -> bool:
    settings = set(getattr(twin, "__constants__", ())) - {"inplace"}
    return type(twin) is type(module) and all(getattr(twin, s) == getattr(module, s) for s in settings)


def register_activation(
    name: str,
    *,
    value: Callable[[Tensor], Tensor],
    derivative: Callable[[Tensor], Tensor],
    second_derivative: Callable[[Tensor], Tensor],
    keeps: Keeps = "pre_activation",
    **extras: Any,
) -> Activation:
    """Add an activation that every fused op, module and test table then knows by name.

    The formulas are compared with autograd of ``value`` in float64 before the row is accepted, so that no wrong
    tangent can enter. Formulas written over :data:`VOCABULARY` run fused in Triton; others run on the ATen route.

    Args:
        name: The name to register.
        value: ``z -> f(z)``, elementwise, differentiable twice by autograd. Shapes and dtypes are preserved.
        derivative: ``kept -> f'(z)``.
        second_derivative: ``kept -> f''(z)``.
        keeps: What ``kept`` is: ``"pre_activation"`` (z) or ``"output"`` (f(z)).
        **extras: Further fields of :class:`Activation`: ``forward``, ``backward``, ``modules``, ``functions``,
            ``aliases``.

    Returns:
        The new row.

    Raises:
        ValueError: The name is taken, ``keeps`` is unknown, or a formula disagrees with autograd of ``value``.

    Example:
        >>> row = register_activation(
        ...     "square",
        ...     value=lambda z: z * z,
        ...     derivative=lambda z: 2 * z,
        ...     second_derivative=lambda z: 2 * torch.ones_like(z),
        ... )
        >>> row.keeps
        'pre_activation'
    """
    if keeps not in ("output", "pre_activation"):
        raise ValueError(f"keeps must be 'output' or 'pre_activation' ('nothing' is the identity's), got {keeps!r}")
    row = Activation(name, value, derivative, second_derivative, keeps, **extras)
    _check_formulas(row)
    _add(row)
    return row


def _check_formulas(row: Activation) -> None:
    # offset from round numbers: kinks have no single derivative to compare with
    z = torch.linspace(-6.0371, 6.0529, 101, dtype=torch.float64, requires_grad=True)
    with torch.inference_mode(False), torch.enable_grad():
        y = row.value(z)
        (first,) = torch.autograd.grad(y.sum(), z, create_graph=True)
        # a derivative that does not depend on z has no graph to go through
        second = torch.autograd.grad(first.sum(), z)[0] if first.requires_grad else torch.zeros_like(z)
    kept = (y if row.keeps == "output" else z).detach()
    found = {
        "forward": (row.forward(z), y),
        "derivative": (row.derivative(kept), first),
        "second_derivative": (row.second_derivative(kept), second),
        "backward": (row.backward(torch.ones_like(kept), kept), first),
        "fast_backward": (row.fast_backward(torch.ones_like(kept), kept), first),
    }
    for field, (got, expected) in found.items():
        if got.shape != z.shape or not torch.allclose(got, expected, rtol=1e-7, atol=1e-9):
            error = (got - expected).abs().max().item() if got.shape == z.shape else f"shape {tuple(got.shape)}"
            raise ValueError(
                f"activation {row.name!r}: `{field}` disagrees with autograd of `value` in float64 (error {error}); "
                f"with keeps={row.keeps!r} it must be a function of the {row.keeps.replace('_', '-')}"
            )
