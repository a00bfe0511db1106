"""Record a function as a :class:`Program`, or say why it cannot be.

Two modes of torch listen while the function runs once. The dispatch mode sees every operation below autograd and writes
it down. The function mode sees what the user's code calls, which tells what operations alone do not: a ``detach`` that
is meant from one that autograd makes for itself, gradients switched off, and values that leave as Python numbers.
"""

import contextlib
import dataclasses
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from torchadx.autodiff import _decompositions
from torchadx.autodiff._errors import DerivativeError
from torchadx.autodiff._program import Call, Constant, Meta, Program, Ref, rewrite
from torchadx.ops import outside_transforms

aten = torch.ops.aten

# they hand values to Python without an operation that could be seen
_LEAKS = ("tolist", "numpy", "__array__", "__dlpack__", "data_ptr", "untyped_storage", "apply_", "map_", "map2_")
_RULES = ("register_hook", "detach_")
_TORCH = os.path.dirname(torch.__file__) + os.sep
_HERE = os.path.dirname(os.path.dirname(__file__)) + os.sep


class UntraceableError(Exception):
    """A function whose operations depend on values of its arguments, or have rules that no recording shows."""


def record(f: Callable[..., Sequence[Tensor]], arguments: Sequence[Tensor], module: torch.nn.Module | None) -> Program:
    """Run ``f`` once on copies of its arguments and write down what it does.

    Args:
        f: Takes as many tensors as there are ``arguments``; returns a list of tensors.
        arguments: What to run it on; shapes, dtypes and devices are taken from them.
        module: Where captured tensors may live that a later run has to read anew.

    Returns:
        The operations that matter, none of which writes in place.

    Raises:
        UntraceableError: Its operations depend on values.
        DerivativeError: It changes an argument or a captured tensor in place.
    """
    # as torch.func would have them: f may ask whether they require gradients
    copies = [a.detach().clone().requires_grad_().clone() if a.is_floating_point() else a.clone() for a in arguments]
    tape = _Tape(copies, module)
    program = _listen(tape, f, copies)
    if tape.mutates:
        program = _functional(program, arguments)
    return program.without_dead_calls()


def _functional(program: Program, arguments: Sequence[Tensor]) -> Program:
    """Return the same program without operations in place, views and all.

    That is what functionalization is for. The first recording made sure that nothing but the function's own tensors
    changes; it takes captured tensors as arguments too, because it does not know others.
    """
    captured = list(program.constants.items())
    given = [argument.detach() for argument in (*arguments, *(constant.read() for _, constant in captured))]

    def f(*tensors: Tensor) -> list[Tensor]:
        own, constants = tensors[: len(arguments)], tensors[len(arguments) :]
        return replay(program, own, {index: t for (index, _), t in zip(captured, constants, strict=True)})

    tape = _Tape(given, None, len(arguments))
    again = _listen(tape, torch.func.functionalize(f, remove="mutations"), given)
    if tape.mutates:
        raise UntraceableError("it writes in place in a way that has no counterpart out of place")
    inputs, rest = again.inputs[: len(arguments)], again.inputs[len(arguments) :]
    constants = again.constants | {index: constant for index, (_, constant) in zip(rest, captured, strict=True)}
    return dataclasses.replace(again, inputs=inputs, constants=constants, random=program.random)


def replay(
    program: Program, arguments: Sequence[Tensor], constants: Mapping[int, Tensor] | None = None
) -> list[Tensor]:
    """Run a program while it is recorded again, as part of another function: what the user's code blocked stays so."""
    values = program.start(arguments, constants)
    for call in program.calls:
        with _listening[-1].called(call.blocked, call.line):
            call.run(values)
    return [values[index] for index in program.outputs]


# tapes that are being written, the innermost last
_listening: "list[_Tape]" = []


def _listen(tape: "_Tape", f: Callable[..., Sequence[Tensor]], arguments: Sequence[Tensor]) -> Program:
    devices = {argument.device for argument in arguments if argument.device.type != "cpu"}
    kind = next(iter(devices)).type if devices else "cuda"
    _listening.append(tape)
    try:
        with (
            _rules_are_seen(tape),
            torch.random.fork_rng(list(devices), device_type=kind),
            torch.inference_mode(False),
            torch.enable_grad(),
            _without_onednn(),
            _Watch(tape),
            tape,
        ):
            outputs = f(*arguments)
    finally:
        _listening.pop()
    return tape.program(outputs)


@contextlib.contextmanager
def _rules_are_seen(tape: "_Tape") -> Iterator[None]:
    """Tell the tape of every ``autograd.Function`` that runs, at any depth of transforms.

    They pass by both modes: what is seen below is their forward alone. The interpreter tells which functions it calls.
    """
    apply, before = torch.autograd.Function.apply.__func__.__code__, sys.getprofile()  # type: ignore[attr-defined]
    seen: list[UntraceableError] = []

    def listen(frame: types.FrameType, event: Any, argument: Any) -> None:
        if before is not None:
            before(frame, event, argument)
        if event == "call" and frame.f_code is apply and not seen:
            why = "a torch.autograd.Function has a rule of its own, which a recording does not show"
            try:
                tape.refuse(why, frame.f_locals["args"], not outside_transforms())
            except UntraceableError as error:
                seen.append(error)

    sys.setprofile(listen)
    try:
        yield
    finally:
        sys.setprofile(before)
    if seen:
        raise seen[0]


@contextlib.contextmanager
def _without_onednn() -> Iterator[None]:
    """Leave oneDNN's fused recurrent layers alone, which have no parts to look at."""
    flags = torch.backends.mkldnn.flags(enabled=False)
    with _quietly():
        flags.__enter__()
    try:
        yield
    finally:
        with _quietly():
            flags.__exit__(None, None, None)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Setting torch's flags back to what they were warns of devices that are not there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


class _Watch(TorchFunctionMode):
    """Tells the tape what the user's code asks for."""

    def __init__(self, tape: "_Tape") -> None:
        super().__init__()
        self._tape = tape

    def __torch_function__(self, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in _LEAKS or (name == "__get__" and getattr(function, "__self__", None) is Tensor.data):
            self._tape.refuse(f"Tensor.{'data' if name == '__get__' else name} takes values out of the function", args)
        elif name in ("tensor", "as_tensor", "asarray") and args and not isinstance(args[0], Tensor):
            self._tape.refuse(f"torch.{name} takes values out of the function", list(_leaves(args[0])))
        elif name == "__set__" and getattr(function, "__self__", None) is Tensor.data:
            self._tape.refuse("Tensor.data is replaced, which a recording does not show", args)
        elif name in _RULES:
            self._tape.refuse(f"Tensor.{name} changes how derivatives pass, which a recording does not show", args)
        with self._tape.called(self._blocked(name)):
            return function(*args, **(kwargs or {}))

    def _blocked(self, name: str) -> str:
        if torch.is_inference_mode_enabled():
            return "inference_mode"
        if not torch.is_grad_enabled():
            return "no_grad"
        # torch.tensor of a tensor is a detached copy
        return "detach" if name in ("detach", "tensor") else ""


class _Tape(TorchDispatchMode):
    """Writes down every operation."""

    def __init__(self, arguments: Sequence[Tensor], module: torch.nn.Module | None, count: int | None = None) -> None:
        """``count``: how many of the arguments results depend on; the others are constants. All, by default."""
        super().__init__()
        self.mutates = False
        self._random = False
        self._blocked = self._line = ""
        self._calls: list[Call] = []
        self._constants: dict[int, Constant] = {}
        self._metas: list[Meta] = []
        self._dependent: set[int] = set()
        # by identity; the tensors are held so that no other can take theirs
        self._numbers: dict[int, tuple[int, Tensor]] = {}
        self._storages: dict[int, str] = {}
        self._owned = {} if module is None else dict(_owned(module))
        self._inputs = tuple(self._add(argument) for argument in arguments)
        self._dependent.update(self._inputs[:count])
        for argument in arguments:
            self._storages[_storage(argument)] = "an argument"

    @contextlib.contextmanager
    def called(self, blocked: str, line: str = "") -> Iterator[None]:
        """Mark what runs inside as not passing derivatives, and where that was asked for if not here."""
        before = self._blocked, self._line
        if not self._blocked:
            self._blocked, self._line = blocked, line
        try:
            yield
        finally:
            self._blocked, self._line = before

    def refuse(self, why: str, args: Sequence[Any], always: bool = False) -> None:
        """Raise if a tensor among the arguments of a call depends on the function's, or ``always``."""
        if always or any(isinstance(tensor, Tensor) and self._depends(tensor) for tensor in args):
            raise UntraceableError(f"{why} at {user_line()}")

    def __torch_dispatch__(self, target: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # operations made of others arrive whole where autograd is left out
        replacement = _decompositions.find(target) or target.decompose
        with self:
            result = replacement(*args, **kwargs)
        if result is not NotImplemented:
            return result
        if target is aten.alias.default or (target is aten.detach.default and self._blocked != "detach"):
            # autograd keeps its outputs so; nothing stops here
            result = target(*args)
            self._numbers[id(result)] = (self._number(args[0]), result)
            return result
        read = rewrite(args, self._reference), rewrite(kwargs, self._reference)
        self._check(target, args, kwargs)
        result = target(*args, **kwargs)
        self._write(target, *read, result)
        return result

    def _check(self, target: Any, args: Any, kwargs: Any) -> None:
        tags = target.tags
        if torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags:
            read = _tensors((args, kwargs))
            if target is aten.index.Tensor:
                # numbers pick as many as there are; only a mask decides how many
                read = (tensor for tensor in _tensors(args[1]) if tensor.dtype in (torch.bool, torch.uint8))
            if any(map(self._depends, read)):
                raise UntraceableError(f"{target} depends on values of the arguments at {user_line()}")
        if torch.Tag.nondeterministic_seeded in tags:
            self._random = True
        if target._schema.is_mutable:
            self.mutates = True
            for tensor in _written(target, args, kwargs):
                self._refuse_mutation(target, tensor)

    def _refuse_mutation(self, target: Any, tensor: Tensor) -> None:
        owner = self._storages.get(_storage(tensor))
        if owner == "an argument":
            raise DerivativeError(
                f"f changes an argument in place ({target} at {user_line()}): its derivative would be of another "
                "function. Write out of place, or begin with x = x.clone()."
            )
        if owner == "a captured tensor":
            raise DerivativeError(
                f"f changes a captured tensor in place ({target} at {user_line()}), such as running statistics in "
                "train mode: every evaluation would be of another function. Call .eval(), or write out of place."
            )

    def _write(self, target: Any, args: Any, kwargs: Any, result: Any) -> None:
        several = isinstance(result, (list, tuple))
        results = list(result) if several else [result]
        reads = [leaf.index for leaf in _leaves((args, kwargs)) if isinstance(leaf, Ref)]
        outputs = tuple(self._add(item) if isinstance(item, Tensor) else None for item in results)
        call = Call(target, args, kwargs, outputs, several)
        if not call.shapes_only and not self._dependent.isdisjoint(reads):
            self._dependent.update(index for index in outputs if index is not None)
            if self._blocked:
                call = dataclasses.replace(call, blocked=self._blocked, line=self._line or user_line())
        self._calls.append(call)

    def _add(self, tensor: Tensor) -> int:
        index = len(self._metas)
        self._metas.append(Meta(tensor.shape, tensor.dtype, tensor.device))
        self._numbers[id(tensor)] = (index, tensor)
        self._storages.setdefault(_storage(tensor), "")
        return index

    def _number(self, tensor: Tensor) -> int:
        known = self._numbers.get(id(tensor))
        if known is not None:
            return known[0]
        if self._storages.setdefault(_storage(tensor), "a captured tensor") != "a captured tensor":
            raise UntraceableError(f"a tensor was made of another without an operation, before {user_line()}")
        index = self._add(tensor)
        self._constants[index] = self._owned.get(id(tensor), Constant(tensor))
        return index

    def _reference(self, leaf: Any) -> Any:
        return Ref(self._number(leaf)) if isinstance(leaf, Tensor) else leaf

    def _depends(self, tensor: Tensor) -> bool:
        known = self._numbers.get(id(tensor))
        return known is not None and known[0] in self._dependent

    def program(self, outputs: Sequence[Tensor]) -> Program:
        """Return what was written down."""
        numbers = tuple(self._number(output) for output in outputs)
        return Program(tuple(self._metas), self._inputs, self._constants, tuple(self._calls), numbers, self._random)


def _owned(module: torch.nn.Module) -> Iterator[tuple[int, Constant]]:
    for owner in module.modules():
        named = (*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False))
        yield from ((id(tensor), Constant(tensor, owner, name)) for name, tensor in named)


def _written(target: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    """Tensors that an operation writes to, by its schema."""
    for position, argument in enumerate(target._schema.arguments):
        if argument.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            yield from _tensors(value)


def _leaves(tree: Any) -> Iterator[Any]:
    if isinstance(tree, (list, tuple)):
        for item in tree:
            yield from _leaves(item)
    elif isinstance(tree, dict):
        yield from _leaves(tuple(tree.values()))
    else:
        yield tree


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in _leaves(tree) if isinstance(leaf, Tensor))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def user_line() -> str:
    """Return where the innermost code stands that is neither torch's nor this library's, as ``"file:line"``."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith((_TORCH, _HERE)) and os.path.basename(name) != "contextlib.py":
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return "an unknown line"
