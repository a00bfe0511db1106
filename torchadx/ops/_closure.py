"""How an op is registered so that every transform of PyTorch composes through it.

An op's kernel runs below autograd. Above it, the dispatcher's Autograd key hosts single-level
``torch.autograd.Function`` classes built from the op's :class:`Derivatives`; functorch calls that key once per
transform level, so backward, forward AD and their nestings all meet the same rules. README.md in this folder says
why each guard is there. This is the only file that uses private names of torch.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor

from torchadx import dispatch

try:
    from torch._C import (
        _are_functorch_transforms_active,
        _AutoDispatchBelowAutograd,
        _ExcludeDispatchKeyGuard,
        _get_tracing_state,
        _is_fwd_grad_enabled,
        _len_torch_dispatch_stack,
        _len_torch_function_stack,
    )
    from torch._C._autograd import _get_sequence_nr as next_sequence_number  # noqa: F401
    from torch._C._autograd import _profiler_enabled as profiling  # noqa: F401
    from torch._C._functorch import TransformType, _unwrap_for_grad, _wrap_for_grad, get_interpreter_stack
    from torch._C._functorch import is_functorch_wrapped_tensor as _is_wrapped
    from torch._C._functorch import is_legacy_batchedtensor as _is_legacy_batched
    from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
    from torch._functorch.utils import enable_single_level_autograd_function as single_level
    from torch.autograd.forward_ad import _set_fwd_grad_enabled
    from torch.autograd.function import _SingleLevelFunction as SingleLevelFunction
    from torch.nn.modules.module import _has_any_global_hook

    # read at call time: variables of their modules
    fwAD._current_level, torch._unpack_dual, torch.nn.Module._compiled_call_impl, torch.nn.Module._call_impl  # noqa: B018
except (ImportError, AttributeError) as error:
    raise ImportError(
        f"torchadx hooks into PyTorch through names that torch {torch.__version__} does not have ({error}). "
        "Supported: torch 2.11 and newer, checked on 2.11, 2.13 and 2.14. "
        "Install such a version, or report this one to torchadx."
    ) from error

_ORDINARY = (Tensor, torch.nn.Parameter)
# the place of a node of the graph among those made in its thread
sequence_number: Callable[[Any], int] = operator.methodcaller("_sequence_nr")

Tensors = tuple[Tensor | None, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Derivatives:
    """An op's derivative rules, for ``op(*tensors, *static) -> tensor or tuple of tensors``.

    Inputs and outputs are tensors that may all be differentiated; an input may be ``None``. Every rule is written in
    differentiable operations: ATen, or ops that are themselves closed.

    Attributes:
        save: ``(inputs, outputs, static, needed) -> saved``: what backward reads; ``needed`` says which inputs want a
            gradient, and a tensor that only other inputs' gradients read is ``None``.
        vjp: ``(saved, cotangents, static, needed, shapes) -> gradients``, one an input, ``None`` where not needed;
            ``shapes`` are the inputs'.
        jvp: ``(saved, tangents, static) -> tangents of the outputs``; a tangent may be ``None``, not all are.
        dual: ``(inputs, tangents, static) -> (*outputs, *tangents of the outputs)`` in one launch.
        formula: ``(*tensors, *static) -> outputs``, the op itself in differentiable operations, for the modes that
            have no rule above.
    """

    save: Callable[..., Tensors] | None = None
    vjp: Callable[..., Tensors] | None = None
    jvp: Callable[..., Tensors] | None = None
    dual: Callable[..., tuple[Tensor, ...]] | None = None
    formula: Callable[..., Any] | None = None


def plain(*tensors: Tensor | None) -> bool:
    """Whether these are ordinary eager tensors with no mode, transform, dual level or autocast around.

    Then an op's Function may be applied directly, without the dispatcher's detour through Python.
    """
    return untransformed() and _no_mode() and _ordinary(tensors)


def plain_unrecorded(*tensors: Tensor | None) -> bool:
    """Whether these are :func:`plain` and reverse mode records none of them: a kernel may then be called as it is."""
    return plain(*tensors) and not needs_grad(*tensors)


def untransformed() -> bool:
    """Whether no forward level and no transform of functorch is active."""
    return fwAD._current_level < 0 and not _are_functorch_transforms_active()


def in_forward_level() -> bool:
    """Whether a level of forward AD is entered, by ``dual_level`` or a transform."""
    return fwAD._current_level >= 0


def no_global_hooks() -> bool:
    """Whether no hook is registered that fires around every module."""
    return not _has_any_global_hook()


def undisturbed() -> bool:
    """Whether no transform, level of forward AD, mode, tracer or hook around every module is at work."""
    # asked at every call of a layer, so written out
    return (
        fwAD._current_level < 0
        and not _are_functorch_transforms_active()
        and not (_len_torch_dispatch_stack() or _len_torch_function_stack() or _has_any_global_hook())
        and _get_tracing_state() is None
    )


def transforms() -> tuple[str, ...]:
    """Name the transforms of functorch that are active, the outermost first: ``"grad"``, ``"jvp"``, ``"vmap"``, ..."""
    if not _are_functorch_transforms_active():
        return ()
    return tuple(level.key().name.lower() for level in get_interpreter_stack())


def records_in_functorch(*tensors: Tensor | None) -> bool:
    """Whether transforms of functorch other than vmap are active, and reverse mode records in or below them."""
    if not _are_functorch_transforms_active():
        return False
    kinds = {level.key() for level in get_interpreter_stack()}
    return kinds <= {TransformType.Grad, TransformType.Jvp} and (TransformType.Grad in kinds or needs_grad(*tensors))


def _no_mode() -> bool:
    return not _len_torch_dispatch_stack() and not _len_torch_function_stack() and no_tracer()


def no_tracer() -> bool:
    """Whether ``torch.jit.trace`` is not at work."""
    return _get_tracing_state() is None


def _ordinary(tensors: Tensors) -> bool:
    for t in tensors:
        # what torch.func.vjp saved stays wrapped after its level has ended
        if t is not None and (type(t) not in _ORDINARY or _is_wrapped(t) or _is_legacy_batched(t)):
            return False
    return not dispatch.autocasting(next(t for t in tensors if t is not None))


def plain_duals(*tensors: Tensor | None) -> tuple[Tensors, Tensors, int] | None:
    """Take dual tensors apart, where one forward level is all that is around, and reverse mode records nothing.

    Returns:
        ``(primals, tangents, level)`` for :func:`join_duals`, level being functorch's or 0 outside of it. ``None``
        where a tensor is not ordinary, anything else is around, or no tensor has a tangent.
    """
    if fwAD._current_level < 0 or not _is_fwd_grad_enabled() or torch.is_inference_mode_enabled() or not _no_mode():
        return None
    level = 0
    if _are_functorch_transforms_active():
        stack = get_interpreter_stack()
        if len(stack) != 1 or stack[0].key() != TransformType.Jvp:
            return None
        level = stack[0].level()
    pairs = [_unpacked(t, level) for t in tensors]
    primals, tangents = zip(*pairs, strict=True)
    if not any(t is not None for t in tangents) or needs_grad(*primals, *tangents):
        return None
    return (primals, tangents, level) if _ordinary(primals + tangents) else None


def _unpacked(tensor: Tensor | None, level: int) -> tuple[Tensor | None, Tensor | None]:
    # under functorch, what is not wrapped comes from outside the transform, and has no tangent in it
    if tensor is None or (level and not _is_wrapped(tensor)):
        return tensor, None
    primal, tangent = torch._unpack_dual(tensor, level=0)
    if level:
        primal = _unwrap_for_grad(primal, level)
        tangent = None if tangent is None else _unwrap_for_grad(tangent, level)
    return primal, tangent


def join_duals(level: int, run: Callable[[], tuple[Tensor, Tensor]]) -> Tensor:
    """Make one dual tensor of ``run() -> (primal, tangent)``, which runs outside of the level."""
    if not level:
        with _set_fwd_grad_enabled(False):
            primal, tangent = run()
        return fwAD.make_dual(primal, tangent)
    with temporarily_pop_interpreter_stack():
        primal, tangent = run()
    return fwAD.make_dual(_wrap_for_grad(primal, level), _wrap_for_grad(tangent, level), level=0)


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether reverse mode records any of these at the current level."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def differentiated(*tensors: Tensor | None) -> bool:
    """Whether any mode differentiates with respect to any of these at the current level."""
    return needs_grad(*tensors) or any(t is not None for t in tangents_of(tensors))


def primal_of(tensor: Tensor | None) -> Tensor | None:
    """The tensor without its tangent at the current level."""
    return None if tensor is None else torch._unpack_dual(tensor, level=0)[0]


def tangents_of(tensors: Tensors) -> Tensors:
    """The tangents that these tensors carry at the current level."""
    if not _is_fwd_grad_enabled():
        return (None,) * len(tensors)
    # outside of any level that Python knows of there may still be one: of a graph that is being compiled. There the
    # legacy vmap, which has no rule for unpacking, cannot be
    known = fwAD._current_level >= 0 or _are_functorch_transforms_active()
    if not known and any(t is not None and _is_legacy_batched(t) for t in tensors):
        return (None,) * len(tensors)
    return tuple(None if t is None else torch._unpack_dual(t, level=0)[1] for t in tensors)


def loses_tangents(*tensors: Tensor | None) -> bool:
    """Whether inference mode is about to drop, in silence, the tangent of a dual tensor among these."""
    if not torch.is_inference_mode_enabled() or fwAD._current_level < 0 or _are_functorch_transforms_active():
        return False
    with torch.inference_mode(False):
        return any(t is not None and fwAD.unpack_dual(t).tangent is not None for t in tensors)


class below_autograd:  # noqa: N801
    """Call ops below this level's autograd while lower levels go on recording."""

    def __enter__(self) -> None:
        """Let lower levels record, and leave this one."""
        self._guards = torch.enable_grad(), _set_fwd_grad_enabled(True), _AutoDispatchBelowAutograd()
        for guard in self._guards:
            guard.__enter__()

    def __exit__(self, *error: object) -> None:
        """Undo it, in reverse order."""
        for guard in reversed(self._guards):
            guard.__exit__(*error)


def recorded_function(
    run: Callable[..., Any], rules: Derivatives, arity: int, forward_ad: bool = True
) -> type[SingleLevelFunction]:
    """Build the Function that runs ``run(*tensors, *static)`` and records it for backward and two-step forward AD.

    ``forward_ad=False`` is for calls on :func:`plain` tensors, which carry no tangents.
    """

    class Recorded(SingleLevelFunction):
        @staticmethod
        def forward(*args):
            return run(*args)

        @staticmethod
        def setup_context(ctx, inputs, output):
            tensors, ctx.static = inputs[:arity], inputs[arity:]
            ctx.shapes = tuple(None if t is None else t.shape for t in tensors)
            outputs = output if isinstance(output, tuple) else (output,)
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(*rules.save(tensors, outputs, ctx.static, ctx.needs_input_grad))
            if forward_ad:
                with _set_fwd_grad_enabled(True):
                    dual = any(t is not None for t in tangents_of(tensors))
                if dual:
                    ctx.save_for_forward(*rules.save(tensors, outputs, ctx.static, (True,) * len(inputs)))

        @staticmethod
        def backward(ctx, *cotangents):
            nothing = (None,) * len(ctx.static)
            if all(c is None for c in cotangents):
                return (None,) * arity + nothing
            needed = ctx.needs_input_grad[:arity]
            return (*rules.vjp(ctx.saved_tensors, cotangents, ctx.static, needed, ctx.shapes), *nothing)

        @staticmethod
        def jvp(ctx, *tangents):
            with _set_fwd_grad_enabled(True):
                saved = tuple(map(primal_of, ctx.saved_tensors))
                out = rules.jvp(saved, tangents[:arity], ctx.static)
                return out if len(out) > 1 else out[0]

    return Recorded


def _one_launch_function(rules: Derivatives, arity: int) -> type[SingleLevelFunction]:
    """Build the Function whose forward computes primal and tangent together, and whose jvp hands the tangent back."""

    class OneLaunch(SingleLevelFunction):
        @staticmethod
        def forward(*args):
            with below_autograd():
                return rules.dual(args[:arity], args[arity : 2 * arity], args[2 * arity :])

        @staticmethod
        def setup_context(ctx, inputs, output):
            tangents = output[len(output) // 2 :]
            ctx.save_for_forward(*tangents)
            ctx.mark_non_differentiable(*tangents)

        @staticmethod
        def jvp(ctx, *_):
            with _set_fwd_grad_enabled(True):
                tangents = tuple(map(primal_of, ctx.saved_tensors))
                return (*tangents, *(None for _ in tangents))

    return OneLaunch


def _autograd_kernel(op: Callable[..., Any], rules: Derivatives, arity: int) -> Callable[..., Any]:
    def launch(*args):
        with below_autograd():
            return op(*args)

    recorded = recorded_function(launch, rules, arity) if rules.vjp else None
    one_launch = _one_launch_function(rules, arity) if rules.dual else None

    def kernel(*args):
        tensors, static = args[:arity], args[arity:]
        tangents = tangents_of(tensors)
        dual = any(t is not None for t in tangents)
        recording = needs_grad(*tensors, *tangents)
        if not dual and not recording:
            return launch(*args)
        if (dual and not rules.jvp) or (recording and not rules.vjp):
            return rules.formula(*args)
        # the legacy vmap of gradcheck knows no rule for an op, so it takes the two-step route
        legacy = any(t is not None and _is_legacy_batched(t) for t in tangents)
        with single_level():
            if one_launch and dual and not recording and not legacy:
                out = one_launch.apply(*tensors, *tangents, *static)
                return out[0] if len(out) == 2 else out[: len(out) // 2]
            return recorded.apply(*args)

    return kernel


def _autocast_kernel(op: Callable[..., Any], arity: int, device: str) -> Callable[..., Any]:
    key = getattr(torch._C.DispatchKey, f"Autocast{device.upper()}")

    def kernel(*args):
        dtype = torch.get_autocast_dtype(device)
        cast = [t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t
                for t in args[:arity]]  # fmt: skip
        with _ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            return op(*cast, *args[arity:])

    return kernel


def register(
    library: torch.library.Library,
    schema: str,
    *,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    vmap: Callable[..., Any],
    rules: Derivatives | Callable[..., Derivatives],
    arity: int,
    autocast: bool = False,
) -> Callable[..., Any]:
    """Define an op and close it under PyTorch's transforms.

    Args:
        library: Where the op lives.
        schema: ``name(Tensor x, ...) -> ...``; tensors first, then static arguments, all positional.
        kernel: Runs on real tensors of any device, below autograd; returns new tensors that alias nothing.
        fake: Shapes, dtypes and strides of the results.
        vmap: ``(info, in_dims, *args) -> (outputs, out_dims)``, in differentiable operations.
        rules: Its derivatives, or ``(*static) -> Derivatives`` where they depend on the static arguments.
        arity: How many leading arguments are tensors.
        autocast: Cast floating-point inputs to the autocast dtype on CPU and CUDA.

    Returns:
        The op's default overload.
    """
    name = schema.split("(", 1)[0]
    library.define(schema)
    op = getattr(getattr(torch.ops, library.ns), name).default
    library.impl(name, kernel, "CompositeExplicitAutograd")
    if isinstance(rules, Derivatives):
        autograd = _autograd_kernel(op, rules, arity)
    else:
        kernel_of = functools.cache(lambda chosen: _autograd_kernel(op, chosen, arity))

        def autograd(*args):
            return kernel_of(rules(*args[arity:]))(*args)

    library.impl(name, autograd, "Autograd")
    torch.library.register_fake(f"{library.ns}::{name}", fake, lib=library)
    torch.library.register_vmap(f"{library.ns}::{name}", vmap, lib=library)
    for device in ("cpu", "cuda") if autocast else ():
        library.impl(name, _autocast_kernel(op, arity, device), f"Autocast{device.upper()}")
    return op
