"""What each mode runs, in words."""

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from torchadx.inference._boundary import Boundary
from torchadx.inference._layers import STAND_INS, StandIn
from torchadx.inference._lending import compiled, patched
from torchadx.inference._session import Session

_FUSED = "layers marked * by torchadx.linear, primal and tangent in one launch"
_TANGENTS = {"exact": f"the module with the mode off and without a graph; {_FUSED}", "raise": "raises"}


def explain(boundary: Boundary, stand_ins: Mapping[nn.Module, StandIn], session: Session, module: nn.Module) -> str:
    """Return a line for each mode, then one for each submodule."""
    dtype = "" if session.dtype is None else f", linear layers in {str(session.dtype).removeprefix('torch.')}"
    limit = "" if session.weights.limit is None else f" of {session.weights.limit:,} allowed"
    lines = [
        boundary.name,
        "train (gradients recorded): the module as it is; "
        + ("inference tensors are copied" if boundary.inference_tensors == "copy" else "inference tensors raise"),
        f"no_grad: the module as it is; with tangents, {_FUSED}",
        f"inference_mode with tangents: {_TANGENTS[boundary.policy]}",
        f"inference_mode: as below{dtype}; {session.weights.bytes:,} bytes prepared{limit}; "
        f"{'inference tensors' if boundary.outputs == 'inference' else 'normal tensors'} returned",
        "torch.func, torch.compile, export, tracing: the module as it is",
        "",
    ]
    rows = list(_rows(stand_ins, session, module))
    width = max(len(name) for name, _, _ in rows)
    kinds = max(len(kind) for _, kind, _ in rows)
    return "\n".join([*lines, *(f"{name:<{width}}  {kind:<{kinds}}  {text}".rstrip() for name, kind, text in rows)])


def _rows(
    stand_ins: Mapping[nn.Module, StandIn], session: Session, module: nn.Module
) -> Iterator[tuple[str, str, str]]:
    told: dict[str, str] = {}
    for path, submodule in module.named_modules():
        stand_in = stand_ins.get(submodule)
        start = f"{path}." if path else ""
        if stand_in is not None and not stand_in.serves(submodule):
            stand_in = None
        if stand_in is not None:
            told |= {start + name: text for name, text in stand_in.explain_children(session).items()}
        text = told.get(path)
        if text is None:
            text = _as_it_is(submodule) if stand_in is None else stand_in.explain(session)
        mark = "* " if stand_in is not None and stand_in.fuses_tangents else "  "
        yield mark + (path or "(all)"), type(submodule).__name__, text


def _as_it_is(module: nn.Module) -> str:
    if patched(module):
        return "as it is: its forward was replaced"
    if isinstance(module, torch.jit.ScriptModule) or compiled(module):
        return "as it is: it is compiled"
    if hasattr(module, "parametrizations"):
        return "as it is: it is parametrized, and its weight computed from other parameters"
    ours = next((kind.kind for kind in STAND_INS if isinstance(module, kind.kind)), None)
    if ours is not None and type(module) is not ours:
        return f"as it is: a subclass of {ours.__name__}, which may compute something else"
    return "as it is"
