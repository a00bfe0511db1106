"""Forward AD that inference mode does not switch off in silence."""

from collections.abc import Callable
from typing import Any, Literal, overload

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor
from torch.autograd.forward_ad import UnpackedDualTensor

from torchadx.inference._mode import outside_inference
from torchadx.inference._tangents import KeepTangents
from torchadx.inference._tensors import normal


def make_dual(tensor: Tensor, tangent: Tensor, *, level: int | None = None) -> Tensor:
    """Make a dual tensor, as :func:`torch.autograd.forward_ad.make_dual` does, in any mode.

    PyTorch's own, called inside ``torch.inference_mode()``, returns a tensor without the tangent.

    Args:
        tensor: The primal; floating-point or complex, any shape.
        tangent: The direction, of the primal's shape, dtype and device.
        level: The forward level; the current one by default.

    Returns:
        The dual tensor. Inside inference mode PyTorch's operations ignore its tangent; an
        :class:`~torchadx.InferenceAware` module, an :func:`aware` function and :func:`unpack_dual` do not.

    Raises:
        RuntimeError: No level is entered (``torch.autograd.forward_ad.dual_level``).

    Example:
        >>> x = torch.tensor([1.0, 2.0])
        >>> with torch.autograd.forward_ad.dual_level(), torch.inference_mode():
        ...     unpack_dual(make_dual(x, torch.ones(2))).tangent
        tensor([1., 1.])
    """
    with outside_inference():
        # what is computed from a dual whose primal is an inference tensor has no tangent
        return fwAD.make_dual(normal(tensor), normal(tangent), level=level)


def unpack_dual(tensor: Tensor, *, level: int | None = None) -> UnpackedDualTensor:
    """Take a dual tensor apart, as :func:`torch.autograd.forward_ad.unpack_dual` does, in any mode.

    PyTorch's own, called inside ``torch.inference_mode()``, says that there is no tangent.

    Args:
        tensor: A tensor, dual or not.
        level: The forward level; the current one by default.

    Returns:
        ``(primal, tangent)``; the tangent is ``None`` where there is none.
    """
    with outside_inference():
        return fwAD.unpack_dual(tensor, level=level)


@overload
def jvp(
    func: Callable[..., Any], primals: tuple[Any, ...], tangents: tuple[Any, ...], *, has_aux: Literal[False] = ...
) -> tuple[Any, Any]: ...
@overload
def jvp(
    func: Callable[..., Any], primals: tuple[Any, ...], tangents: tuple[Any, ...], *, has_aux: bool
) -> tuple[Any, ...]: ...
def jvp(func: Callable[..., Any], primals: tuple[Any, ...], tangents: tuple[Any, ...], *, has_aux: bool = False) -> Any:
    """Compute the value and the directional derivative of a function, as :func:`torch.func.jvp` does, in any mode.

    A function that switches inference mode on inside is differentiated as if it did not.

    Args:
        func: A function of tensors.
        primals: Its positional arguments.
        tangents: Their directions, of the same structure, shapes and dtypes.
        has_aux: Whether ``func`` returns ``(output, auxiliary)``.

    Returns:
        ``(output, tangent)``, or ``(output, tangent, auxiliary)``. From within inference mode they are normal tensors
        without a graph.
    """
    with outside_inference(), KeepTangents():
        return torch.func.jvp(func, normal(primals), normal(tangents), has_aux=has_aux)
