"""What an activation is: a row of formulas."""

import dataclasses
from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

Keeps = Literal["nothing", "output", "pre_activation"]

#: Functions of ``torch`` that a formula may call and still run in a Triton kernel. Arithmetic, comparisons and
#: ``.to(z.dtype)`` are allowed too; anything else keeps the activation on the ATen route.
VOCABULARY = (
    "abs", "erf", "exp", "expm1", "log", "log1p", "ones_like", "sigmoid", "sqrt", "tanh", "where", "zeros_like",
)  # fmt: skip


def _by_default(*args: Tensor) -> Tensor:
    raise NotImplementedError("a marker, replaced when the row is made")


@dataclasses.dataclass(frozen=True, eq=False)
class Activation:
    """An elementwise function, its derivatives, and what backward must keep to evaluate them.

    ``kept`` below is the pre-activation ``z`` where ``keeps == "pre_activation"``, the output ``y`` where
    ``keeps == "output"`` (the next layer saves it anyway); ``keeps == "nothing"`` is the identity's, whose slope is 1.

    Attributes:
        name: The name users pass, e.g. ``"gelu"``.
        value: ``z -> f(z)``, a formula.
        derivative: ``kept -> f'(z)``, a formula; differentiable to any order.
        second_derivative: ``kept -> f''(z)``, a formula; differentiable to any order.
        keeps: What backward needs: ``"nothing"``, ``"output"`` or ``"pre_activation"``.
        forward: ``z -> f(z)``, ATen's fastest route; differentiable. Default: ``value``.
        backward: ``(g, kept) -> g * f'(z)``, ATen's best differentiable route (to any order). Default: the formula.
        fast_backward: The same where nothing differentiates it. Default: ``backward``.
        overwrite: ``(z, tz)`` become ``(f(z), f'(z) tz)`` in place, where ATen can; never differentiated.
        onednn: ``(attribute, algorithm)`` of oneDNN's fused linear, where it knows the function.
        modules: ``torch.nn`` modules that compute this function, as instances with the matching hyperparameters.
        functions: Callables that compute this function, e.g. ``torch.nn.functional.gelu``.
        aliases: Further names.
    """

    name: str
    value: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    second_derivative: Callable[[Tensor], Tensor]
    keeps: Keeps = "pre_activation"
    forward: Callable[..., Tensor] = _by_default
    backward: Callable[..., Tensor] = _by_default
    fast_backward: Callable[..., Tensor] = _by_default
    overwrite: Callable[[Tensor, Tensor], None] | None = None
    onednn: tuple[str, str] | None = None
    modules: tuple[nn.Module, ...] = ()
    functions: tuple[Callable[..., Tensor], ...] = ()
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Fill in the ATen routes that default to the formulas."""
        if self.forward is _by_default:
            object.__setattr__(self, "forward", self.value)
        if self.backward is _by_default:
            object.__setattr__(self, "backward", lambda g, kept: g * self.derivative(kept))
        if self.fast_backward is _by_default:
            object.__setattr__(self, "fast_backward", self.backward)

    def __repr__(self) -> str:
        """Name the row; the formulas are in its attributes."""
        return f"Activation({self.name!r}, keeps={self.keeps!r})"

    @property
    def native(self) -> bool:
        """Whether ATen has the function as an op of its own, so that composing it costs no extra passes."""
        return self.forward is not self.value or self.keeps == "nothing"

    def kept(self, y: Tensor, z: Tensor | None) -> Tensor | None:
        """Return what backward reads, given the output ``y`` and the pre-activation ``z``; both of any one shape."""
        return {"nothing": None, "output": y, "pre_activation": z}[self.keeps]
