"""A function at a point, as a map of flat vectors that is the same map each time it is evaluated."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from torchadx.autodiff._arguments import flat_point
from torchadx.autodiff._errors import DerivativeError
from torchadx.autodiff._watch import translated, watch


class Point:
    """``f`` at ``x``: evaluated once for what it returns, and again, to the same result, for its derivatives.

    The elements of ``x`` are copied. Other tensors that ``f`` uses are not: one that is changed in place after the
    first evaluation is an error, as derivatives would mix old values with new ones. Every evaluation draws the random
    numbers of the first.

    Attributes:
        x: Copy of the elements of ``x``, in leaf order, ``(n,)``.
        y: The elements of ``f(x, *args)``, ``(m,)``.
        draws: Whether ``f`` takes numbers from PyTorch's default generators.
    """

    def __init__(self, f: Callable[..., Any], x: Any, args: Sequence[Any]) -> None:
        leaves, self._spec = flat_point(x)
        self._shapes = [leaf.shape for leaf in leaves]
        self._f = f
        with torch.inference_mode(False):
            self.x = _flatten(leaves, "x").clone()
            self._args = pytree.tree_map_only(torch.Tensor, _usable, tuple(args))
            self._look()

    def _look(self) -> None:
        before = _random_states(self.x.device)
        captured = _Captured()

        def run(x: torch.Tensor) -> list[torch.Tensor]:
            leaves = self._unflatten(x, self._shapes)
            with watch(leaves) as seen:
                y = self._f(pytree.tree_unflatten(leaves, self._spec), *self._args)
            seen.check(y)
            outputs, self._output_spec = flat_point(y, "the output of f")
            return outputs

        # as it will be differentiated: there, grad mode is on, and a torch.autograd.Function is one operation
        with detached(), captured:
            outputs = torch.func.vjp(run, self.x)[0]
        self._output_shapes = [leaf.shape for leaf in outputs]
        self.y = _flatten(outputs, "the output of f").clone()
        if self.y.dtype != self.x.dtype:
            raise TypeError(f"f returns {self.y.dtype}, expected {self.x.dtype}, that of x; convert with .to(...)")
        if self.y.device != self.x.device:
            raise ValueError(f"f returns tensors on {self.y.device}, expected {self.x.device}, where x is; move them")
        after = _random_states(self.x.device)
        self.draws = any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
        self._states = before
        self._captured = captured.versions()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``(n,)`` to ``(m,)``, differentiable."""
        y = self._f(pytree.tree_unflatten(self._unflatten(x, self._shapes), self._spec), *self._args)
        return torch.cat([leaf.reshape(-1) for leaf in pytree.tree_leaves(y)])

    def output(self) -> Any:
        """What ``f`` returned, without graph."""
        return pytree.tree_unflatten(self._unflatten(self.y, self._output_shapes), self._output_spec)

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Around another evaluation: the random numbers are those of the first, and the caller's stay as they are."""
        self.require_unchanged()
        now = _random_states(self.x.device)
        try:
            _set_random_states(self.x.device, self._states)
            yield
        finally:
            _set_random_states(self.x.device, now)

    def require_unchanged(self) -> None:
        """Raise DerivativeError if a tensor that ``f`` used was written to since."""
        for reference, version in self._captured:
            tensor = reference()
            if tensor is not None and tensor._version != version:
                raise DerivativeError(
                    f"a tensor of shape {tuple(tensor.shape)} that f uses was changed in place after the operator was "
                    "made, so that products would mix old values with new ones: make a new operator"
                )

    def require_same(self, y: torch.Tensor) -> None:
        """Raise DerivativeError if another evaluation, of result ``y``, was not that of the first."""
        scale = self.y.abs().nan_to_num(posinf=0).amax() if self.y.numel() else 0
        near = math.sqrt(torch.finfo(self.y.dtype).eps) * scale
        if not bool(((y - self.y).abs() <= near).logical_or((y == self.y) | (y.isnan() & self.y.isnan())).all()):
            raise DerivativeError(
                "f returned something else when it was evaluated again at the same x: it keeps state, or draws from a "
                "generator of its own (PyTorch's default ones are rewound); draw outside of f and pass through args"
            )

    @staticmethod
    def _unflatten(flat: torch.Tensor, shapes: Sequence[torch.Size]) -> list[torch.Tensor]:
        pieces = flat.split([shape.numel() for shape in shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]


class _Captured(TorchFunctionMode):
    """Meets every tensor that a function works on; those alive afterwards are not its own."""

    def __init__(self) -> None:
        super().__init__()
        self._met: dict[int, weakref.ref[torch.Tensor]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for leaf in pytree.tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor):
                self._met[id(leaf)] = weakref.ref(leaf)
        return func(*args, **(kwargs or {}))

    def versions(self) -> list[tuple[weakref.ref[torch.Tensor], int]]:
        """Tensors that are alive, with their version counters; inference tensors have none."""
        alive = [(reference, reference()) for reference in self._met.values()]
        return [(reference, t._version) for reference, t in alive if t is not None and not t.is_inference()]


@contextlib.contextmanager
def detached() -> Iterator[None]:
    """Around derivatives: torch's errors in words of what to do; nothing of an outer graph or inference mode."""
    with translated(), torch.inference_mode(False), torch.no_grad():
        yield


def _usable(tensor: torch.Tensor) -> torch.Tensor:
    """Inference tensors cannot be saved for a derivative; their copies can."""
    return tensor.clone() if tensor.is_inference() else tensor


def _flatten(leaves: Sequence[torch.Tensor], name: str) -> torch.Tensor:
    if len({leaf.dtype for leaf in leaves}) > 1:
        raise TypeError(f"{name} mixes {', '.join(sorted({str(leaf.dtype) for leaf in leaves}))}, expected one dtype")
    if len({leaf.device for leaf in leaves}) > 1:
        devices = ", ".join(sorted({str(leaf.device) for leaf in leaves}))
        raise ValueError(f"{name} is on {devices}, expected one device")
    return torch.cat([leaf.detach().reshape(-1) for leaf in leaves])


def _random_states(device: torch.device) -> list[torch.Tensor]:
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state(device))
    return states


def _set_random_states(device: torch.device, states: Sequence[torch.Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[1], device)
