"""What the caller asks for, as a function of a flat list of tensors, and the way back to the caller's structure."""

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchadx.autodiff._errors import DerivativeError

Flat = Callable[..., list[Tensor]]


class _Place(enum.Enum):
    """Where a tensor stands among the leaves of the arguments."""

    TENSOR = enum.auto()


@dataclasses.dataclass
class Problem:
    """A derivative to take.

    Attributes:
        f: The caller's function.
        params: Names of the parameters to differentiate by; ``None`` when it is arguments.
        batched: Whether samples are independent, along the leading dimension of every tensor.
        gradient: Whether the function to differentiate is the gradient of ``f``: the result is a Hessian.
        spec: Structure of the arguments.
        static: Leaves of the arguments that are no tensors, in their places.
        wrt: Positions among the flat tensors that derivatives are taken by.
        wrt_spec: Structure of those inputs.
        out_spec: Structure of the outputs; known once the function has run.
    """

    f: Callable[..., Any]
    params: tuple[str, ...] | None
    batched: bool
    gradient: bool
    spec: pytree.TreeSpec
    static: tuple[Any, ...]
    wrt: tuple[int, ...]
    wrt_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Write structures as trees of zeros, which outlive versions of torch better than specifications of trees."""
        return self.__dict__ | {name: _tree(self.__dict__[name]) for name in _SPECS}

    def __setstate__(self, fields: dict[str, Any]) -> None:
        """Read them again."""
        self.__dict__.update(fields)
        for name in _SPECS:
            if fields[name] is not None:
                self.__dict__[name] = pytree.tree_structure(fields[name][0])

    @property
    def module(self) -> torch.nn.Module | None:
        """The module whose tensors are read anew at every run."""
        return self.f if isinstance(self.f, torch.nn.Module) else None

    def split(self, tensors: Sequence[Tensor]) -> int:
        """How many of the flat tensors, the first ones, differ by sample."""
        return len(tensors) - len(self.params or ()) if self.batched else 0

    def dims(self, tensors: Sequence[Tensor]) -> tuple[int | None, ...]:
        """Where each flat tensor has its samples, as ``torch.func.vmap`` asks for it."""
        count = self.split(tensors)
        return tuple(0 if position < count else None for position in range(len(tensors)))

    def tensors(self, args: Sequence[Any]) -> list[Tensor]:
        """Return the flat tensors of a call: those of the arguments, then parameters.

        Raises:
            ValueError: The structure differs from that of the first call, or so does a leaf that is no tensor.
        """
        leaves, spec = pytree.tree_flatten(tuple(args))
        static = tuple(_Place.TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        if spec != self.spec or static != self.static:
            raise ValueError(
                f"the plan was made for arguments of the structure {self.spec} with {self.static}: got {spec} with "
                f"{static}. Make another plan, or use jacfn(f), which keeps one for each."
            )
        found = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        return found + self._parameters()

    def _parameters(self) -> list[Tensor]:
        if self.params is None or self.module is None:
            return []
        named = dict(self.module.named_parameters(remove_duplicate=False))
        return [named[name] for name in self.params]

    def outputs(self, *tensors: Tensor) -> list[Tensor]:
        """The function of flat tensors; of one sample each if samples are independent."""
        leaves, self.out_spec = pytree.tree_flatten(self._call(tensors, self.batched))
        for leaf in leaves:
            if not isinstance(leaf, Tensor):
                raise TypeError(
                    f"f must return tensors: got {type(leaf).__name__}; return it apart from what is derived"
                )
            if not leaf.is_floating_point():
                raise TypeError(
                    f"outputs must be of a real floating-point dtype: got {leaf.dtype}, which has no derivative; "
                    "return it apart, or take real and imaginary parts with torch.view_as_real"
                )
        if not leaves:
            raise TypeError("f must return at least one tensor: got none")
        return [self._sample(leaf) for leaf in leaves] if self.batched else leaves

    def whole(self, *tensors: Tensor) -> list[Tensor]:
        """Run the function on all samples at once."""
        return pytree.tree_leaves(self._call(tensors, False))

    @staticmethod
    def _sample(leaf: Tensor) -> Tensor:
        if leaf.dim() == 0 or leaf.shape[0] != 1:
            raise ValueError(
                f"batched=True: f returned shape {tuple(leaf.shape)} for one sample, expected a leading dimension of 1"
            )
        return leaf[0]

    def _call(self, tensors: Sequence[Tensor], one_sample: bool) -> Any:
        given = iter(tensors)
        leaves = [self._take(next(given), one_sample) if leaf is _Place.TENSOR else leaf for leaf in self.static]
        args = pytree.tree_unflatten(leaves, self.spec)
        if self.params is None:
            return self.f(*args)
        named = dict(zip(self.params, given, strict=True))
        return torch.func.functional_call(self.module, named, args)  # type: ignore[arg-type]

    @staticmethod
    def _take(tensor: Tensor, one_sample: bool) -> Tensor:
        return tensor[None] if one_sample else tensor

    def gradient_of(self, run: Flat, *tensors: Tensor) -> list[Tensor]:
        """The first derivatives of a function of flat tensors, by output and input; of one number its gradient."""
        chosen = [tensors[position] for position in self.wrt]
        outputs, pull = torch.func.vjp(of_inputs(run, tensors, self.wrt), *chosen)  # type: ignore[misc]
        found = []
        for position, output in enumerate(outputs):
            count = output.numel()
            seeds = [other.new_zeros(count, *other.shape) for other in outputs]
            seeds[position] = torch.eye(count, dtype=output.dtype, device=output.device).reshape((count, *output.shape))
            if count == 1:
                gradients = pull(tuple(seed[0] for seed in seeds))
            else:
                gradients = torch.func.vmap(lambda *cotangents: pull(cotangents))(*seeds)
            found += [g.reshape((*output.shape, *x.shape)) for g, x in zip(gradients, chosen, strict=True)]
        return found

    def assemble(self, blocks: Sequence[Sequence[Tensor]]) -> Any:
        """Give ``blocks[output][input]`` the structure that ``torch.func.jacrev`` (``hessian``) gives them."""
        rows = [self.wrt_tree(row) for row in blocks]
        if self.gradient:
            inputs = len(self.wrt)
            rows = [self.wrt_tree(rows[start : start + inputs]) for start in range(0, len(rows), inputs)]
        assert self.out_spec is not None
        return pytree.tree_unflatten(rows, self.out_spec)

    def wrt_tree(self, items: Sequence[Any]) -> Any:
        """Give one item for each input the structure of the inputs."""
        return pytree.tree_unflatten(list(items), self.wrt_spec)


def of_inputs(run: Flat, tensors: Sequence[Tensor], wrt: Sequence[int]) -> Callable[..., tuple[Tensor, ...]]:
    """Return the function of the tensors at positions ``wrt`` alone; the others stay what they are."""

    def f(*inputs: Tensor) -> tuple[Tensor, ...]:
        every = list(tensors)
        for position, value in zip(wrt, inputs, strict=True):
            every[position] = value
        return tuple(run(*every))

    return f


_SPECS = ("spec", "wrt_spec", "out_spec")


def _tree(spec: pytree.TreeSpec | None) -> tuple[Any] | None:
    return None if spec is None else (pytree.tree_unflatten([0] * spec.num_leaves, spec),)


def state(
    f: Callable[..., Any],
    args: Sequence[Any],
    argnums: int | tuple[int, ...] | None,
    params: Any,
    batched: bool,
    gradient: bool = False,
) -> Problem:
    """Check what is asked for and state it.

    Raises:
        TypeError: An input to differentiate by is not of a real floating-point dtype, or ``f`` is no function.
        ValueError: ``argnums`` or ``params`` name what is not there, or samples differ in number.
    """
    if not callable(f):
        raise TypeError(f"f must be a function or a module: got {type(f).__name__}")
    leaves, spec = pytree.tree_flatten(tuple(args))
    static = tuple(_Place.TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves)
    names = _parameter_names(f, params, argnums)
    if names is None:
        argnums = 0 if argnums is None else argnums
        wrt, wrt_spec = _positions(args, argnums)
    else:
        count = sum(isinstance(leaf, Tensor) for leaf in leaves)
        wrt = tuple(range(count, count + len(names)))
        wrt_spec = pytree.tree_structure(dict.fromkeys(names, 0))
    problem = Problem(f, names, batched, gradient, spec, static, wrt, wrt_spec)
    tensors = problem.tensors(args)
    for position in wrt:
        _check_input(tensors[position])
    if batched:
        _check_samples([leaf for leaf in leaves if isinstance(leaf, Tensor)])
    return problem


def _parameter_names(f: Callable[..., Any], params: Any, argnums: Any) -> tuple[str, ...] | None:
    if params is None or params is False:
        return None
    if not isinstance(f, torch.nn.Module):
        raise TypeError(f"params= needs f to be an nn.Module: got {type(f).__name__}; pass parameters as an argument")
    if argnums is not None:
        raise ValueError("argnums and params exclude each other: derivatives are taken by arguments or by parameters")
    known = [name for name, _ in f.named_parameters()]
    names = known if params is True else [params] if isinstance(params, str) else list(params)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(f"params: got {unknown or names}, expected some of {', '.join(known) or 'no parameters'}")
    return tuple(names)


def _positions(args: Sequence[Any], argnums: int | tuple[int, ...]) -> tuple[tuple[int, ...], pytree.TreeSpec]:
    if not isinstance(argnums, (int, tuple, list)):
        raise TypeError(f"argnums: got {argnums!r}, expected a whole number or a tuple of them")
    chosen = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    for number in chosen:
        if not isinstance(number, int) or not -len(args) <= number < len(args):
            raise ValueError(f"argnums: got {argnums}, expected positions among {len(args)} arguments")
    chosen = tuple(number % len(args) for number in chosen)
    if len(set(chosen)) != len(chosen) or not chosen:
        raise ValueError(f"argnums: got {argnums}, expected different positions, at least one")
    counts = [[isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(arg)] for arg in args]
    starts = [sum(map(sum, counts[:number])) for number in range(len(args))]
    wrt = tuple(starts[n] + k for n in chosen for k in range(sum(counts[n])))
    for number in chosen:
        if not counts[number] or not all(counts[number]):
            raise TypeError(
                f"argument {number} must hold tensors alone to be differentiated by: got {type(args[number]).__name__}"
            )
    trees = tuple(args[number] for number in chosen)
    return wrt, pytree.tree_structure(trees[0] if isinstance(argnums, int) else trees)


def _check_input(tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise TypeError(
            f"inputs must be of a real floating-point dtype: got {tensor.dtype}; convert with .to(torch.float32), or "
            "choose other argnums"
        )


def _check_samples(tensors: Sequence[Tensor]) -> None:
    sizes = {tensor.shape[0] if tensor.dim() else None for tensor in tensors}
    if len(sizes) != 1 or None in sizes or 0 in sizes:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise ValueError(
            f"batched=True: every tensor argument needs the same leading dimension, at least 1: got {shapes}. What all "
            "samples share belongs into the function"
        )


def check_independent(together: Sequence[Tensor], apart: Sequence[Tensor]) -> None:
    """Raise if samples computed together differ from samples computed one by one.

    Raises:
        DerivativeError: They do.
    """
    for both, each in zip(together, apart, strict=True):
        tolerance = 1e-3 if both.dtype.itemsize <= 4 else 1e-8
        if both.shape != each.shape or not torch.allclose(both, each, tolerance, tolerance, equal_nan=True):
            raise DerivativeError(
                "batched=True: f mixes samples (batch norm in train mode, a mean over the batch ...): its outputs for "
                "all samples together differ from those for each alone, so that per-sample Jacobians are not defined. "
                "Call .eval(), or take the whole Jacobian with batched=False."
            )
