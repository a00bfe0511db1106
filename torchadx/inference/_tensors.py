"""The tensors among the arguments and results of a call: found, named, and copied out of inference mode."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor
from torch.utils import _pytree as pytree

from torchadx import ops


def tensors_in(tree: Any) -> list[Tensor]:
    """Return the tensors in nested tuples, lists, dicts and whatever else is registered as a pytree."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def named_inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors among the arguments with names for messages, e.g. ``input 0['image']``."""
    for position, argument in enumerate(args):
        yield from _named(f"input {position}", argument)
    for name, argument in kwargs.items():
        yield from _named(f"keyword input {name!r}", argument)


def _named(name: str, tree: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(tree, Tensor):
        yield name, tree
    else:
        for path, leaf in pytree.tree_flatten_with_path(tree)[0]:
            if isinstance(leaf, Tensor):
                yield name + pytree.keystr(path), leaf


def in_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in a dtype: itself, where it has that already."""
    return tensor if tensor.dtype is dtype else tensor.to(dtype)


def normal_copy(tensor: Tensor) -> Tensor:
    """Copy a tensor to a normal one, without a graph, whatever mode is on; a tangent that it carries comes along."""
    with torch.inference_mode(False), torch.no_grad():
        tangent = tangent_of(tensor)
        if tangent is None:
            return tensor.clone()
        # an operation on a dual tensor whose primal is an inference tensor drops the tangent, even outside of the mode
        primal = fwAD.unpack_dual(tensor).primal.clone()
        return fwAD.make_dual(primal, tangent.clone())


def tangent_of(tensor: Tensor) -> Tensor | None:
    """Return the tangent that a tensor carries at the current level, if it does; ask outside of inference mode."""
    if not ops.in_forward_level() or not (tensor.is_floating_point() or tensor.is_complex()):
        return None
    return fwAD.unpack_dual(tensor).tangent


def normal(tree: Any) -> Any:
    """Copy every inference tensor in ``tree`` to a normal one, once though it may be there twice; return all else."""
    copies: dict[int, Tensor] = {}

    def copy(leaf: Any) -> Any:
        if not (isinstance(leaf, Tensor) and leaf.is_inference()):
            return leaf
        if id(leaf) not in copies:
            copies[id(leaf)] = normal_copy(leaf)
        return copies[id(leaf)]

    return copy(tree) if isinstance(tree, Tensor) else pytree.tree_map(copy, tree)
