"""Points and networks that the tests of Jacobians share, and PyTorch's Jacobian by parameters."""

import itertools

import pytest
import torch
from torch import nn
from zoo import seeded

MODES = ["auto", "forward", "reverse", "mixed"]


def point(*shape, name="point"):
    """A tensor that differs by name and not by what was drawn before."""
    return seeded(name, lambda: torch.randn(shape, dtype=torch.float64))


def network(*widths, name="network"):
    """Linear layers with tanh between them, of one seed per name."""

    def build():
        pairs = itertools.pairwise(widths)
        return nn.Sequential(*[layer for n, m in pairs for layer in (nn.Linear(n, m), nn.Tanh())][:-1]).double()

    return seeded(name, build)


def by_parameters(module, *args, names=None):
    """PyTorch's Jacobian with respect to a module's parameters."""
    values = dict(module.named_parameters())
    chosen = {name: values[name] for name in (names or values)}
    return torch.func.jacrev(lambda chosen: torch.func.functional_call(module, {**values, **chosen}, args))(chosen)


def says(error, *words):
    """Expect an error with all these words, in any order."""
    return pytest.raises(error, match="(?is)" + "".join(f"(?=.*(?:{word}))" for word in words))
