"""Sequences, in which a linear layer and the activation after it run as one."""

import dataclasses
from itertools import zip_longest
from typing import Any, ClassVar

from torch import Tensor, nn

import torchadx.nn
from torchadx.activations import Activation, resolve
from torchadx.inference._layers._linear import parameters_of
from torchadx.inference._layers._stand_in import StandIn, recognised
from torchadx.inference._lending import hooked, patched
from torchadx.inference._session import Product, Session
from torchadx.inference._state import Affine
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
        self.product = Product()

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

    def again(self, session: Session, x: Any) -> Tensor | None:
        """Do what was done for the last ``x``, in the dtype of then; ``None`` where anything is not as it was."""
        layer = parameters_of(self.modules[0])
        if layer is None or self.activation is None or not self._untouched():
            return None
        return self.product.again(session, x, layer, self.activation)

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
        # the children, and what runs together; replaced as one, because several threads may ask
        self._found: tuple[tuple[nn.Module | None, ...], list[tuple[_Step, _Step | None]]] = ((), [])

    def promises(self) -> bool:
        """Whether a linear layer in it has a large weight."""
        return any(step.activation is not None and large(step.weight) for step, _ in self.steps())

    def run(self, session: Session, input: Any) -> Any:
        """Apply the modules in turn."""
        x = input
        dtype: Any = getattr(input, "dtype", None)
        # between layers that compute in a lower dtype nothing is cast back
        lowers = session.lowers(input)
        for step, following in self.steps():
            stays = lowers and following is not None and following.activation is not None
            y = step.again(session, x)
            if y is not None:
                x = y if stays else in_dtype(y, dtype)
                continue
            layer = step.layer(session, x)
            if layer is None or step.activation is None:
                x = step.call(in_dtype(x, dtype) if lowers and isinstance(x, Tensor) else x)
                dtype = getattr(x, "dtype", None)
            else:
                x = step.product.run(session, x, layer, step.activation, None if stays else dtype)
                dtype = dtype if lowers else x.dtype
        return in_dtype(x, dtype) if lowers and isinstance(x, Tensor) else x

    def steps(self) -> "list[tuple[_Step, _Step | None]]":
        """Return what runs together, each with what follows; found anew where the children are others than before."""
        children, found = tuple(self.module._modules.values()), self._found
        if children != found[0]:
            steps = _steps_of(self.module)
            found = self._found = children, list(zip_longest(steps, steps[1:]))
        return found[1]

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
        row = recognised(child)
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


def _hyperparameters(module: nn.Module) -> set[str]:
    return set(getattr(module, "__constants__", ())) - {"inplace"}
