"""Which formulas run in a kernel, and what is said of those that do not."""

import linecache
import math

import pytest
import torch
from torch import Tensor

from torchadx.activations import Activation, known
from torchadx.kernels import device_function, untranslatable

SLOPE = 0.25
NAME = "not a number"


def scaled(z: Tensor | None) -> "Tensor":
    """Read a global number, under annotations that only torch code could evaluate."""
    positive = torch.where(z > 0, z, SLOPE * z)
    return positive / 2


def one(kept):
    return torch.ones_like(kept)


def by_method(z):
    return z.square()


def by_unknown_function(z):
    return torch.special.erfcx(z)


def by_function_outside_the_vocabulary(z):
    return torch.relu(z)


def by_other_global(z):
    return z * math.pi


def by_text(z):
    return z * len(NAME)


def by_power(z):
    return z**2


def by_branch(z):
    if z.sum() > 0:
        return z
    return -z


def by_chain(z):
    return torch.where(-1 < z < 1, z, 0 * z)


def by_keyword(z):
    return torch.tanh(input=z)


def by_two_targets(z):
    a, b = z, z
    return a + b


def of_two(z, slope):
    return z * slope


def with_default(z, slope=2.0):
    return z * slope


def of_any_number(*z):
    return z


def positional(z, /):
    return z


def enclosed(slope):
    def formula(z):
        return z * slope

    return formula


REFUSED = {
    by_method: "z.square",
    by_unknown_function: "torch.special",
    by_function_outside_the_vocabulary: "torch.relu",
    by_other_global: "math.pi",
    by_text: r"len\(NAME\)",
    by_power: "Pow",
    by_branch: "statement other than assignment and return",
    by_chain: "chains comparisons",
    by_keyword: "positional arguments",
    by_two_targets: "assigns to something other than one name",
    of_two: "exactly one plain argument",
    with_default: "exactly one plain argument",
    of_any_number: "exactly one plain argument",
    positional: "exactly one plain argument",
    enclosed(2.0): r"enclosing function \(slope\)",
    (lambda z: z * 2): "lambda",
    torch.nn.functional.gelu: "not a plain Python function",
}


def row(value, derivative=one):
    """Make an unregistered row."""
    return Activation("test", value, derivative, one)


@pytest.mark.parametrize("activation", list(known()), ids=lambda activation: activation.name)
def test_every_row_runs_in_triton(activation):
    assert untranslatable(activation) is None
    assert device_function(activation.value) is device_function(activation.value)


def test_global_numbers_and_annotations():
    assert untranslatable(row(scaled)) is None
    assert device_function(scaled)


@pytest.mark.parametrize("formula", REFUSED, ids=lambda formula: getattr(formula, "__name__", repr(formula)))
def test_the_reason_is_told(formula):
    with pytest.raises(ValueError, match=REFUSED[formula]):
        device_function(formula)
    for field, activation in (("value", row(formula)), ("derivative", row(scaled, formula))):
        reason = untranslatable(activation)
        assert reason.startswith(f"`{field}` of activation 'test' ")


def test_second_derivatives_may_be_anything():
    activation = Activation("test", scaled, one, lambda kept: torch.nn.functional.softplus(kept))
    assert untranslatable(activation) is None


def test_functions_of_one_name_stay_apart():
    """Triton tells device functions apart by name; two rows may both call theirs ``value``."""
    names = {"torch": torch}
    first, second = dict(names), dict(names)
    source = "def value(z):\n    return z * {}\n"
    for namespace, factor in ((first, 2), (second, 3)):
        define(source.format(factor), namespace)
    assert device_function(first["value"]).fn.__qualname__ != device_function(second["value"]).fn.__qualname__


def define(source, namespace):
    """Run source that ``inspect`` finds, as a notebook does."""
    file = f"<cell {hash(source)}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    exec(compile(source, file, "exec"), namespace)
