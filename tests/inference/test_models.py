"""Each model of the zoo, wrapped: in every mode what the bare one gives, and nothing left behind on it."""

import contextlib
import copy
import warnings

import pytest
import torch
from torch import nn

from torchadx.inference import InferenceAware, unpack_dual

from .checks import as_exact, dual, equal, floats, lent, near, step, tangents
from .zoo import CASES, encoder, mlp

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype:UserWarning")
every_model = pytest.mark.parametrize("case", CASES, ids=str)
with_tangents = pytest.mark.parametrize(
    "case", [case for case in CASES if case.functional and floats(case.inputs())], ids=str
)
TRAINABLE = [case for case in CASES if case.name != "frozen"]


def state(module):
    """What a call may change, apart from gradients."""
    return dict(module.state_dict()), dict(module.named_buffers()), module.training


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("case", TRAINABLE, ids=str)
def test_a_training_step_has_the_same_bits(case, training):
    bare, wrapped = case.module().train(training), InferenceAware(case.module()).train(training)
    args, kwargs = case.inputs()
    for _ in range(2):
        equal(step(wrapped, args, kwargs), step(bare, args, kwargs))
        equal(state(wrapped), state(bare))


@every_model
def test_no_grad_has_the_same_bits(case):
    bare, wrapped = case.module().eval(), InferenceAware(case.module()).eval()
    args, kwargs = case.inputs()
    with torch.no_grad():
        for _ in range(2):
            got, expected = wrapped(*args, **kwargs), bare(*args, **kwargs)
            equal(got, expected)
            assert [y.is_inference() for y in floats(got)] == [y.is_inference() for y in floats(expected)]


@every_model
def test_inference_mode_agrees(case):
    bare, exact, module = case.module().eval(), case.module(torch.float64).eval(), case.module().eval()
    wrapped, own = InferenceAware(module).eval(), lent(module)
    args, kwargs = case.inputs()
    with torch.inference_mode():
        for _ in range(3):
            got, expected = wrapped(*args, **kwargs), bare(*args, **kwargs)
            as_exact(got, expected, exact(*case.inputs(torch.float64)[0], **case.inputs(torch.float64)[1]))
            assert all(y.is_inference() for y in floats(got)) == all(y.is_inference() for y in floats(expected))
    equal(args, case.inputs()[0])
    assert lent(module) == own, "a stand-in stayed behind"
    near(state(wrapped), state(bare))


@every_model
def test_inference_mode_leaves_training_as_it_was(case):
    bare, wrapped = case.module().eval(), InferenceAware(case.module()).eval()
    args, kwargs = case.inputs()
    for module in (bare, wrapped):
        with torch.inference_mode():
            module(*args, **kwargs)
    bare.train()
    wrapped.train()
    if case.name == "changing":  # its buffer is an inference tensor by now; nothing needs its gradient
        bare.seen = bare.seen.clone()
        with pytest.warns(UserWarning, match="buffer 'seen'"):
            wrapped.train()(*args)
        bare.train()(*args)
    if case.name != "frozen":
        equal(step(wrapped, args, kwargs), step(bare, args, kwargs))
    equal(list(wrapped.state_dict()), list(bare.state_dict()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@with_tangents
def test_tangents_inside_inference_mode(case, dtype):
    bare, wrapped = case.module(dtype).eval(), InferenceAware(case.module(dtype)).eval()
    args, kwargs = case.inputs(dtype)
    along = [torch.randn_like(x) for x in floats(args)]
    plain = tangents(bare, args, kwargs, along)
    with torch.inference_mode(), dual(args, along) as duals:
        for _ in range(1 if case.name == "changing" else 2):
            got = [unpack_dual(y) for y in floats(wrapped(*duals, **kwargs))]
    assert all(y.tangent is not None for y in got)
    got = tuple(y.primal for y in got), tuple(y.tangent for y in got)
    if dtype is torch.float64:
        near(got, plain)
    else:
        exact = tangents(case.module(torch.float64).eval(), *case.inputs(torch.float64), [t.double() for t in along])
        as_exact(got, plain, exact)


@with_tangents
def test_tangents_under_no_grad(case):
    bare, wrapped = case.module(torch.float64).eval(), InferenceAware(case.module(torch.float64)).eval()
    args, kwargs = case.inputs(torch.float64)
    along = [torch.randn_like(x) for x in floats(args)]
    expected = None
    with torch.no_grad(), dual(args, along) as duals:
        got = tuple(zip(*(unpack_dual(y) for y in floats(wrapped(*duals, **kwargs))), strict=True))
        with contextlib.suppress(NotImplementedError):  # PyTorch's fused attention and LSTM refuse tangents
            expected = tuple(zip(*(unpack_dual(y) for y in floats(bare(*duals, **kwargs))), strict=True))
    near(got, expected or tangents(bare, args, kwargs, along))


VIEWS = {
    "one vector": lambda: torch.randn(256),
    "many dimensions": lambda: torch.randn(2, 3, 4, 256),
    "no rows": lambda: torch.randn(0, 256),
    "one row": lambda: torch.randn(1, 256),
    "transposed": lambda: torch.randn(256, 20).t(),
    "strided": lambda: torch.randn(20, 512)[:, ::2],
    "offset": lambda: torch.randn(20 * 256 + 3)[3:].view(20, 256),
    "broadcast": lambda: torch.randn(256).expand(20, 256),
    "broadcast columns": lambda: torch.randn(20, 1).expand(20, 256),
    "permuted": lambda: torch.randn(256, 3, 7).permute(1, 2, 0),
    "requires grad": lambda: torch.randn(20, 256, requires_grad=True),
}


@pytest.mark.parametrize("name", VIEWS)
def test_any_input_layout(name):
    wrapped = InferenceAware(mlp()).eval()
    exact, x = copy.deepcopy(wrapped.module).double(), VIEWS[name]()
    with torch.inference_mode():
        for _ in range(3):
            got, plain = wrapped(x), wrapped.module(x)
            as_exact(got, plain, exact(x.double()))
            assert got.stride() == plain.stride()
            as_exact(wrapped(input=x), plain, exact(x.double()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_any_dtype(dtype):
    module = mlp().to(dtype)
    wrapped, exact, x = InferenceAware(module).eval(), copy.deepcopy(module).double(), torch.randn(20, 256, dtype=dtype)
    with torch.inference_mode():
        for _ in range(3):
            as_exact(wrapped(x), module(x), exact(x.double()))


@pytest.mark.parametrize(
    "x",
    [torch.zeros(16, 255), torch.zeros(16, 256, dtype=torch.float64), torch.zeros(16, 256, dtype=torch.long), "text"],
    ids=["width", "dtype", "integers", "no tensor"],
)  # fmt: skip
def test_what_the_bare_module_refuses_is_refused(x):
    module = mlp().eval()
    wrapped = InferenceAware(module)
    with torch.inference_mode():
        good = [wrapped(torch.ones(16, 256)) for _ in range(3)][-1]
        with pytest.raises((RuntimeError, TypeError, ValueError, AttributeError)):
            module(x)
        with pytest.raises((RuntimeError, TypeError, ValueError, AttributeError)):
            wrapped(x)
        assert lent(module) == set()
        equal(wrapped(torch.ones(16, 256)), good)


@pytest.mark.parametrize("name", ["dropout", "dropout1", "dropout2", "self_attn"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_dropout_left_on_in_an_encoder_layer(batch_first, name):
    """Monte Carlo dropout: some layers are in train mode when the rest is not."""
    layer, results = encoder("relu", False, batch_first)().eval(), []
    layer.get_submodule(name).train()
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*in train mode under torch.inference_mode", UserWarning)
        for module in (layer, layer, InferenceAware(layer)):
            torch.manual_seed(5)
            results.append([module(torch.ones(4, 5, 256)) for _ in range(3)])
    equal(results[1], results[0])
    near(results[2], results[0])


def test_another_module_in_the_wrapper():
    wrapped, x = InferenceAware(mlp()).eval(), torch.randn(16, 256)
    with torch.inference_mode():
        for module in (wrapped.module, mlp(nn.Tanh).eval(), nn.Linear(256, 3)):
            wrapped.module = module
            for _ in range(3):
                near(wrapped(x), module(x))


class Fails(nn.Module):
    def forward(self, x):
        raise KeyError("from the user's module")


def test_an_exception_leaves_nothing_behind():
    module = nn.Sequential(mlp(), Fails()).eval()
    wrapped = InferenceAware(module, eval_in_inference=True).train()
    for _ in range(2):
        with torch.inference_mode(), pytest.raises(KeyError, match="from the user's module"):
            wrapped(torch.randn(16, 256))
        assert lent(module) == set()
        assert all(child.training for child in module.modules())
