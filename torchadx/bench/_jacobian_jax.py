"""The same networks in JAX, with the same weights. Imported only where JAX takes part."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch.utils.dlpack
from torch import Tensor, nn

try:
    import jax
    import jax.numpy as jnp
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{error.name} is not installed: pip install jax", name=error.name) from error

Apply = Callable[[Any], Any]


def step(how: str, f: nn.Module, x: Tensor, batched: bool) -> Callable[[], Tensor]:
    """Return what computes the Jacobian of ``f`` at ``x`` by ``jax.jacrev`` or ``jax.jacfwd``, jitted.

    Raises:
        NotImplementedError: A layer of ``f`` has no translation, or ``x`` is not on a CPU.
    """
    if x.device.type != "cpu":
        raise NotImplementedError(f"JAX is compared on CPUs only, and the input is on {x.device}")
    jacobian = {"jacrev": jax.jacrev, "jacfwd": jax.jacfwd}[how](translate(f))
    jitted = jax.jit(jax.vmap(jacobian) if batched else jacobian)
    point = _array(x)
    return lambda: torch.utils.dlpack.from_dlpack(jitted(point).block_until_ready())


@functools.singledispatch
def translate(module: nn.Module) -> Apply:
    """Return what ``module`` does to one sample, as a function of JAX arrays."""
    raise NotImplementedError(f"{type(module).__name__} is not translated to JAX")


@translate.register
def _(module: nn.Sequential) -> Apply:
    layers = [translate(layer) for layer in module]
    return lambda x: functools.reduce(lambda x, layer: layer(x), layers, x)


@translate.register
def _(module: nn.Linear) -> Apply:
    weight, bias = _array(module.weight), _array(module.bias)
    return lambda x: weight @ x + bias


@translate.register
def _(_module: nn.ReLU) -> Apply:
    return jax.nn.relu


@translate.register
def _(_module: nn.Tanh) -> Apply:
    return jnp.tanh


@translate.register
def _(_module: nn.Flatten) -> Apply:
    return jnp.ravel


@translate.register
def _(module: nn.Unflatten) -> Apply:
    return lambda x: x.reshape(module.unflattened_size)


@translate.register
def _(module: nn.Conv2d) -> Apply:
    padding = [(pad, pad) for pad in module.padding]
    return _convolution(module, _array(module.weight), padding, window_strides=module.stride)


@translate.register
def _(module: nn.ConvTranspose2d) -> Apply:
    # a transposed convolution is one over the input spread out, with the kernel turned around
    weight = _array(module.weight.transpose(0, 1).flip(-1, -2))
    pads: list[tuple[Any, Any]] = list(zip(module.kernel_size, module.padding, strict=True))
    padding = [(size - 1 - pad,) * 2 for size, pad in pads]
    return _convolution(module, weight, padding, window_strides=(1, 1), lhs_dilation=module.stride)


def _convolution(module: nn.Module, weight: Any, padding: Sequence[Any], **options: Any) -> Apply:
    bias = _array(module.bias)[:, None, None]
    return lambda x: jax.lax.conv_general_dilated(x[None], weight, padding=padding, **options)[0] + bias


def _array(tensor: Any) -> Any:
    return jnp.asarray(tensor.detach().contiguous().numpy())
