"""How much memory a call has live at once, read off the operations it runs."""

import itertools

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def tensors(tree):
    """Return the plain tensors and parameters of a tree that have memory."""
    return [leaf for leaf in tree_leaves(tree) if type(leaf) in (Tensor, Parameter) and leaf.device.type != "meta"]


def storages(tree):
    """Return weak reference -> storage of every tensor of a tree."""
    return {StorageWeakRef(storage): storage for storage in (leaf.untyped_storage() for leaf in tensors(tree))}


class MemoryProbe(TorchDispatchMode):
    """Record of every storage an operation makes: its bytes, and from which operation to which one it lives."""

    def __init__(self):
        super().__init__()
        self.step = 0
        self.outside = set()
        self.live = {}
        self.lives = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # what an operation reads and no operation made was there before
        self.outside.update(ref for ref in storages((args, kwargs)) if ref not in self.live)
        out = func(*args, **(kwargs or {}))
        self.step += 1
        for ref, storage in storages(out).items():
            if ref not in self.live and ref not in self.outside:
                self.live[ref] = [storage.nbytes(), self.step, None]
                self.lives.append(self.live[ref])
        for ref in [ref for ref in self.live if ref.expired()]:
            self.live.pop(ref)[2] = self.step
        return out

    def peak(self, result):
        """Return the most bytes live after any one operation, not counting the result's own."""
        for ref, storage in storages(result).items():
            if ref in self.live:
                # a result that is a small view of something large holds the rest of it too
                views = [leaf.nbytes for leaf in tensors(result) if StorageWeakRef(leaf.untyped_storage()) == ref]
                self.live[ref][0] = max(0, storage.nbytes() - sum(views))
        changes = [0] * (self.step + 2)
        for nbytes, born, died in self.lives:
            changes[born] += nbytes
            changes[self.step + 1 if died is None else died] -= nbytes
        return max(itertools.accumulate(changes))


def peak_above(fn):
    """Call fn; return its result, and the most bytes live at once besides that and what was there before.

    Storages are followed by C++ reference count, so what only autograd holds counts. What a kernel allocates within
    itself and PyTorch never sees as a tensor does not.
    """
    probe = MemoryProbe()
    with probe:
        result = fn()
    return result, probe.peak(result)
