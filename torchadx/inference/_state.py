"""A weight as it was when it was last met, and what to do with it as long as it is that."""

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torchadx import dispatch, tuning
from torchadx.activations import Activation
from torchadx.inference._tensors import in_dtype
from torchadx.inference._ways import Way

# of the weight's elements in each of its two dimensions, about as many are looked at before a copy is used
_SAMPLED = 8
DTYPES = {
    **{torch.float64: torch.int64, torch.float32: torch.int32},
    **{torch.float16: torch.int16, torch.bfloat16: torch.int16},
}


def fits(weight: Tensor, bias: Tensor | None) -> bool:
    """Whether both are plain, and the bias one number for each row; PyTorch takes others, and broadcasts them."""
    return type(weight) in (Tensor, nn.Parameter) and (
        bias is None
        or (
            type(bias) in (Tensor, nn.Parameter)
            and bias.dim() == 1
            and bias.shape[0] == weight.shape[0]
            and bias.dtype is weight.dtype
            and bias.device == weight.device
        )
    )


class Affine(NamedTuple):
    """A linear layer: its parameters, and where they are held.

    Attributes:
        owner: The module that has the weight.
        name: What it calls it.
        weight: ``(out, in)``.
        bias: ``(out,)``, of the weight's dtype, or ``None``.
    """

    owner: nn.Module
    name: str
    weight: Tensor
    bias: Tensor | None


@dataclasses.dataclass(eq=False)
class State:
    """A weight as it was when it was last met, and what was made of it.

    Attributes:
        source: What the copies are made from: the weight's memory then. It keeps that, so that no other can be there.
        version: Its version counter.
        pointer: Where its memory is.
        stride: How it lies in it.
        sample: A view of some of its elements, as integers.
        expected: What the sample was.
        looks: Whether the sample is looked at: on a device that would mean waiting for it.
        copies: By way and dtype.
        refused: Whether a copy did not fit.
        routes: What was found to do, by shape and dtype of the input, dtype to compute in, activation and threads.
    """

    source: Tensor
    version: int
    pointer: int
    stride: tuple[int, ...]
    sample: Tensor
    expected: Tensor
    looks: bool
    copies: dict[tuple[str, torch.dtype], Tensor] = dataclasses.field(default_factory=dict)
    refused: bool = False
    routes: dict[tuple[torch.Size, torch.dtype, torch.dtype, str, int], "Route"] = dataclasses.field(
        default_factory=dict
    )

    @classmethod
    def of(cls, weight: Tensor) -> "State":
        # another thread may put other memory into the weight at any time
        source = weight.detach()
        bits = source.view(DTYPES[weight.dtype])
        steps = (max(1, size // _SAMPLED) for size in weight.shape)
        sample = bits[tuple(slice(None, None, step) for step in steps)]
        looks = not dispatch.on_accelerator(source)
        return cls(source, source._version, source.data_ptr(), source.stride(), sample, sample.clone(), looks)

    def copy(self, way: Way, dtype: torch.dtype) -> Tensor | None:
        """The copy for a way, if it was made."""
        return self.copies.get((way.name, dtype))

    def holds(self, weight: Tensor) -> bool:
        """Whether the weight is what it was. ``.data.mul_()`` changes it and counts no version, hence the sample."""
        return (
            self.version == weight._version
            and self.pointer == weight.data_ptr()
            and self.stride == weight.stride()
            and self.source.shape == weight.shape
            and (not self.looks or torch.equal(self.sample, self.expected))
        )


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Route:
    """What was found to do for inputs of one shape, as long as all is as it was then.

    Attributes:
        shape: The input's shape.
        given: Its dtype.
        dtype: What is computed in.
        threads: Threads that an operation may use.
        revision: Of the choices that were measured.
        state: The weight.
        way: How it is used.
        prepared: The copy of it that is used.
    """

    shape: torch.Size
    given: torch.dtype
    dtype: torch.dtype
    threads: int
    revision: int
    state: State
    way: Way
    prepared: Tensor

    def run(self, x: Any, weight: Tensor, bias: Tensor | None, activation: Activation) -> Tensor | None:
        """``f(x W^T + b)`` in ``dtype``, or ``None`` where something is not as it was.

        A large weight has just driven everything else out of the caches, so this is written out and calls little.
        """
        if (
            type(x) is not Tensor
            or x.is_nested
            or x.layout is not torch.strided
            or x.shape != self.shape
            or x.dtype is not self.given
            or self.revision != tuning.revision()
            or self.threads != torch.get_num_threads()
            or not self.way.available()
            or not fits(weight, bias)
            or not self.state.holds(weight)
        ):
            return None
        bias = None if bias is None else in_dtype(bias, self.dtype)
        return self.way.run(in_dtype(x, self.dtype), self.prepared, bias, activation)
