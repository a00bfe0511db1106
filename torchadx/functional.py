"""Fused layers as functions: check the arguments, then run the op."""

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from torchadx import dispatch, ops
from torchadx.activations import ActivationLike, resolve

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: ActivationLike = None) -> Tensor:
    """Compute ``activation(x @ weight.T + bias)`` in one fused op that every differentiation mode goes through.

    Backward, forward-mode JVP, double backward, vmap, autocast, ``torch.compile(fullgraph=True)`` and export compose
    through it, to any order.

    Args:
        x: ``(..., in)``; float32, float64, float16 or bfloat16.
        weight: ``(out, in)``, of x's device and (outside autocast) dtype.
        bias: ``(out,)``, likewise, or ``None``.
        activation: A name (``"gelu"``), a ``torch.nn`` module, a function of ``torch.nn.functional``, or ``None``;
            see :func:`torchadx.activations.resolve`.

    Returns:
        ``(..., out)``, in x's dtype (in the autocast dtype under autocast).

    Raises:
        TypeError: An argument is not a dense tensor of a supported floating-point type.
        ValueError: A shape, dtype or device does not fit the others, or the activation is unknown.
        RuntimeError: An argument carries a tangent and ``torch.inference_mode()``, which drops tangents, is on.

    Example:
        >>> x, weight, bias = torch.randn(8, 3), torch.randn(5, 3), torch.randn(5)
        >>> y = linear(x, weight, bias, "gelu")
        >>> torch.allclose(y, torch.nn.functional.gelu(torch.nn.functional.linear(x, weight, bias)), atol=1e-6)
        True
    """
    row = resolve(activation)
    tensors = (x, weight, bias)
    if has_torch_function(tensors):
        return handle_torch_function(linear, tensors, x, weight, bias, activation)
    _check_linear(x, weight, bias)
    if not torch.compiler.is_compiling():
        return ops.call_linear(x, weight, bias, row)
    if dispatch.compiler_fuses(x):
        return row.forward(torch.nn.functional.linear(x, weight, bias))
    return torch.ops.torchadx.linear(x, weight, bias, row.name)


def explain(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: ActivationLike = None) -> str:
    """Say which backend and routes :func:`linear` uses for these arguments, and why.

    Args:
        x: As for :func:`linear`.
        weight: As for :func:`linear`.
        bias: As for :func:`linear`.
        activation: As for :func:`linear`.

    Returns:
        Lines of text: the backend with its reason, then the choices tuned so far for these sizes.
    """
    _check_linear(x, weight, bias)
    return ops.explain_linear(x, weight, resolve(activation))


def _check_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    # one pass for the usual case; whatever is wrong is named by the slower look below
    try:
        fits = (
            x.dtype in _DTYPES
            and x.layout is weight.layout is torch.strided
            and not x.is_nested
            and weight.dtype is x.dtype
            and weight.dim() == 2
            and x.dim() > 0
            and x.shape[-1] == weight.shape[1]
            and weight.device == x.device
            and (
                bias is None
                or (bias.dtype is x.dtype and bias.dim() == 1 and bias.shape[0] == weight.shape[0]
                    and bias.device == x.device)
            )
        )  # fmt: skip
    except AttributeError:
        fits = False
    if not fits:
        _explain_misfit(x, weight, bias)


def _explain_misfit(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    named = {"x": x, "weight": weight} | ({} if bias is None else {"bias": bias})
    for name, t in named.items():
        if not isinstance(t, Tensor):
            raise TypeError(f"linear: {name} must be a tensor, got {type(t).__name__}")
        if t.layout is not torch.strided or t.is_nested:
            kind = "nested" if t.is_nested else t.layout
            raise TypeError(f"linear: {name} must be a dense tensor, got a {kind} one; convert it first")
        if t.dtype not in _DTYPES:
            raise TypeError(
                f"linear: {name} has dtype {t.dtype}; expected one of {', '.join(map(str, _DTYPES))}. "
                f"Convert it first, e.g. {name}.float()."
            )
    if x.dim() == 0:
        raise ValueError("linear: x must have at least one dimension, (..., in), got a 0-d tensor")
    if weight.dim() != 2:
        raise ValueError(f"linear: weight must be 2-D, (out, in), got shape {tuple(weight.shape)}")
    if x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"linear: the last dimension of x is {x.shape[-1]}, but weight {tuple(weight.shape)} = (out, in) "
            f"expects {weight.shape[1]}; x has shape {tuple(x.shape)}"
        )
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"linear: bias must have shape ({weight.shape[0]},) = (out,), got {tuple(bias.shape)}")
    for name, t in named.items():
        if t.device != x.device:
            raise ValueError(f"linear: {name} is on {t.device}, but x is on {x.device}; move one with .to()")
        if t.dtype != x.dtype and not _autocast_unifies(t, x):
            raise ValueError(
                f"linear: {name} has dtype {t.dtype}, but x has {x.dtype}; convert one with .to(), "
                f"or run under torch.autocast({x.device.type!r})"
            )


def _autocast_unifies(a: Tensor, b: Tensor) -> bool:
    # autocast leaves float64 alone, as PyTorch's own does
    return dispatch.autocasting(a) and torch.float64 not in (a.dtype, b.dtype)
