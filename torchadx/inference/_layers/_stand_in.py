"""What a stand-in is."""

import abc
from typing import Any, ClassVar

from torch import nn

from torchadx.activations import Activation, ActivationLike, resolve
from torchadx.inference._lending import patched
from torchadx.inference._session import Session


class StandIn(abc.ABC):
    """Runs in place of a module without hooks while a wrapped module is called.

    A new kind of module is one such class in one file, and one entry in ``STAND_INS``. A stand-in reads the module anew
    at every call, because it may have been changed, and runs it as it is (:meth:`as_it_is`) where anything is unusual.

    Attributes:
        module: What it stands in for.
        kind: The class of such modules.
        fuses_tangents: Whether it carries tangents along in the same launch.
    """

    kind: ClassVar[type[nn.Module]]
    fuses_tangents: ClassVar[bool] = True

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @classmethod
    def serves(cls, module: nn.Module) -> bool:
        """Whether this is the module as it is shipped, rather than a subclass, a patched or a compiled one."""
        return type(module) is cls.kind and not patched(module)

    @abc.abstractmethod
    def promises(self) -> bool:
        """Whether it has a weight that may be worth preparing; where it has none nothing runs in its place."""

    @abc.abstractmethod
    def run(self, session: Session, *args: Any, **kwargs: Any) -> Any:
        """Compute what the module's forward would."""

    @abc.abstractmethod
    def explain(self, session: Session) -> str:
        """Say what runs under inference mode, and why."""

    def explain_children(self, session: Session) -> dict[str, str]:
        """Say, by their names in this module, what becomes of the children that do not run by themselves."""
        return {}

    def as_it_is(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's own forward."""
        return self.module.forward(*args, **kwargs)


def recognised(activation: ActivationLike) -> Activation | None:
    """Return the registered activation that this is, if it is one."""
    try:
        return resolve(activation)
    except ValueError:
        return None
