"""What is to be done with a tensor that autograd saves: pure decisions, made from a description of it."""

import abc
import dataclasses
import fnmatch
from collections.abc import Callable, Iterable, Mapping
from types import NoneType
from typing import Any, Literal

import torch
from torch import Tensor

from torchadx.memory import codecs
from torchadx.memory.codecs import Codec
from torchadx.memory.stores import STORES, Store

Alias = Literal["parameter", "buffer", "leaf", "parameter copy", "input"]


@dataclasses.dataclass(frozen=True, slots=True)
class TensorMeta:
    """What a policy may know of a saved tensor.

    Attributes:
        shape: Sizes.
        dtype: Element type.
        stride: Strides, in elements.
        device: Where it lies, e.g. ``device(type='cuda', index=0)``.
        nbytes: Bytes that keeping it takes: of its storage, or of its own elements if it is a small part of one.
        storage: Identity of its storage: equal for tensors that share memory, as long as it is alive.
        alias: What it is, if no intermediate result: the memory of a ``"parameter"``, a ``"buffer"`` or another
            ``"leaf"`` that requires grad (a policy is asked about none of these), of a ``"parameter copy"``
            (autocast's, or a ``DataParallel`` replica's), or of an ``"input"`` of the watched model.
        module: Name of the watched module whose forward saved it; ``None`` outside of watched modules.
        op: What produced it, after its node in the graph: ``"relu"``, ``"addmm"``; a custom function's class name,
            lowercased; ``None`` if it does not require grad.
        ordinal: How many tensors were saved before it since the manager was entered.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    stride: tuple[int, ...]
    device: torch.device
    nbytes: int
    storage: int
    alias: Alias | None
    module: str | None
    op: str | None
    ordinal: int


@dataclasses.dataclass(frozen=True, slots=True)
class Action:
    """Encode with ``codec`` (``None``: as it is), then put into ``store``.

    Written ``codec@store``: ``"int8"`` stays on the device, ``"@host"`` moves without a codec, ``"keep"`` is neither.
    """

    codec: Codec | None
    store: str

    @property
    def keeps(self) -> bool:
        """Whether the tensor stays where it is, by reference."""
        return self.codec is None and self.store == "device"

    @property
    def lossless(self) -> bool:
        """Whether backward gets the very same bits."""
        return self.codec is None or self.codec.lossless

    def __str__(self) -> str:
        if self.keeps:
            return "keep"
        name = "" if self.codec is None else self.codec.name
        return name if self.store == "device" else f"{name}@{self.store}"

    @classmethod
    def parse(cls, text: str) -> "Action":
        """Read ``"keep"``, ``"codec"``, ``"codec:option"``, ``"@store"`` or ``"codec@store"``.

        Raises:
            ValueError: It names a codec or a store that does not exist.
            ModuleNotFoundError: The codec needs an extra that is not installed.
        """
        if text == "keep":
            return KEEP
        codec, at, store = text.partition("@")
        if not text or (at and store not in STORES):
            raise ValueError(
                f"policy {text!r}: expected 'keep', a codec ({', '.join(codecs.known())}), '@' and a store "
                f"({', '.join(STORES)}), or both, e.g. 'int8@host'"
            )
        return cls(codecs.resolve(codec) if codec else None, store or "device")


KEEP = Action(None, "device")


@dataclasses.dataclass(frozen=True, slots=True)
class Decision:
    """An action and its reason, in words a user can act on."""

    action: Action
    reason: str


class Policy(abc.ABC):
    """Maps descriptions to decisions. Policies are pure: equal descriptions get equal decisions."""

    @abc.abstractmethod
    def decide(self, meta: TensorMeta) -> Decision:
        """Say what to do with a tensor. What cannot be encoded is left alone whatever the policy says."""


class Planner(abc.ABC):
    """A policy that learns from the tensors it sees, one pass (outermost entry of a manager) after another."""

    @property
    @abc.abstractmethod
    def window_bytes(self) -> int:
        """The most bytes that stores which are made for it may have under way."""

    @abc.abstractmethod
    def begin(self, stores: Mapping[str, Store]) -> None:
        """Start a pass: ordinals begin at 0 again."""

    @abc.abstractmethod
    def choose(self, meta: TensorMeta, flat: Tensor, resident: Callable[[], int]) -> Decision:
        """Say what to do with a tensor.

        Args:
            meta: Its description.
            flat: The elements that would be encoded, ``(n,)``, detached. To be read only, and not held.
            resident: Returns the bytes that the manager holds in memory now, this tensor not counted.
        """

    @abc.abstractmethod
    def released(self, ordinal: int) -> None:
        """Learn that what the tensor with this ordinal of the running pass became is held no longer."""


@dataclasses.dataclass(frozen=True, slots=True)
class Always(Policy):
    """The same decision for every tensor: what a policy string means."""

    decision: Decision

    def decide(self, meta: TensorMeta) -> Decision:
        """Return the one decision."""
        return self.decision


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a policy: a tensor that meets every condition given is treated as ``then`` says.

    Args:
        modules: Patterns (``fnmatch``: ``*`` crosses dots) of the names of watched modules; the name of the model
            itself is ``""``. A module's own submodules are matched by ``"name.*"``, not by ``"name"``.
        ops: Patterns of the producing op's name, e.g. ``"relu"`` or ``"*norm*"``.
        dtypes: Element types.
        min_bytes: Least bytes, inclusive.
        max_bytes: Most bytes, inclusive.
        then: Policy string of what to do, e.g. ``"int8@host"``.
    """

    modules: str | Iterable[str] | None = None
    ops: str | Iterable[str] | None = None
    dtypes: torch.dtype | Iterable[torch.dtype] | None = None
    min_bytes: int = 0
    max_bytes: int | None = None
    then: str = "keep"

    def __post_init__(self) -> None:
        """Freeze the conditions, so that an iterator given for one is read once."""
        for field, single in (("modules", str), ("ops", str), ("dtypes", torch.dtype)):
            value = getattr(self, field)
            if value is not None:
                object.__setattr__(self, field, _all_of(single, value, field))
        for field in ("min_bytes", "max_bytes"):
            if not isinstance(getattr(self, field), (int, NoneType)):
                raise TypeError(f"Rule({field}=...) is a number of bytes; got {getattr(self, field)!r}")
        if not isinstance(self.then, str):
            raise TypeError(f"Rule(then=...) is a policy string, e.g. 'int8'; got {self.then!r}")

    def matches(self, meta: TensorMeta) -> bool:
        """Whether the tensor meets every condition."""
        return (
            _any_like(self.modules, meta.module)
            and _any_like(self.ops, meta.op)
            and (self.dtypes is None or meta.dtype in self.dtypes)  # type: ignore[operator]
            and meta.nbytes >= self.min_bytes
            and (self.max_bytes is None or meta.nbytes <= self.max_bytes)
        )

    def __str__(self) -> str:
        given = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in dataclasses.fields(self)
            if field.name != "then" and getattr(self, field.name) != field.default
        ]
        return f"rule {', '.join(given) or 'for all'}"


def _all_of(kind: type, value: Any, field: str) -> tuple[Any, ...]:
    """Return one or several values of a kind as a tuple."""
    values = (value,) if isinstance(value, (str, kind)) or not isinstance(value, Iterable) else tuple(value)
    strangers = [one for one in values if not isinstance(one, kind)]
    if strangers:
        raise TypeError(f"Rule({field}=...) takes {kind.__name__} or several of them; got {strangers[0]!r}")
    return values


def _any_like(patterns: Iterable[str] | None, name: str | None) -> bool:
    return patterns is None or (name is not None and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))


class Rules(Policy):
    """Rules tried in order; the first that matches decides, and a tensor that none matches is kept."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        """Read the rules, so that one that names no policy is found at once."""
        self._rules = tuple((rule, Decision(Action.parse(rule.then), str(rule))) for rule in rules)

    def decide(self, meta: TensorMeta) -> Decision:
        """Take the first rule that matches."""
        for rule, decision in self._rules:
            if rule.matches(meta):
                return decision
        return _NO_RULE


_NO_RULE = Decision(KEEP, "no rule matches")


class Asked(Policy):
    """A user's function from descriptions to policy strings."""

    def __init__(self, function: Callable[[TensorMeta], str]) -> None:
        """Take the function; what it returns is looked at when it is asked."""
        self._function = function
        self._reason = f"{getattr(function, '__qualname__', repr(function))} said so"
        self._parsed: dict[str, Decision] = {}

    def decide(self, meta: TensorMeta) -> Decision:
        """Ask the function.

        Raises:
            TypeError: It returned something else than a string.
            ValueError: The string is no policy.
        """
        text = self._function(meta)
        if not isinstance(text, str):
            raise TypeError(f"a policy function returns a policy string, e.g. 'int8'; {self._reason}: {text!r}")
        if text not in self._parsed:
            self._parsed[text] = Decision(Action.parse(text), self._reason)
        return self._parsed[text]


def resolve(policy: "str | Rule | Iterable[Rule] | Callable[[TensorMeta], str] | Policy | Planner") -> Policy | Planner:
    """Make a policy of what a user writes for one.

    Args:
        policy: A policy string, a :class:`Rule` or several, a function from :class:`TensorMeta` to a policy string, or
            a policy.

    Raises:
        TypeError: It is none of these.
        ValueError: A policy string names a codec or store that does not exist.
    """
    if isinstance(policy, (Policy, Planner)):
        return policy
    if isinstance(policy, str):
        return Always(Decision(Action.parse(policy), f"the policy is {policy!r}"))
    if isinstance(policy, Rule):
        return Rules([policy])
    if callable(policy):
        return Asked(policy)
    if isinstance(policy, Iterable):
        rules = list(policy)
        strangers = [rule for rule in rules if not isinstance(rule, Rule)]
        if not strangers:
            return Rules(rules)
        raise TypeError(f"a list of rules holds {strangers[0]!r}; expected torchadx.memory.Rule(...) only")
    raise TypeError(
        f"policy {policy!r}: expected a string such as 'int8@host', a list of torchadx.memory.Rule, a function from "
        "TensorMeta to such a string, or torchadx.memory.Budget"
    )
