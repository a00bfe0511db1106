"""What a wrapped callable does at its boundary: with tangents under inference mode, and with inference tensors."""

import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

from torchadx import ops
from torchadx.inference._mode import outside_inference
from torchadx.inference._tangents import KeepTangents
from torchadx.inference._tensors import named_inputs, normal, tangent_of, tensors_in

Result = TypeVar("Result")

CHOICES = {
    "policy": ("exact", "raise"),
    "inference_tensors": ("copy", "raise"),
    "outputs": ("inference", "normal"),
}


class Boundary:
    """The rules of one wrapper, and which of its warnings have been given.

    Args:
        name: What is wrapped, for messages.
        policy: ``"exact"`` or ``"raise"``.
        inference_tensors: ``"copy"`` or ``"raise"``.
        outputs: ``"inference"`` or ``"normal"``.
    """

    def __init__(self, name: str, policy: str, inference_tensors: str, outputs: str) -> None:
        """Check the choices; raises ``ValueError`` for an unknown one."""
        given = {"policy": policy, "inference_tensors": inference_tensors, "outputs": outputs}
        for option, value in given.items():
            if value not in CHOICES[option]:
                raise ValueError(f"{option} must be {' or '.join(map(repr, CHOICES[option]))}, got {value!r}")
        self.name = name
        self.policy = policy
        self.inference_tensors = inference_tensors
        self.outputs = outputs
        self._warned: set[str] = set()

    @staticmethod
    def passes() -> bool:
        """Whether a compiler, tracer or transform is at work, to which a wrapper must be transparent.

        A forward transform is none where inference mode, switched on inside of it, would drop its tangents.
        """
        if torch.compiler.is_compiling() or not ops.no_tracer():
            return True
        drops = torch.is_inference_mode_enabled() and ops.in_forward_level()
        return bool(ops.transforms()) and not drops

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function by the rules."""
        if self.passes():
            return function(*args, **kwargs)
        args, kwargs = self.admit(args, kwargs)
        return self.run(lambda: function(*args, **kwargs), named_inputs(args, kwargs))

    def admit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments; where gradients are recorded, without inference tensors among them."""
        if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
            return args, kwargs
        if not any(tensor.is_inference() for tensor in tensors_in((args, kwargs))):
            return args, kwargs
        for name, tensor in named_inputs(args, kwargs):
            if tensor.is_inference():
                self.object_to_inference(name, "It was copied, as it will be in every call")
        return normal((args, kwargs))

    def run(self, step: Callable[[], Result], named: Iterable[tuple[str, Tensor]]) -> Result:
        """Run ``step``, which reads the tensors ``named``, by the rules for tangents and outputs."""
        if ops.in_forward_level():
            return self._run_with_tangents(step, named)
        return self.finish(step()) if torch.is_inference_mode_enabled() else step()

    def _run_with_tangents(self, step: Callable[[], Result], named: Iterable[tuple[str, Tensor]]) -> Result:
        if not torch.is_inference_mode_enabled():
            with KeepTangents():
                return step()
        # the mode is off, whatever carries a tangent: it may be hidden from us
        with outside_inference():
            if self.policy == "raise":
                for name, tensor in named:
                    if tangent_of(tensor) is not None:
                        raise RuntimeError(self._lost(name))
            with KeepTangents():
                result = step()
            if self.policy == "raise" and any(tangent_of(tensor) is not None for tensor in tensors_in(result)):
                raise RuntimeError(self._lost("a tensor that is not among the inputs"))
            return result

    def finish(self, result: Any) -> Any:
        """Return what inference mode computed as ``outputs`` wants it."""
        return normal(result) if self.outputs == "normal" else result

    def object_to_inference(self, name: str, remedied: str) -> None:
        """Raise, or warn once, about an inference tensor where gradients are recorded."""
        complaint = (
            f"{self.name}: {name} was made under torch.inference_mode(), and PyTorch cannot save such a tensor for "
            "backward. "
        )
        if self.inference_tensors == "raise":
            raise RuntimeError(f"{complaint}Make it outside of the mode, or pass its .clone() made outside.")
        self.warn_once(name, f'{complaint}{remedied}; inference_tensors="raise" makes this an error.')

    def warn_once(self, key: str, message: str) -> None:
        """Warn, unless there was a warning about ``key`` before."""
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(message, UserWarning, stacklevel=_frames_to_the_caller())

    def _lost(self, name: str) -> str:
        return (
            f"{self.name}: {name} carries a forward-mode tangent, which torch.inference_mode() would drop in silence. "
            'Use torch.no_grad() here, leave the mode by torch.inference_mode(False), or let policy="exact" do so.'
        )


def _frames_to_the_caller() -> int:
    """Count the frames up to the first that is neither torch's nor ours, for a warning that points there."""
    frame, count = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("torch", "torchadx"):
        frame, count = frame.f_back, count + 1
    return count
