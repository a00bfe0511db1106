"""Sequences, in which a linear layer and the activation after it run as one."""

import dataclasses
from itertools import zip_longest
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import torchadx.nn
from torchadx.activations import Activation, resolve
from torchadx.inference._layers._linear import parameters_of
from torchadx.inference._layers._stand_in import StandIn
from torchadx.inference._lending import hooked, note_gain, patched
from torchadx.inference._session import Session
from torchadx.inference._state import Affine, Route
from torchadx.inference._tensors import in_dtype
from torchadx.inference._weights import large


@dataclasses.dataclass(eq=False)
class _Step:
    """Children that run together: a linear layer with the activation after it, or any one module.

    Attributes:
        children: One or two modules, by their names in the sequence.
        activation: What follows the product, where the first child is a linear layer; ``None`` where it is not.
        settings: What the hyperparameters of the activation's module were when it was recognised.
    """

    children: dict[str, nn.Module]
    activation: Activation | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.modules = tuple(self.children.values())
        self._kinds = tuple((module, type(module)) for module in self.modules)
        self._route: Route | None = None

    def takes_activation(self) -> bool:
        """Whether it is a linear layer without an activation so far."""
        return len(self.children) == 1 and type(self.modules[0]) is nn.Linear

    def obstacle(self) -> str | None:
        """Say why the children are called one by one, if they are."""
        if self.activation is None:
            return "it is no linear layer"
        if self._untouched():
            return None
        for (name, child), (_, kind) in zip(self.children.items(), self._kinds, strict=True):
            if hooked(child):
                return f"{name} has hooks, which are called with what it gets and gives"
            if patched(child) or type(child) is not kind:
                return f"the forward or the class of {name} was replaced"
        return f"the settings of {next(reversed(self.children))} were changed"

    def _untouched(self) -> bool:
        for module, kind in self._kinds:
            own = module.__dict__
            if type(module) is not kind or own["_forward_hooks"] or own["_forward_pre_hooks"] or "forward" in own:
                return False
        return all(getattr(self.modules[-1], name) == value for name, value in self.settings.items())

    def repeat(self, x: Any) -> Tensor | None:
        """Do what was done for the last ``x``, in the dtype of then; ``None`` where anything is not as it was."""
        route, own = self._route, self.modules[0]._parameters
        weight = own.get("weight")
        if route is None or self.activation is None or weight is None or "bias" not in own or not self._untouched():
            return None
        return route.run(x, weight, own["bias"], self.activation)

    def run(self, session: Session, x: Tensor, layer: Affine, out: torch.dtype | None, repeats: bool) -> Tensor:
        """Run as one on ``x``, and remember how if that may be repeated."""
        assert self.activation is not None
        y = session.linear(x, layer, self.activation, out)
        self._route = session.route(x, layer, self.activation) if repeats else None
        return y

    @property
    def weight(self) -> Tensor | None:
        """The weight of its first module, if it is its own parameter."""
        return self.modules[0]._parameters.get("weight")

    def layer(self, session: Session, x: Any) -> Affine | None:
        """Weight and bias, where the step is to run as one on ``x``."""
        if self.activation is None or self.weight is None or not session.gains(x, self.weight):
            return None
        layer = parameters_of(self.modules[0])
        return layer if layer is not None and self.obstacle() is None and session.takes(x, layer) else None

    def call(self, x: Any) -> Any:
        """Call the children one by one."""
        for child in self.modules:
            x = child(x)
        return x


class SequentialStandIn(StandIn):
    """:class:`torch.nn.Sequential`, a linear layer with its activation at a time."""

    kind: ClassVar[type[nn.Module]] = nn.Sequential

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self._children: tuple[nn.Module | None, ...] = ()
        self._steps: list[tuple[_Step, _Step | None]] = []

    def promises(self) -> bool:
        """Whether a linear layer in it has a large weight."""
        return any(step.activation is not None and large(step.weight) for step, _ in self.steps())

    def run(self, session: Session, input: Any) -> Any:
        """Apply the modules in turn."""
        x = input
        dtype: Any = getattr(input, "dtype", None)
        # between layers that compute in a lower dtype nothing is cast back
        lowers, repeats = session.lowers(input), session.repeats(input)
        for step, following in self.steps():
            stays = lowers and following is not None and following.activation is not None
            y = step.repeat(x) if repeats else None
            if y is not None:
                note_gain()
                x = y if stays else in_dtype(y, dtype)
                continue
            layer = step.layer(session, x)
            if layer is None:
                x = step.call(in_dtype(x, dtype) if lowers and isinstance(x, Tensor) else x)
                dtype = getattr(x, "dtype", None)
            else:
                x = step.run(session, x, layer, None if stays else dtype, repeats)
                dtype = dtype if lowers else x.dtype
        return in_dtype(x, dtype) if lowers and isinstance(x, Tensor) else x

    def steps(self) -> "list[tuple[_Step, _Step | None]]":
        """Return what runs together, each with what follows; found anew where the children are others than before."""
        children = tuple(self.module._modules.values())
        if children != self._children:
            steps = _steps_of(self.module)
            self._children, self._steps = children, list(zip_longest(steps, steps[1:]))
        return self._steps

    def explain(self, session: Session) -> str:
        """Say how its modules are called."""
        fused = sum(len(step.children) > 1 and step.obstacle() is None for step, _ in self.steps())
        return f"linear layers that run with their activation: {fused}" if fused else "as it is"

    def explain_children(self, session: Session) -> dict[str, str]:
        """Say which children run together."""
        texts: dict[str, str] = {}
        for step, _ in self.steps():
            if len(step.children) == 1 and hooked(step.modules[0]) and step.activation is not None:
                texts |= dict.fromkeys(step.children, "as it is: it has hooks")
            elif len(step.children) == 2:
                linear, activation = step.children
                reason = step.obstacle()
                weight = session.explain(step.modules[0])
                if reason is None:
                    texts |= {linear: f"fused with {activation}; {weight}", activation: f"fused into {linear}"}
                else:
                    texts[linear] = f"not fused with {activation}: {reason}; {weight}"
                    texts[activation] = f"not fused into {linear}: {reason}"
        return texts


def _steps_of(sequence: nn.Module) -> "list[_Step]":
    steps: list[_Step] = []
    for name, child in sequence._modules.items():
        assert child is not None
        previous = steps[-1] if steps else None
        row = _recognised(child)
        if type(child) is nn.Linear:
            steps.append(_Step({name: child}, resolve(None)))
        elif type(child) is torchadx.nn.Linear:
            steps.append(_Step({name: child}, resolve(child.activation), {"activation": child.activation}))
        elif row is not None and previous is not None and previous.takes_activation():
            settings = {setting: getattr(child, setting) for setting in _hyperparameters(child)}
            steps[-1] = _Step({**previous.children, name: child}, row, settings)
        else:
            steps.append(_Step({name: child}))
    return steps


def _recognised(module: nn.Module) -> Activation | None:
    try:
        return resolve(module)
    except ValueError:
        return None


def _hyperparameters(module: nn.Module) -> set[str]:
    return set(getattr(module, "__constants__", ())) - {"inplace"}
