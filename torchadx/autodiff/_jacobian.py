"""jacobian, hessian and their plans."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from torchadx.autodiff._errors import IndependentOutputWarning
from torchadx.autodiff._plan import JacobianPlan, make
from torchadx.autodiff._planner import MODES, Mode
from torchadx.autodiff._prepare import Options
from torchadx.autodiff._problem import Problem, state
from torchadx.memory.budget import parse_bytes

Argnums = int | tuple[int, ...]
Randomness = Literal["error", "same"]


def jacobian(
    f: Callable[..., Any],
    *args: Any,
    argnums: Argnums | None = None,
    params: bool | str | Sequence[str] | None = None,
    batched: bool = False,
    mode: Mode = "auto",
    chunk: int | Literal["auto"] = "auto",
    memory: int | str | None = None,
    factored: bool = False,
    randomness: Randomness = "error",
    progress: bool = False,
) -> Any:
    """Compute the Jacobian of a function, in the way that its architecture makes cheapest.

    The function is recorded once, its chain of operations is cut where few numbers pass, and a dynamic programme
    chooses between moving tangents forward, cotangents backward and multiplying Jacobians (:func:`plan_jacobian`
    returns the choice, to be looked at and used again).

    Args:
        f: Function or module of tensors; arguments and results may be nested in tuples, lists and dictionaries.
        args: Arguments of ``f``, at which the Jacobian is taken. Those that are differentiated hold real
            floating-point tensors alone.
        argnums: Which arguments to differentiate by; 0 by default. A tuple gives a tuple.
        params: Differentiate by parameters of the module ``f`` in place of arguments: ``True`` for all, or names.
        batched: Samples along the leading dimension of every tensor argument are independent: one Jacobian for each.
        mode: ``"auto"``, or ``"forward"``, ``"reverse"``, ``"mixed"`` to have it so.
        chunk: How many directions are moved at once.
        memory: Bytes (``"64 MiB"``) that may be alive beside arguments, parameters and the result.
        factored: Return a :class:`~torchadx.autodiff.operators.FactoredOperator` ``D @ E``, cut at the narrowest
            place, in place of a dense tensor: for one input and one output.
        randomness: ``"error"``, or ``"same"``: one draw for all directions.
        progress: Show a bar over directions.

    Returns:
        As ``torch.func.jacrev(f, argnums)(*args)``: the structure of the outputs, in it that of the inputs, in it
        tensors of shape ``(*output.shape, *input.shape)`` and the input's dtype; with ``batched``
        ``(samples, *output.shape[1:], *input.shape[1:])``; with ``params`` a dictionary by name. It can be
        differentiated again if gradients are on and something requires them.

    Raises:
        DerivativeError: The derivative would be silently wrong (``no_grad`` inside ``f``, an input changed in place,
            samples that mix, random numbers), or does not fit into ``memory``.
        TypeError: Inputs or outputs that are not real floating-point tensors.
        ValueError: Options or shapes that make no sense.

    >>> jacobian(torch.sin, torch.zeros(2))
    tensor([[1., 0.],
            [0., 1.]])
    """
    plan = _plan(f, args, argnums, params, batched, mode=mode, chunk=chunk, memory=memory, randomness=randomness)
    return plan(*args, factored=factored, progress=progress)


def plan_jacobian(
    f: Callable[..., Any],
    *args: Any,
    argnums: Argnums | None = None,
    params: bool | str | Sequence[str] | None = None,
    batched: bool = False,
    mode: Mode = "auto",
    chunk: int | Literal["auto"] = "auto",
    memory: int | str | None = None,
    randomness: Randomness = "error",
) -> JacobianPlan:
    """Plan a Jacobian: ``plan(*args)`` computes it, for any arguments of the same shapes.

    Arguments are those of :func:`jacobian`.

    >>> net = torch.nn.Sequential(torch.nn.Linear(64, 2), torch.nn.Linear(2, 64))
    >>> plan = plan_jacobian(net, torch.randn(64))
    >>> plan(torch.randn(64)).shape
    torch.Size([64, 64])
    """
    return _plan(f, args, argnums, params, batched, mode=mode, chunk=chunk, memory=memory, randomness=randomness)


def jacfn(
    f: Callable[..., Any], argnums: Argnums | None = None, *, factored: bool = False, progress: bool = False,
    **options: Any,
) -> Callable[..., Any]:  # fmt: skip
    """Return a function that computes the Jacobian of ``f``, as ``torch.func.jacrev(f, argnums)`` does.

    It keeps a plan for each structure, shape and dtype of arguments that it meets; a module's parameters are read anew
    at every call.

    Args:
        f: See :func:`jacobian`.
        argnums: See :func:`jacobian`.
        factored: See :func:`jacobian`.
        progress: See :func:`jacobian`.
        options: The other options of :func:`jacobian`.

    >>> jacfn(lambda x: x.prod())(torch.tensor([2.0, 3.0]))
    tensor([3., 2.])
    """
    plans: dict[Any, JacobianPlan] = {}

    def jacobian_of_f(*args: Any) -> Any:
        key = _key(f, args)
        if key not in plans:
            plans[key] = plan_jacobian(f, *args, argnums=argnums, **options)
        return plans[key](*args, factored=factored, progress=progress)

    return jacobian_of_f


def hessian(
    f: Callable[..., Any],
    *args: Any,
    argnums: Argnums | None = None,
    params: bool | str | Sequence[str] | None = None,
    batched: bool = False,
    mode: Mode = "auto",
    chunk: int | Literal["auto"] = "auto",
    memory: int | str | None = None,
    randomness: Randomness = "error",
    progress: bool = False,
) -> Any:
    """Compute the Hessian of a function: of one number, or of each number of its result.

    It is the Jacobian of the gradient, whose recording holds the forward and the backward pass: moving tangents through
    it is forward-over-reverse mode, moving cotangents reverse-over-reverse, and linear layers, narrow places and
    independent samples are made use of as in :func:`jacobian`, whose arguments these are.

    Args:
        f: Function or module, usually with one number as its result (one for each sample if ``batched``).
        args: See :func:`jacobian`.
        argnums: See :func:`jacobian`.
        params: See :func:`jacobian`.
        batched: See :func:`jacobian`.
        mode: See :func:`jacobian`.
        chunk: See :func:`jacobian`.
        memory: See :func:`jacobian`.
        randomness: See :func:`jacobian`.
        progress: See :func:`jacobian`.

    Returns:
        As ``torch.func.hessian(f, argnums)(*args)``: the structure of the outputs, in it that of the inputs, twice, of
        tensors ``(*output.shape, *input.shape, *input.shape)``; with ``batched`` ``(samples, ...)`` without the leading
        dimensions.

    Raises:
        DerivativeError: See :func:`jacobian`.
        TypeError: See :func:`jacobian`.
        ValueError: See :func:`jacobian`.

    >>> hessian(lambda x: (x**3).sum(), torch.tensor([1.0, 2.0]))
    tensor([[ 6.,  0.],
            [ 0., 12.]])
    """
    plan = _plan(f, args, argnums, params, batched, True, mode=mode, chunk=chunk, memory=memory, randomness=randomness)
    return plan(*args, progress=progress)


def plan_hessian(
    f: Callable[..., Any],
    *args: Any,
    argnums: Argnums | None = None,
    params: bool | str | Sequence[str] | None = None,
    batched: bool = False,
    mode: Mode = "auto",
    chunk: int | Literal["auto"] = "auto",
    memory: int | str | None = None,
    randomness: Randomness = "error",
) -> JacobianPlan:
    """Plan a Hessian; arguments are those of :func:`hessian`.

    >>> plan_hessian(lambda x: (x**2).sum(), torch.ones(2))(torch.ones(2))
    tensor([[2., 0.],
            [0., 2.]])
    """
    return _plan(f, args, argnums, params, batched, True, mode=mode, chunk=chunk, memory=memory, randomness=randomness)


def _plan(
    f: Callable[..., Any],
    args: Sequence[Any],
    argnums: Argnums | None,
    params: Any,
    batched: bool,
    gradient: bool = False,
    **options: Any,
) -> JacobianPlan:
    problem: Problem = state(f, args, argnums, params, batched, gradient)
    plan = make(problem, args, _options(**options))
    independent = [note for note in plan.notes if note.endswith("zeros")]
    if independent:
        warnings.warn(independent[0], IndependentOutputWarning, stacklevel=3)
    return plan


def _options(mode: Any, chunk: Any, memory: Any, randomness: Any) -> Options:
    if mode not in MODES:
        raise ValueError(f"mode: got {mode!r}, expected one of {', '.join(MODES)}")
    if chunk != "auto" and (not isinstance(chunk, int) or isinstance(chunk, bool) or chunk < 1):
        raise ValueError(f'chunk: got {chunk!r}, expected "auto" or a whole number above 0')
    if randomness not in ("error", "same"):
        raise ValueError(f"randomness: got {randomness!r}, expected 'error' or 'same'")
    limit = math.inf if memory is None else float(parse_bytes(memory))
    return Options(mode, None if chunk == "auto" else chunk, limit, randomness)


def _key(f: Callable[..., Any], args: Sequence[Any]) -> Any:
    leaves, spec = torch.utils._pytree.tree_flatten(tuple(args))
    known = tuple((leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves)
    training = tuple(module.training for module in f.modules()) if isinstance(f, torch.nn.Module) else ()
    return known, str(spec), training
