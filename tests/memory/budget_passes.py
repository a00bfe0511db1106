"""Drives a budget by hand, as a manager would."""

import torch

from torchadx.memory import Budget
from torchadx.memory.policy import TensorMeta
from torchadx.memory.stores import STORES

KIB = 1024


class Passes:
    """Saves tensors as a manager does, and holds what they became."""

    def __init__(self, budget):
        self.budget = budget
        self.stores = {name: store() for name, store in STORES.items()}
        self.held = {}
        self.ordinal = self.passes = self.peak = 0

    def close(self):
        self.held.clear()
        for store in self.stores.values():
            store.close()

    @property
    def resident(self):
        kept = sum(t.nbytes for t in self.held.values() if isinstance(t, torch.Tensor))
        return kept + sum(store.resident_now for store in self.stores.values())

    def enter(self):
        self.ordinal, self.passes = 0, self.passes + 1
        self.budget.begin(self.stores)

    def save(self, tensor, module="layer", op="relu", alias=None):
        """Save a tensor; return the decision and the key to drop it by."""
        meta = TensorMeta(
            tuple(tensor.shape), tensor.dtype, tensor.stride(), tensor.device, tensor.nbytes, 0, alias, module, op,
            self.ordinal,
        )  # fmt: skip
        flat = tensor.detach().reshape(-1)
        decision = self.budget.choose(meta, flat, lambda: self.resident)
        key = self.passes, self.ordinal
        self.held[key] = self.become(decision.action, flat)
        self.ordinal += 1
        self.peak = max(self.peak, self.resident)
        return decision, key

    def become(self, action, flat):
        if action.keeps:
            return flat
        parts = (flat.clone(),) if action.codec is None else action.codec.encode(flat).parts
        return self.stores[action.store].put(parts)

    def drop(self, key):
        del self.held[key]
        if key[0] == self.passes:
            self.budget.released(key[1])

    def run(self, tensors, **names):
        """One pass: save everything, then let backward drop everything, the last one first."""
        self.enter()
        saved = [self.save(tensor, **names) for tensor in tensors]
        for _, key in reversed(saved):
            self.drop(key)
        for store in self.stores.values():
            store.flush()
        return [decision for decision, _ in saved]


def passes(*args, **kwargs):
    """Return the driver of a new budget."""
    return Passes(Budget(*args, **kwargs))


def dense(*shape):
    return torch.randn(*shape)


def rectified(*shape):
    return torch.randn(*shape).sub(1).relu()


def filled(rows):
    return torch.zeros(64, 64).index_fill_(0, torch.arange(rows), 1.5)


def actions(decisions):
    return [str(decision.action) for decision in decisions]


def measured(decisions):
    return [decision.reason.startswith("measured") for decision in decisions]
