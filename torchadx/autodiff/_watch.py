"""Watch a function while it is differentiated: what would cut the derivative off in silence is an error instead."""

import contextlib
import functools
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from torchadx.autodiff._errors import DerivativeError

# to nested transforms x.data is another stop-gradient at every level, x.detach() the same at all
_DATA: Any = torch.Tensor.data
_INFERENCE = "the function switches torch.inference_mode on, which cuts the derivative off: take the block out of it"
# what torch says -> what to do about it
_REMEDIES = (
    (
        "support saved tensor hooks",
        "saved-tensor hooks (torch.autograd.graph.saved_tensors_hooks, save_on_cpu, an ActivationManager, or "
        "torch.utils.checkpoint inside the function) are active, and torch.func cannot run a reverse sweep under them: "
        "leave the hooks' context before asking for this derivative, or take the checkpoint out of the function",
    ),
    (
        "called random operation while in randomness error mode",
        "the function draws random numbers while several directions or samples are computed at once, so that its "
        "derivative is not defined: call .eval() on modules with dropout, or draw the numbers outside and pass them in",
    ),
    (
        "Inference tensors cannot be saved for backward",
        "a tensor made under torch.inference_mode is used where a reverse sweep must keep it: make it outside of "
        "inference_mode, or .clone() it there, before the function uses it",
    ),
    ("is_inference() INTERNAL ASSERT", _INFERENCE),
    ("Cannot set version_counter for inference tensor", _INFERENCE),
    (
        "is being used in an in-place operation",
        "the function changes its input in place: let it work on x.clone()",
    ),
    (
        "would mutate a captured Tensor",
        "the function writes in place into a tensor from outside (train-mode batch norm updates its running "
        "statistics): call .eval(), or write out of place",
    ),
    (
        "Batch norm got a batched tensor",
        "train-mode batch norm mixes samples and updates its running statistics: call .eval()",
    ),
    (
        "vmap: inplace arithmetic",
        "the function writes in place into a tensor that all directions or samples share: write out of place",
    ),
    (
        "vmap: It looks like you're",
        "the function reads numbers out of a tensor (.item(), an if, a print) while several directions or samples are "
        "computed at once: choose with torch.where instead of if, and keep numbers in tensors",
    ),
    (
        "must override the setup_context staticmethod",
        "a torch.autograd.Function in the function is written in the old style, which torch.func cannot differentiate: "
        "give it setup_context, and jvp for forward mode",
    ),
)


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Raise DerivativeError, with the way out, for the errors of torch.func that the function is known to cause."""
    try:
        yield
    except DerivativeError:
        raise
    except RuntimeError as error:
        for words, remedy in _REMEDIES:
            if words in str(error):
                raise DerivativeError(remedy) from error
        raise


@contextlib.contextmanager
def looping_quietly() -> Iterator[None]:
    """Without torch's warning that vmap loops over an operation: to be said in the notes of a plan instead."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        yield


@contextlib.contextmanager
def differentiating() -> Iterator[None]:
    """``translated``, out of a caller's inference_mode, where that of the function could not be told from the caller's.

    What is computed has no graph then, as the caller expects.
    """
    with contextlib.ExitStack() as modes:
        modes.enter_context(translated())
        if torch.is_inference_mode_enabled():
            modes.enter_context(torch.inference_mode(False))
            modes.enter_context(torch.no_grad())
        yield


def is_forward_hole(error: Exception) -> bool:
    """Whether torch says that an operation has no forward-mode formula."""
    words = str(error)
    return isinstance(error, NotImplementedError) and ("forward AD" in words or "the jvp function" in words)


def first_line(error: Exception) -> str:
    """What went wrong, without what to do about it in torch's own repository."""
    return str(error).splitlines()[0].rstrip(".")


class Watch(TorchFunctionMode):
    """Raises DerivativeError when a derivative is cut off by ``no_grad`` or ``inference_mode``, or an input is changed.

    Both count from where the watch is entered: a ``no_grad`` around it says nothing about the function. Without
    ``inputs`` any floating-point operation under a switched-off mode raises at once. With ``inputs``, what depends on
    them is followed: numbers made under ``no_grad`` (or by ``.data``) from an input raise only where they are used
    again, so that a function may log them; ``detach()`` is an open stop-gradient and ends the trail.
    """

    def __init__(self, inputs: Sequence[torch.Tensor] | None = None) -> None:
        super().__init__()
        self._inputs = tuple(inputs or ())
        self._everything = inputs is None
        self._dependent = _TensorSet(self._inputs)
        self._cut = _TensorSet(())

    def __enter__(self) -> "Watch":
        self._grad = torch.is_grad_enabled()
        self._inference = torch.is_inference_mode_enabled()
        super().__enter__()
        return self

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self._writes_into_an_input(name, args[0] if args else None, kwargs.get("out")):
            raise DerivativeError(f"{name} changes an input of the function in place: let it work on x.clone()")
        result = func(*args, **kwargs)
        if name == "detach":
            return result
        if func == _DATA.__get__:
            self._cut.update([result] if self._depends(args[0]) else [])
            return result
        made = _floating((result, args[0]) if name == "__setitem__" else result)
        if made:
            self._follow(name, _floating((args, kwargs)), made)
        return result

    def check(self, output: Any) -> None:
        """Raise if a tensor in ``output`` was made from an input under a switched-off mode."""
        if any(tensor in self._cut for tensor in _floating(output)):
            raise DerivativeError(self._message("its result"))

    def _follow(self, name: str, used: list[torch.Tensor], made: list[torch.Tensor]) -> None:
        if self._switched_off() and any(self._depends(tensor) for tensor in used):
            if self._everything:
                raise DerivativeError(self._message(name))
            self._cut.update(made)
        elif any(tensor in self._cut for tensor in used):
            if not self._switched_off():
                raise DerivativeError(self._message(f"what {name} works on"))
            self._cut.update(made)
        elif any(self._depends(tensor) for tensor in used):
            self._dependent.update(made)

    def _depends(self, tensor: torch.Tensor) -> bool:
        return self._everything or tensor in self._dependent or tensor in self._cut

    def _switched_off(self) -> bool:
        no_grad = self._grad and not torch.is_grad_enabled()
        return no_grad or (torch.is_inference_mode_enabled() and not self._inference)

    def _writes_into_an_input(self, name: str, target: Any, out: Any) -> bool:
        writes = name == "__setitem__" or (name.endswith("_") and not name.endswith("__") and name != "requires_grad_")
        return any((writes and target is tensor) or out is tensor for tensor in self._inputs)

    def _message(self, what: str) -> str:
        return (
            f"the function computes {what} under torch.no_grad or torch.inference_mode (or by .data) from something "
            "that depends on its input, which would cut the derivative off in silence: take the block out of the "
            "function, or write x.detach() where a stop-gradient is meant"
        )


class _TensorSet:
    """Tensors by identity, none kept alive: a tensor compares elementwise, so that a WeakSet cannot hold it."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._alive: dict[int, weakref.ref[torch.Tensor]] = {}
        self.update(tensors)

    def __contains__(self, tensor: torch.Tensor) -> bool:
        found = self._alive.get(id(tensor))
        return found is not None and found() is tensor

    def update(self, tensors: Sequence[torch.Tensor]) -> None:
        for tensor in tensors:
            self._alive[id(tensor)] = weakref.ref(tensor)


def watch(inputs: Sequence[torch.Tensor] | None = None) -> Watch:
    """A Watch for ``with``."""
    return Watch(inputs)


def watched(f: Callable[..., Any]) -> Callable[..., Any]:
    """``f`` under a watch of its own, with what it is given as inputs; to be differentiated in place of ``f``."""

    @functools.wraps(f, updated=())
    def run(*args: Any) -> Any:
        with watch(_floating(args)) as seen:
            output = f(*args)
        seen.check(output)
        return output

    return run


def _floating(tree: Any) -> list[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree] if tree.is_floating_point() else []
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
