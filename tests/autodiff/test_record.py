"""What is written down when a function is recorded, and what is refused."""

import contextlib
import threading

import pytest
import torch
import torch.nn.functional as F
from recordings import Times, line_of, names, points, recorded, same_elsewhere, writes_nothing
from torch import nn
from torch.utils.checkpoint import checkpoint

import torchadx
from torchadx.autodiff._record import UntraceableError

X, CONSTANT = points(2, 4)
MASK = CONSTANT > 0


# what is written down


def views(x):
    return x.view(2, 2).mT.reshape(4)[1:].expand(3, 3).diagonal().flip(0)


def in_place(x):
    y = x * 2
    y.add_(x).mul_(y).clamp_(max=1)
    return y


def in_place_through_a_view(x):
    y = x.clone()
    before = y * 1
    y.view(2, 2)[0].mul_(3)
    return y + before


def assigned_slices(x):
    y = torch.zeros(6, dtype=x.dtype)
    y[1:3] = x[:2] * x[2:]
    y[4:] += x[1]
    y[0] = 5.0
    y[[3, 5]] = x[:2]
    return y


def filled_rows(x):
    y = torch.empty(2, 4, dtype=x.dtype)
    y[0] = x.sin()
    y[1].copy_(x * x)
    return y


def masked_assignment(x):
    y = x.clone()
    y[x > 0] = 0.0
    y[MASK] = 2.0
    return y


@pytest.mark.parametrize(
    "f", [views, in_place, in_place_through_a_view, assigned_slices, filled_rows, masked_assignment]
)
def test_views_and_writes_to_intermediates(f):
    program = same_elsewhere(f, (4,))
    assert writes_nothing(program)
    assert not any(call.blocked for call in program.calls)


def test_values_are_in_order_and_described():
    program = recorded(lambda x, y: (x.sin() * y, y), X, CONSTANT.float())
    assert names(program) == ["sin", "mul"]
    sin, mul = program.calls
    assert sin.inputs == program.inputs[:1]
    assert mul.inputs == (*sin.outputs, program.inputs[1])
    assert program.outputs == (*mul.outputs, program.inputs[1])
    assert [program.metas[i].dtype for i in program.inputs] == [torch.float64, torch.float32]
    assert program.metas[mul.outputs[0]].nbytes == 4 * 8
    assert not program.random
    assert program.constants == {}


def test_dead_calls_are_removed():
    def f(x):
        x.exp().log().sum()
        y = x.sin()
        return (y * CONSTANT, y.cos())[1]

    program = same_elsewhere(f, (4,))
    assert names(program) == ["sin", "cos"]
    assert program.constants == {}


def test_constants_of_modules_are_read_anew():
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).double().eval()
    program = same_elsewhere(module, (3, 4), module=module)
    owned = {(type(c.owner), c.name) for c in program.constants.values()}
    assert owned == {
        *[(nn.Linear, name) for name in ("weight", "bias")],
        *[(nn.BatchNorm1d, name) for name in ("weight", "bias", "running_mean", "running_var")],
    }
    (x,) = points(1, 3, 4)
    with torch.no_grad():
        # replaced, not just changed in place
        module[0].weight = nn.Parameter(module[0].weight * 2)
        module[1].running_mean = module[1].running_mean + 1
        torch.testing.assert_close(program.run(x)[0], module(x), rtol=1e-10, atol=1e-10)


def test_constants_of_modules_keep_their_names_when_functionalized():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(CONSTANT.clone())

        def forward(self, x):
            y = x.clone()
            y[1:] *= self.scale[1:]
            return y

    module = Writes()
    program = same_elsewhere(module, (4,), module=module)
    assert [c.name for c in program.constants.values() if c.owner is module] == ["scale"]
    module.scale = nn.Parameter(CONSTANT + 1)
    torch.testing.assert_close(program.run(X)[0], module(X).detach(), rtol=0, atol=0)


def test_captured_tensors_without_a_module_are_themselves():
    program = recorded(lambda x: x * CONSTANT, X)
    (constant,) = program.constants.values()
    assert constant.tensor is CONSTANT
    assert constant.owner is None
    assert constant.read() is CONSTANT


def test_constant_masks_and_integer_indices():
    def f(x):
        return x[MASK].sum() + x[torch.tensor([0, 2, 2])] * x[[1, 1, 3]] + x.gather(0, x.topk(3).indices) + x[1:].min()

    program = same_elsewhere(f, (4,))
    assert not any(call.blocked for call in program.calls)


def test_random_numbers_are_flagged():
    assert recorded(lambda x: x * torch.rand(4), X).random
    assert recorded(F.dropout, X).random
    assert recorded(lambda x: x.clone().mul_(torch.rand(4)), X).random
    assert not recorded(lambda x: F.dropout(x, training=False), X).random


# where derivatives stop


def detaches(x):
    return x.sin() * x.detach()


def detaches_and_writes(x):
    y = x.clone()
    y.mul_(2)
    return y * x.detach()


def under_no_grad(x):
    with torch.no_grad():
        scale = x.exp()
    return x * scale


def under_inference_mode(x):
    with torch.inference_mode():
        scale = x.exp()
    return x * scale.clone()


def own_rule(x):
    return Times.apply(x)


@pytest.mark.parametrize(
    ("f", "text", "target", "reason"),
    [
        (detaches, "x.detach()", "detach", "detach"),
        (detaches_and_writes, "x.detach()", "detach", "detach"),
        (under_no_grad, "x.exp()", "exp", "no_grad"),
        (under_inference_mode, "x.exp()", "exp", "inference_mode"),
    ],
)
def test_what_stops_derivatives_is_marked_with_its_line(f, text, target, reason):
    program = same_elsewhere(f, (4,))
    marked = [call for call in program.calls if call.blocked]
    assert [(call.target.overloadpacket.__name__, call.blocked) for call in marked] == [(target, reason)]
    assert marked[0].line == line_of(f, text)


def test_own_rules_are_refused_with_their_line():
    with pytest.raises(UntraceableError) as caught:
        recorded(own_rule, X)
    assert str(caught.value).endswith(line_of(own_rule, "Times.apply(x)"))


def test_constants_are_not_marked():
    def f(x):
        with torch.no_grad():
            scale = CONSTANT.exp()
        return x * scale * CONSTANT.detach()

    assert not any(call.blocked for call in same_elsewhere(f, (4,)).calls)


def test_grad_mode_switched_back_on_is_not_marked():
    def f(x):
        with torch.no_grad(), torch.enable_grad():
            y = x.sin()
        torch.set_grad_enabled(True)
        return y.cos()

    assert not any(call.blocked for call in same_elsewhere(f, (4,)).calls)


def second_order(x):
    y = x.clone().requires_grad_()
    with torch.enable_grad():
        (found,) = torch.autograd.grad((y.tanh() * y.sigmoid()).sum(), y, create_graph=True)
    return found * x


def gradient(x):
    return torch.func.grad(lambda t: (t.tanh() ** 2).softmax(0).sum() + t.sigmoid().prod())(x)


def tangent(x):
    return torch.func.jvp(lambda t: t.tanh() * t.exp(), (x,), (x.cos(),))[1]


def mapped(x):
    return torch.func.vmap(lambda t: t.tanh() * x.sum())(x)


def nested(x):
    return torch.func.hessian(lambda t: (t**3).sum() * t.tanh().prod())(x)


def recomputed(x):
    return checkpoint(lambda t: t.tanh() * t, x, use_reentrant=False) * x


@pytest.mark.parametrize("f", [second_order, gradient, tangent, mapped, nested, recomputed])
def test_derivatives_inside_are_operations(f):
    program = same_elsewhere(f, (4,))
    # autograd detaches for itself: nobody asked for it
    assert "detach" not in names(program)
    assert not any(call.blocked for call in program.calls)


def test_detach_inside_a_gradient_is_marked():
    program = same_elsewhere(lambda x: torch.func.grad(lambda t: (t.detach() * t.tanh()).sum())(x), (4,))
    assert [call.target for call in program.calls if call.blocked] == [torch.ops.aten.detach.default]


def test_autocast_around_and_inside():
    layer = nn.Linear(4, 3)

    def inside(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return layer(x)

    x = points(1, 2, 4)[0].float()
    assert recorded(inside, x).run(x)[0].dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        program = recorded(layer, x, module=layer)
    # what was cast then is cast outside of it, too
    got = program.run(x)[0]
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, inside(x).detach(), rtol=0, atol=0)


# layers that are known as one operation


def recurrent(kind):
    module = kind(3, 4, num_layers=2, bidirectional=True)
    return module, lambda x: module(x)[0], (5, 2, 3)


def attention():
    module = nn.MultiheadAttention(4, 2, batch_first=True)
    return module, lambda x: module(x, x, x)[0], (2, 3, 4)


def encoder():
    module = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    return module, module, (2, 3, 4)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    ("build", "fused"),
    [
        (lambda: recurrent(nn.LSTM), "lstm"),
        (lambda: recurrent(nn.GRU), "gru"),
        (attention, "attention"),
        (encoder, "encoder"),
    ],
    ids=["lstm", "gru", "attention", "encoder"],
)
def test_fused_layers_are_taken_apart(build, fused, frozen):
    module, f, shape = build()
    module.double().eval().requires_grad_(not frozen)
    program = same_elsewhere(f, shape, module=module)
    assert len(program.calls) > 10
    assert not [name for name in names(program) if fused in name or "rnn" in name or "native_multi_head" in name]
    held = {id(c.owner.__dict__["_parameters"][c.name]) for c in program.constants.values() if c.owner is not None}
    assert held == {id(parameter) for parameter in module.parameters()}


def test_layers_of_this_library_are_taken_apart():
    layer = torchadx.nn.Linear(4, 3).double()
    program = same_elsewhere(layer, (2, 4), module=layer)
    assert {call.target.namespace for call in program.calls} == {"aten"}


def test_fifty_layers():
    layers = [layer for _ in range(50) for layer in (nn.Linear(4, 4), nn.LayerNorm(4), nn.GELU())]
    module = nn.Sequential(*layers).double()
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: (p, p.detach().clone(), p.grad, p._version) for name, p in module.named_parameters()}
    program = same_elsewhere(module, (2, 4), module=module)
    assert 150 <= len(program.calls) <= 250
    for name, parameter in module.named_parameters():
        same, value, grad, version = before[name]
        assert parameter is same
        assert parameter.grad is grad
        assert parameter._version == version
        assert parameter.requires_grad
        assert torch.equal(parameter, value)
        assert torch.equal(grad, torch.ones_like(grad))


# settings of torch


def one_item(x):
    return x * x[0].item()


class StopError(Exception):
    pass


def stops(x):
    torch.set_grad_enabled(False)
    raise StopError


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("around", [contextlib.nullcontext, torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize(("f", "error"), [(torch.sin, None), (stops, StopError), (one_item, UntraceableError)])
def test_settings_are_as_before(f, error, around, enabled):
    seen = []

    def watching(x):
        seen.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.backends.mkldnn.enabled))
        return f(x)

    with torch.backends.mkldnn.flags(enabled=enabled), around():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        with contextlib.nullcontext() if error is None else pytest.raises(error):
            recorded(watching, X)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
        assert torch.backends.mkldnn.enabled == enabled
        # no mode listens any more
        assert torch.ones(2).tolist() == [1, 1]
    assert seen == [(True, False, False)]


def test_recording_does_not_warn(recwarn):
    recorded(torch.sin, X)
    assert [str(warning.message) for warning in recwarn] == []


def test_other_threads_are_not_recorded():
    def f(x):
        thread = threading.Thread(target=lambda: found.append((CONSTANT * 2).exp()))
        thread.start()
        thread.join()
        return x.sin()

    found = []
    assert names(recorded(f, X)) == ["sin"]
    assert torch.equal(found[0], (CONSTANT * 2).exp())
