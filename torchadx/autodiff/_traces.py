"""Traces of second and first derivatives: the Laplacian and the divergence."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch.utils import _pytree as pytree

from torchadx.autodiff._arguments import flat_point, require_floating, require_scalar
from torchadx.autodiff._directional import along, forward_mode
from torchadx.autodiff._errors import DerivativeError
from torchadx.autodiff._progress import tqdm

_Tensors: TypeAlias = Sequence[torch.Tensor]
_METHODS = ("exact", "hutchinson")
# what "auto" lets the directions of one chunk hold, and how many it takes in any case
_CHUNK_ELEMENTS = 2**18
_CHUNK_LEAST = 8


class Estimate(NamedTuple):
    """A mean over random probes, and the standard error of that mean: the same shape each, () or (B,)."""

    value: torch.Tensor
    standard_error: torch.Tensor


def laplacian(
    f: Callable[..., Any],
    x: Any,
    *,
    args: tuple[Any, ...] = (),
    method: str = "exact",
    samples: int | None = None,
    generator: torch.Generator | None = None,
    chunk: int | str = "auto",
    batched: bool = False,
    progress: bool = False,
) -> Any:
    """Trace of the Hessian of a scalar function, ``sum_i d^2 f / d x_i^2``; the Hessian is never formed.

    ``"exact"`` sums the second derivatives along every coordinate, by forward over forward mode, ``chunk`` coordinates
    at once: n second derivatives for n numbers in ``x``. ``"hutchinson"`` averages ``v^T H v`` over random signs ``v``
    (Hutchinson, "A stochastic estimator of the trace of the influence matrix", 1990): ``samples`` second derivatives,
    and exact only for a diagonal Hessian. Nothing is kept for a reverse sweep, unless the result can be
    differentiated again: if grad mode is on and ``x`` or a captured parameter requires grad.

    Args:
        f: ``f(x, *args)`` returns one floating-point number, of shape (); with ``batched``, B of them, of shape (B,).
        x: A real floating-point tensor, or a tree of them; with ``batched`` of shapes ``(B, ...)``.
        args: Passed on to ``f`` after ``x``; with ``batched``, their tensors are split along dimension 0 as well.
        method: ``"exact"`` or ``"hutchinson"``.
        samples: Probes of ``"hutchinson"``, at least 2; 64 if not given.
        generator: Draws the probes of ``"hutchinson"``; torch's own of the device if not given.
        chunk: Directions at once, at least 1; ``"auto"`` takes what holds 2**18 numbers in all, but at least 8.
        batched: One Laplacian a sample: of ``g(x_i) = f(x_i[None])[0]``, whose values are compared with ``f(x)``.
        progress: Show a progress bar over the chunks (extra "progress").

    Returns:
        A tensor of shape (), or (B,) with ``batched``; an ``Estimate`` of two such tensors by ``"hutchinson"``.

    Raises:
        DerivativeError: As for ``directional``; if ``f`` draws random numbers, or mixes samples with ``batched``.
        TypeError: If ``x`` or the output of ``f`` is not of a real floating-point dtype.
        ValueError: If the output has another shape, or an option is out of range or without effect.
        ModuleNotFoundError: If ``progress`` is asked for and tqdm is missing.

    Example:
        >>> from torchadx.autodiff._traces import laplacian
        >>> laplacian(lambda x: (x**3).sum(), torch.tensor([1.0, 2.0]))
        tensor(18.)
    """
    plan = _Options(method, samples, generator, chunk, batched, progress)

    def curvature(
        g: Callable[..., Any],
        leaves: _Tensors,
        v: _Tensors,
        spec: Any,
        rest: tuple[Any, ...],
    ) -> torch.Tensor:
        return along(_scalar(g), leaves, v, spec, rest, 2)

    return _trace(curvature, f, x, args, plan)


def divergence(
    f: Callable[..., Any],
    x: Any,
    *,
    args: tuple[Any, ...] = (),
    method: str = "exact",
    samples: int | None = None,
    generator: torch.Generator | None = None,
    chunk: int | str = "auto",
    batched: bool = False,
    progress: bool = False,
) -> Any:
    """Trace of the Jacobian of a vector field, ``sum_i d f_i / d x_i``; the Jacobian is never formed.

    As ``laplacian``, with first derivatives: ``"exact"`` is n products ``J e_i`` by forward mode, ``"hutchinson"`` the
    mean of ``v . J v`` over random signs ``v``, as in FFJORD (Grathwohl et al., 2019).

    Args:
        f: ``f(x, *args)`` returns what is structured and shaped as ``x``.
        x: A real floating-point tensor, or a tree of them; with ``batched`` of shapes ``(B, ...)``.
        args: Passed on to ``f`` after ``x``; with ``batched``, their tensors are split along dimension 0 as well.
        method: ``"exact"`` or ``"hutchinson"``.
        samples: Probes of ``"hutchinson"``, at least 2; 64 if not given.
        generator: Draws the probes of ``"hutchinson"``; torch's own of the device if not given.
        chunk: Directions at once, at least 1; ``"auto"`` takes what holds 2**18 numbers in all, but at least 8.
        batched: One divergence a sample: of ``g(x_i) = f(x_i[None])[0]``, whose values are compared with ``f(x)``.
        progress: Show a progress bar over the chunks (extra "progress").

    Returns:
        A tensor of shape (), or (B,) with ``batched``; an ``Estimate`` of two such tensors by ``"hutchinson"``.

    Raises:
        DerivativeError: As for ``laplacian``.
        TypeError: As for ``laplacian``.
        ValueError: As for ``laplacian``.
        ModuleNotFoundError: As for ``laplacian``.

    Example:
        >>> from torchadx.autodiff._traces import divergence
        >>> divergence(lambda x: x**2, torch.tensor([1.0, 2.0]))
        tensor(6.)
    """
    plan = _Options(method, samples, generator, chunk, batched, progress)

    def stretch(
        g: Callable[..., Any],
        leaves: _Tensors,
        v: _Tensors,
        spec: Any,
        rest: tuple[Any, ...],
    ) -> torch.Tensor:
        def field(*inputs: Any) -> Any:
            y = g(*inputs)
            _check_field(y, leaves, spec)
            return y

        moved = pytree.tree_leaves(along(field, leaves, v, spec, rest, 1))
        return _total((a * b).sum() for a, b in zip(v, moved, strict=True))

    return _trace(stretch, f, x, args, plan)


@dataclasses.dataclass(frozen=True)
class _Options:
    """The options of both traces, checked."""

    method: str
    samples: int | None
    generator: torch.Generator | None
    chunk: int | str
    batched: bool
    progress: bool

    def __post_init__(self) -> None:
        if self.method not in _METHODS:
            raise ValueError(f"method must be 'exact' or 'hutchinson': got {self.method!r}")
        if self.method == "exact" and (self.samples is not None or self.generator is not None):
            raise ValueError("samples and generator are for method='hutchinson': the exact trace draws nothing")
        if self.samples is not None and not _is_count(self.samples, 2):
            raise ValueError(f"samples must be an integer from 2 on, for there to be an error: got {self.samples!r}")
        if self.chunk != "auto" and not _is_count(self.chunk, 1):
            raise ValueError(f"chunk must be 'auto' or an integer from 1 on: got {self.chunk!r}")

    def ranges(self, count: int, numel: int) -> Iterator[tuple[int, int]]:
        """``count`` directions of ``numel`` numbers each in chunks, from first to last, under the bar."""
        size = max(_CHUNK_LEAST, _CHUNK_ELEMENTS // numel) if self.chunk == "auto" else int(self.chunk)
        chunks = [(first, min(first + size, count)) for first in range(0, count, size)]
        return iter(_with_bar(chunks) if self.progress else chunks)


class _Split:
    """Flat directions as leaves, in the shapes of the leaves (of one sample, with ``batched``)."""

    def __init__(self, leaves: _Tensors, batched: bool) -> None:
        self.shapes = [leaf.shape[1:] if batched else leaf.shape for leaf in leaves]
        self.dtypes = [leaf.dtype for leaf in leaves]
        self.sizes = [shape.numel() for shape in self.shapes]

    def __call__(self, flat: torch.Tensor) -> list[torch.Tensor]:
        parts = zip(flat.split(self.sizes), self.shapes, self.dtypes, strict=True)
        return [part.reshape(shape).to(dtype) for part, shape, dtype in parts]


def _trace(term: Callable[..., Any], f: Callable[..., Any], x: Any, args: tuple[Any, ...], options: _Options) -> Any:
    leaves, spec = flat_point(x)
    samples = _batch_size(leaves, args) if options.batched else 1
    numel = sum(leaf.numel() for leaf in leaves)
    if numel == 0:
        raise ValueError("x is empty: a trace needs at least one number to differentiate by")
    split = _Split(leaves, options.batched)
    n, like = numel // samples, leaves[0]

    def terms(directions: torch.Tensor) -> torch.Tensor:
        if options.batched:
            return torch.func.vmap(lambda v: _of_samples(term, f, leaves, spec, args, v, split))(directions)
        return torch.func.vmap(lambda v: term(f, leaves, split(v), spec, args))(directions)

    with forward_mode():
        if options.batched:
            _require_samples_apart(f, leaves, spec, args)
        if options.method == "exact":
            coordinates = torch.arange(n, device=like.device)
            return _total(
                terms((coordinates[first:last, None] == coordinates).to(like.dtype)).sum(0)
                for first, last in options.ranges(n, numel)
            )
        shape = (samples, n) if options.batched else (n,)
        drawn = [
            terms(_signs((last - first, *shape), like, options.generator))
            for first, last in options.ranges(options.samples or 64, numel)
        ]
    values = torch.cat(drawn)
    return Estimate(values.mean(0), values.std(0) / len(values) ** 0.5)


def _of_samples(
    term: Callable[..., Any],
    f: Callable[..., Any],
    leaves: _Tensors,
    spec: pytree.TreeSpec,
    args: tuple[Any, ...],
    directions: torch.Tensor,
    split: _Split,
) -> torch.Tensor:
    """``term`` of every sample; directions of shape (n,) are the same for all, of (B, n) one a sample."""

    def one(sample: _Tensors, rest: list[Any], v: torch.Tensor) -> torch.Tensor:
        return term(_alone(f), sample, split(v), spec, pytree.tree_unflatten(rest, args_spec))

    rest, args_spec = pytree.tree_flatten(args)
    along_samples = (0, _split_dims(rest), 0 if directions.dim() == 2 else None)
    return torch.func.vmap(one, in_dims=along_samples)(list(leaves), rest, directions)


def _alone(f: Callable[..., Any]) -> Callable[..., Any]:
    """``g(x_i) = f(x_i[None])[0]``."""

    def g(*inputs: Any) -> Any:
        y = f(*pytree.tree_map(lambda leaf: leaf[None] if isinstance(leaf, torch.Tensor) else leaf, inputs))
        return pytree.tree_map(_only, y)

    return g


def _only(leaf: Any) -> torch.Tensor:
    require_floating(leaf, "the output of f")
    if leaf.shape[:1] != (1,):
        raise ValueError(f"f must return one result a sample: got {tuple(leaf.shape)} for one sample, not (1, ...)")
    return leaf[0]


def _require_samples_apart(
    f: Callable[..., Any], leaves: _Tensors, spec: pytree.TreeSpec, args: tuple[Any, ...]
) -> None:
    """Raise DerivativeError unless ``f`` of all samples is ``f`` of each."""

    def one(sample: _Tensors, rest: list[Any]) -> Any:
        return _alone(f)(pytree.tree_unflatten(sample, spec), *pytree.tree_unflatten(rest, args_spec))

    rest, args_spec = pytree.tree_flatten(args)
    with torch.no_grad():
        # each first: train-mode batch norm raises here, before it has updated its statistics
        try:
            each = torch.func.vmap(one, in_dims=(0, _split_dims(rest)))(list(leaves), rest)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise DerivativeError("f normalizes over the batch, which mixes samples: call .eval() first") from error
        together = f(pytree.tree_unflatten(leaves, spec), *args)
    for a, b in zip(pytree.tree_leaves(each), pytree.tree_leaves(together), strict=True):
        if a.shape != b.shape:
            raise ValueError(f"f must return one result a sample: got {tuple(b.shape)}, expected {tuple(a.shape)}")
        tolerance = torch.finfo(b.dtype).eps ** 0.5
        scale = float(b.abs().nan_to_num(0, 0, 0).max()) if b.numel() else 0.0
        if not torch.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True):
            difference = float((a - b).abs().max())
            raise DerivativeError(
                f"f mixes samples: one at a time they give values that differ by up to {difference:.3g} from those of "
                "all, so that there is no derivative per sample; call .eval() on batch norm, take statistics over the "
                "batch outside of f, or ask for batched=False"
            )


def _batch_size(leaves: _Tensors, args: tuple[Any, ...]) -> int:
    tensors = [*leaves, *(leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, torch.Tensor))]
    sizes = {tensor.shape[0] if tensor.dim() else None for tensor in tensors}
    if len(sizes) != 1 or None in sizes:
        raise ValueError(
            "with batched=True every tensor in x and args needs the same leading dimension: got shapes "
            f"{[tuple(tensor.shape) for tensor in tensors]}; let f capture what all samples share"
        )
    return int(tensors[0].shape[0]) or 1


def _split_dims(rest: Sequence[Any]) -> list[int | None]:
    return [0 if isinstance(leaf, torch.Tensor) else None for leaf in rest]


def _scalar(g: Callable[..., Any]) -> Callable[..., torch.Tensor]:
    def value(*inputs: Any) -> torch.Tensor:
        y = g(*inputs)
        require_scalar(y)
        return y

    return value


def _check_field(y: Any, leaves: _Tensors, spec: pytree.TreeSpec) -> None:
    moved, y_spec = pytree.tree_flatten(y)
    if y_spec != spec:
        raise ValueError(f"f must return the structure of x: got {y_spec}, expected {spec}")
    for got, leaf in zip(moved, leaves, strict=True):
        if got.shape != leaf.shape:
            raise ValueError(f"f must return the shapes of x: got {tuple(got.shape)}, expected {tuple(leaf.shape)}")


def _signs(shape: tuple[int, ...], like: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    return torch.randint(0, 2, shape, generator=generator, device=like.device).to(like.dtype) * 2 - 1


def _total(terms: Iterator[torch.Tensor]) -> torch.Tensor:
    total = next(terms)
    for term in terms:
        total = total + term
    return total


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _with_bar(chunks: list[tuple[int, int]]) -> Any:
    return tqdm()(chunks, desc="directions", unit="chunk")
