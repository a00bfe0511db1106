"""The ways to hold what backward needs that are compared."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.autograd.graph import save_on_cpu

from torchadx import memory

#: the budget of "fit" is plain's bytes over this
FIT = 3

#: policies, and the relative error that a gradient may have under each: twice what its codec makes of a tensor (2^-9;
#: some 1 % and 15 % of activations), for a product has two factors
POLICIES = {"keep": 0.0, "bf16": 0.004, "int8": 0.02, "int4": 0.3, "lossless@host": 0.0, "@disk": 0.0}
FIT_BOUND = 0.02

NAMES = ("plain", "checkpoint", "save_on_cpu", *POLICIES, "fit")


@dataclasses.dataclass(frozen=True)
class Strategy:
    """One way to hold what backward needs.

    Attributes:
        name: Shown in tables.
        bound: The most relative error of a gradient; 0: it must equal plain PyTorch's bit for bit.
        open: Makes the context that forward runs in, step after step.
        checkpointed: Whether blocks are computed again in backward.
    """

    name: str
    bound: float = 0.0
    open: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    checkpointed: bool = False


PLAIN = Strategy("plain")


def strategies(plain_bytes: int, directory: str | os.PathLike[str] | None) -> Iterator[Strategy]:
    """Yield everything that is compared with plain PyTorch.

    Args:
        plain_bytes: What plain PyTorch saves, of which a budget is a part.
        directory: Where files go; ``None``: where the system keeps temporary files.
    """
    yield Strategy("checkpoint", checkpointed=True)
    yield Strategy("save_on_cpu", open=functools.partial(save_on_cpu, torch.cuda.is_available()))
    for policy, bound in POLICIES.items():
        stores = [memory.DiskStore(directory=directory)] if policy.endswith("@disk") else []
        yield Strategy(policy, bound, functools.partial(memory.ActivationManager, policy, stores=stores))
    yield Strategy("fit", FIT_BOUND, functools.partial(memory.fit, plain_bytes // FIT))
