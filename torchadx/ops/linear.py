"""``torch.ops.torchadx.linear*``: a fused linear layer that every differentiation mode goes through.

Shapes throughout: x ``(..., in)``, weight ``(out, in)``, bias ``(out,)`` or ``None``, y and z ``(..., out)``; dtype
float32, float64, float16 or bfloat16, one for all tensors.

    linear          (x, w, b, act) -> y                  nothing saved
    linear_saving   (x, w, b, act) -> (y, z)             for activations whose backward reads z
    linear_backward (gy, gz, x, w, kept, act, needed) -> (gx, gw, gb)

``linear_dual.py`` has the ops that carry tangents.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from torchadx import dispatch, tuning
from torchadx.activations import Activation, resolve
from torchadx.ops import _closure as closure
from torchadx.ops import _linear_formulas as formulas
from torchadx.ops import _linear_kernels as kernels
from torchadx.ops import _linear_vmap as vmap
from torchadx.ops._linear_formulas import rows

library = torch.library.Library("torchadx", "FRAGMENT")


def _save(inputs, outputs, static, needed):
    x, w, _ = inputs
    kept = resolve(static[0]).kept(outputs[0], outputs[-1])
    return x if needed[1] else None, w if needed[0] else None, kept


def _vjp(saved, cotangents, static, needed, shapes):
    (x, w, kept), (gy, *gz) = saved, cotangents
    return backward(gy, gz[0] if gz else None, x, w, kept, static[0], needed)


def backward(gy, gz, x, w, kept, act, needed):
    """Call ``linear_backward``, past the dispatcher where nothing stands in between; ``None`` where not needed."""
    tensors = gy, gz, x, w, kept
    run = kernels.backward if closure.plain_unrecorded(*tensors) else linear_backward
    grads = run(*tensors, act, needed)
    return tuple(grad if want else None for grad, want in zip(grads, needed, strict=True))


def _tangents(x, w, kept, tx, tw, tb, act):
    tz = formulas.tangent_of_z(rows(x), w, rows(tx), tw, tb)
    tz = tz.reshape(*x.shape[:-1], w.shape[0])
    return formulas.times_slope(tz, kept, resolve(act)), tz


def _jvp_saving(saved, tangents, static):
    ty, tz = _tangents(*saved, *tangents, *static)
    # outputs must not share memory, and for the identity ty is tz
    return ty.clone() if ty is tz else ty, tz


OUTPUT = closure.Derivatives(
    save=_save,
    vjp=_vjp,
    jvp=lambda saved, tangents, static: _tangents(*saved, *tangents, *static)[:1],
    dual=lambda inputs, tangents, static: torch.ops.torchadx.linear_jvp.default(*inputs, *tangents, *static),
)
SAVING = closure.Derivatives(
    save=_save,
    vjp=_vjp,
    jvp=_jvp_saving,
    dual=lambda inputs, tangents, static: torch.ops.torchadx.linear_dual.default(*inputs, *tangents, *static),
)
THROUGH_SAVING = closure.Derivatives(formula=lambda *args: linear_saving(*args)[0])


def _linear_rules(act: str) -> closure.Derivatives:
    return THROUGH_SAVING if resolve(act).keeps == "pre_activation" else OUTPUT


linear = closure.register(
    library,
    "linear(Tensor x, Tensor weight, Tensor? bias, str activation) -> Tensor",
    kernel=lambda x, w, b, act: kernels.forward(x, w, b, act, save=False)[0],
    fake=lambda x, w, b, act: x.new_empty(*x.shape[:-1], w.shape[0]),
    vmap=lambda info, dims, *args: vmap.forward(linear, info.batch_size, dims, *args),
    rules=_linear_rules,
    arity=3,
    autocast=True,
)

linear_saving = closure.register(
    library,
    "linear_saving(Tensor x, Tensor weight, Tensor? bias, str activation) -> (Tensor, Tensor)",
    kernel=lambda x, w, b, act: kernels.forward(x, w, b, act, save=True),
    fake=lambda x, w, b, act: tuple(x.new_empty(*x.shape[:-1], w.shape[0]) for _ in range(2)),
    vmap=lambda info, dims, *args: vmap.forward(linear_saving, info.batch_size, dims, *args),
    rules=SAVING,
    arity=3,
    autocast=True,
)


def backward_formula(gy, gz, x, w, kept, act, needed):
    """Compute ``linear_backward`` in plain ATen."""
    g = formulas.cotangent_of_z(gy, gz, kept, resolve(act))
    gx, gw, gb = formulas.input_grads(rows(g), rows(x), w, needed)
    if gx is not None:
        gx = gx.reshape(*g.shape[:-1], w.shape[1])
    return tuple(g.new_empty(0) if grad is None else grad for grad in (gx, gw, gb))


def _backward_fake(gy, gz, x, w, kept, act, needed):
    g = gz if gy is None else gy
    out = g.shape[-1]
    return (
        g.new_empty(*g.shape[:-1], w.shape[1]) if needed[0] else g.new_empty(0),
        g.new_empty(out, x.shape[-1]) if needed[1] else g.new_empty(0),
        g.new_empty(out) if needed[2] else g.new_empty(0),
    )


linear_backward = closure.register(
    library,
    "linear_backward(Tensor? gy, Tensor? gz, Tensor? x, Tensor? weight, Tensor? kept, str activation, bool[3] needed)"
    " -> (Tensor, Tensor, Tensor)",
    kernel=kernels.backward,
    fake=_backward_fake,
    vmap=lambda info, dims, *args: vmap.backward(linear_backward, info.batch_size, dims, *args),
    rules=closure.Derivatives(formula=backward_formula),
    arity=5,
)


_direct_output = closure.recorded_function(
    lambda *args: kernels.forward(*args, save=False)[0], OUTPUT, arity=3, forward_ad=False
)
_direct_saving = closure.recorded_function(
    lambda *args: kernels.forward(*args, save=True), SAVING, arity=3, forward_ad=False
)


def call_linear(x: Tensor, w: Tensor, b: Tensor | None, row: Activation) -> Tensor:
    """Run ``linear`` on checked arguments, past the dispatcher where nothing stands in between.

    Raises:
        RuntimeError: An argument carries a tangent that inference mode would drop.
    """
    if closure.untransformed():
        by_two_ops = dispatch.composes(x, w.shape[0], row.native)
    else:
        by_two_ops = closure.records_in_functorch(x, w, b) and dispatch.small(x, w.shape[0])
    if by_two_ops:
        return row.forward(F.linear(x, w, b))
    if not closure.plain(x, w, b):
        duals = closure.plain_duals(x, w, b)
        if duals is not None:
            primals, tangents, level = duals
            return closure.join_duals(level, lambda: kernels.dual(*primals, *tangents, row.name, save=False)[::2])
        if closure.loses_tangents(x, w, b):
            raise RuntimeError(
                "linear: an input carries a forward-mode tangent, which torch.inference_mode() ignores without a word. "
                "Use torch.no_grad() there, or leave the mode around this call with torch.inference_mode(False)."
            )
        return linear(x, w, b, row.name)
    if not closure.needs_grad(x, w, b):
        return kernels.forward(x, w, b, row.name, save=False)[0]
    if row.keeps == "pre_activation":
        return _direct_saving.apply(x, w, b, row.name)[0]
    return _direct_output.apply(x, w, b, row.name)


def explain_linear(x: Tensor, w: Tensor, row: Activation) -> str:
    """Name the backend, its reason, and the choices tuned so far for these sizes."""
    choice = kernels.select("linear", x, row)
    lines = [f"{choice.backend}: {choice.reason}"]
    if dispatch.composes(x, w.shape[0], row.native):
        lines.append(
            "outside of transforms PyTorch's own two ops are called: a layer of this size or dtype gains nothing"
        )
    m = tuning.bucket(x.shape[:-1].numel())
    for record in tuning.list():
        key = record.key
        if (key.device, key.dtype, key.m, key.n, key.k) == (x.device, x.dtype, m, *w.shape):
            times = ", ".join(f"{name} {seconds * 1e6:.0f} us" for name, seconds in record.seconds.items())
            lines.append(f"{key.op} {key.flags}".rstrip() + f": {record.choice} ({record.source}; {times})")
    return "\n".join(lines)
