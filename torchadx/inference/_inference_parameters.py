"""Parameters and buffers made under inference mode, which PyTorch cannot save for backward."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from torchadx.inference._boundary import Boundary


def replace(module: nn.Module, boundary: Boundary) -> None:
    """Replace each parameter and buffer of ``module`` that is an inference tensor by a normal copy, once and for all.

    Setting ``.data`` would leave a tensor that is neither: no inference tensor, and without a version counter.
    """
    copies: dict[int, Tensor] = {}
    storages: dict[int, torch.UntypedStorage] = {}
    for path, owner in _with_inference_tensors(module):
        kinds: tuple[tuple[str, Any], ...] = (("parameter", owner._parameters), ("buffer", owner._buffers))
        for kind, held in kinds:
            for name, tensor in list(held.items()):
                if tensor is not None and _is_inference(tensor):
                    full = f"{path}.{name}" if path else name
                    boundary.object_to_inference(
                        f"{kind} {full!r}",
                        "It was replaced in the module by a normal copy; make an optimizer that has the old one anew",
                    )
                    if id(tensor) not in copies:
                        copies[id(tensor)] = _copy(tensor, storages)
                    if isinstance(tensor, nn.Parameter):
                        # recurrent modules keep a list of their weights, which this brings up to date
                        setattr(owner, name, copies[id(tensor)])
                    else:
                        held[name] = copies[id(tensor)]


def _with_inference_tensors(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules that hold one; a look at all of them that nearly always finds none."""
    for owner in module.modules():
        for held in (owner._parameters, owner._buffers):
            for tensor in held.values():
                if _is_inference(tensor):
                    return list(module.named_modules())
    return []


def _is_inference(tensor: Tensor | None) -> bool:
    # a parameter of a lazy module is no tensor yet
    return tensor is not None and not nn.parameter.is_lazy(tensor) and tensor.is_inference()


def _copy(tensor: Tensor, storages: dict[int, torch.UntypedStorage]) -> Tensor:
    """Copy a tensor; those that share memory do so as copies."""
    with torch.inference_mode(False), torch.no_grad():
        if tensor.layout is torch.strided and tensor.numel() > 0:
            old = tensor.untyped_storage()
            new = storages.setdefault(old.data_ptr(), old.clone())
            copy = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            copy.set_(new, tensor.storage_offset(), tensor.shape, tensor.stride())
        else:
            copy = tensor.clone()
    if isinstance(tensor, nn.Parameter):
        copy = nn.Parameter(copy, requires_grad=tensor.requires_grad)
    vars(copy).update(vars(tensor))
    return copy


def named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter, buffer and other tensor attribute in ``module``, with names for messages."""
    for path, owner in module.named_modules():
        kinds = (("parameter", owner._parameters), ("buffer", owner._buffers), ("attribute", vars(owner)))
        for kind, held in kinds:
            for name, tensor in list(held.items()):
                if isinstance(tensor, Tensor):
                    full = f"{path}.{name}" if path else name
                    yield f"{kind} {full!r}", tensor
