"""What cannot be recorded, and is refused before it does harm."""

import contextlib

import numpy as np
import pytest
import torch
from recordings import Times, points, recorded, same_elsewhere, writes_nothing
from torch import nn

from torchadx.autodiff import DerivativeError
from torchadx.autodiff._record import UntraceableError

X, CONSTANT = points(2, 4)
MASK = CONSTANT > 0


# what is refused


def adds_to_its_argument(x):
    return x.add_(1)


def writes_through_a_view(x):
    x.view(2, 2)[0] = 0.0
    return x


def writes_through_a_detached_argument(x):
    x.detach().mul_(2)
    return x


def writes_out_to_a_captured_tensor(x):
    with torch.no_grad():
        return torch.add(x, 1, out=CAPTURED)


def assigns_to_a_captured_tensor(x):
    CAPTURED[1:] = x[1:]
    return CAPTURED * 1


CAPTURED = torch.ones(4, dtype=torch.float64)


@pytest.mark.parametrize(
    ("f", "what"),
    [
        (adds_to_its_argument, "an argument"),
        (writes_through_a_view, "an argument"),
        (writes_through_a_detached_argument, "an argument"),
        (writes_out_to_a_captured_tensor, "a captured tensor"),
        (assigns_to_a_captured_tensor, "a captured tensor"),
    ],
)
def test_mutation_is_refused_before_it_happens(f, what):
    x = X.clone()
    with pytest.raises(DerivativeError, match=f"changes {what} in place .*test_record_refusals.py:"):
        recorded(f, x)
    assert torch.equal(x, X)
    assert torch.equal(CAPTURED, torch.ones(4, dtype=torch.float64))


def test_running_statistics_are_refused_before_they_change():
    module = nn.BatchNorm1d(4).double()
    with pytest.raises(DerivativeError, match=r"eval\(\)"):
        recorded(module, points(1, 3, 4)[0], module=module)
    assert not module.running_mean.any()
    assert torch.equal(module.running_var, torch.ones(4, dtype=torch.float64))
    assert module.num_batches_tracked == 0


def to_list(x):
    return x * x.tolist()[0]


def to_numpy(x):
    return x * x.detach().numpy().max()


def as_array(x):
    return x * float(np.asarray(x.detach())[0])


def one_item(x):
    return x * x[0].item()


def as_float(x):
    return x * float(x[0])


def as_index(x):
    return x[int(x[0] * 0)]


def data(x):
    return x * x.data


def branch(x):
    if x.sum() > 0:
        return x
    return -x


def mask(x):
    return x[x > 0]


def chosen(x):
    return x.masked_select(x > 0)


def which(x):
    return x[x.nonzero()]


def different(x):
    return x.unique()


def compared(x):
    return x if torch.equal(x, CONSTANT) else -x


def in_a_gradient(x):
    return torch.func.grad(lambda t: (t * t[0].item()).sum())(x)


@pytest.mark.parametrize(
    ("f", "text"),
    [
        (to_list, "tolist"),
        (to_numpy, "numpy"),
        (as_array, "asarray"),
        (one_item, "item"),
        (as_float, "float"),
        (as_index, "int("),
        (data, "data"),
        (branch, "if x.sum()"),
        (mask, "x[x > 0]"),
        (chosen, "masked_select"),
        (which, "nonzero"),
        (different, "unique"),
        (compared, "torch.equal"),
        (in_a_gradient, "item"),
    ],
)
def test_values_that_leave_make_a_function_untraceable(f, text):
    with pytest.raises(UntraceableError) as caught:
        recorded(f, X)
    assert str(caught.value).endswith(_line_in_body(f, text))


def _line_in_body(f, text):
    # the line of `def` may hold the text as well
    code = f.__code__
    with open(code.co_filename) as file:
        lines = file.read().splitlines()
    for number in range(code.co_firstlineno + 1, code.co_firstlineno + 4):
        if text in lines[number - 1]:
            return f"{code.co_filename}:{number}"
    raise AssertionError(text)


def test_values_of_constants_may_leave():
    def f(x):
        scale = float(CONSTANT.sum()) + CONSTANT.tolist()[0] + CONSTANT.numpy()[1]
        return x[CONSTANT > 0] * scale if CONSTANT.any() else x

    assert not any(call.blocked for call in same_elsewhere(f, (4,)).calls)


# what must be refused or marked, one way or another


def listed(x):
    return x * torch.tensor([x[0], x[1], 1, 1], dtype=x.dtype)


def as_parameter(x):
    return x * nn.Parameter(x)


def applied(x):
    return x * x.detach().clone().apply_(lambda number: 2 * number)


def mapped_in_place(x):
    return x * x.detach().clone().map_(CONSTANT, lambda a, b: a * b)


def replaced_data(x):
    y = x.sin()
    y.data = CONSTANT
    return y * x


@pytest.mark.parametrize("f", [listed, as_parameter, applied, mapped_in_place, replaced_data])
def test_values_never_go_stale(f):
    with contextlib.suppress(UntraceableError, RuntimeError):
        same_elsewhere(f, (4,))


def detaches_in_place(x):
    return x.sin().detach_() * x


def rule_in_vmap(x):
    return torch.func.vmap(Times.apply)(x)


def rule_in_grad(x):
    return torch.func.grad(lambda t: (Times.apply(t) ** 2).sum())(x)


def rule_in_jvp(x):
    return torch.func.jvp(lambda t: Times.apply(t) ** 2, (x,), (CONSTANT,))[1]


class Enables(torch.autograd.Function):
    """Computes under enabled gradients, as implicit layers do, and has a rule of its own."""

    @staticmethod
    def forward(x):
        with torch.enable_grad():
            return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, cotangent):
        return 10 * cotangent


def rule_that_enables_gradients(x):
    return Enables.apply(x)


@pytest.mark.parametrize("f", [detaches_in_place, rule_in_vmap, rule_in_grad, rule_in_jvp, rule_that_enables_gradients])
def test_rules_are_never_passed_over(f):
    with contextlib.suppress(UntraceableError, RuntimeError):
        assert any(call.blocked for call in same_elsewhere(f, (4,)).calls)


def test_constant_masks_beside_writes():
    def f(x):
        y = x.clone()
        y[MASK] *= 2
        return y

    assert writes_nothing(same_elsewhere(f, (4,)))
