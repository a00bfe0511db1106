"""Checks of points, directions and outputs that are trees of tensors."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree


def flat_point(x: Any, name: str = "x") -> tuple[list[torch.Tensor], pytree.TreeSpec]:
    """Leaves and structure of a tree of real floating-point tensors.

    Raises:
        TypeError: If a leaf is no tensor, or not of a real floating-point dtype.
        ValueError: If there is none.
    """
    leaves, spec = pytree.tree_flatten(x)
    if not leaves:
        raise ValueError(f"{name} holds no tensor: got {type(x).__name__} without leaves, expected at least one tensor")
    for leaf in leaves:
        require_floating(leaf, name)
    return leaves, spec


def flat_direction(v: Any, leaves: Sequence[torch.Tensor], spec: pytree.TreeSpec) -> list[torch.Tensor]:
    """Leaves of a direction at the point with the given leaves.

    Raises:
        TypeError: If a leaf is no tensor, or not of the dtype of the point's.
        ValueError: If structure, shapes or devices differ from the point's.
    """
    directions, v_spec = pytree.tree_flatten(v)
    if v_spec != spec:
        raise ValueError(f"v must have the structure of x: got {v_spec}, expected {spec}")
    for direction, leaf in zip(directions, leaves, strict=True):
        require_floating(direction, "v")
        if direction.shape != leaf.shape:
            raise ValueError(f"v must have the shapes of x: got {tuple(direction.shape)}, expected {tuple(leaf.shape)}")
        if direction.dtype != leaf.dtype:
            raise TypeError(f"v must have the dtypes of x: got {direction.dtype}, expected {leaf.dtype}")
        if direction.device != leaf.device:
            raise ValueError(f"v must be where x is: got {direction.device}, expected {leaf.device}")
    return directions


def require_floating(leaf: Any, name: str) -> None:
    """Raise TypeError unless ``leaf`` is a tensor of a real floating-point dtype."""
    if not isinstance(leaf, torch.Tensor):
        raise TypeError(f"{name} must be made of tensors: got {type(leaf).__name__}; pass anything else through args")
    if not leaf.is_floating_point():
        raise TypeError(f"{name} must be of a real floating-point dtype: got {leaf.dtype}; convert it with .to(...)")


def require_scalar(y: Any) -> None:
    """Raise unless ``y`` is one floating-point tensor without dimensions (TypeError, ValueError)."""
    require_floating(y, "the output of f")
    if y.dim() != 0:
        raise ValueError(f"f must return one number, of shape (): got {tuple(y.shape)}; .sum() or .squeeze() it")
