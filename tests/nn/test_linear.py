"""``torchadx.nn.Linear`` as a drop-in for ``torch.nn.Linear`` followed by an activation."""

import copy
import io
import pickle

import pytest
import torch
from torch.nn.utils import parametrizations, parametrize

import torchadx
from torchadx import activations
from torchadx.nn import Linear


def same_seed(build):
    torch.manual_seed(3)
    return build()


def pair(act="gelu", **kwargs):
    """Our layer and PyTorch's, from one seed, with PyTorch's activation behind the second."""
    ours = same_seed(lambda: Linear(4, 5, activation=act, **kwargs))
    theirs = same_seed(lambda: torch.nn.Linear(4, 5, **kwargs))
    return ours, lambda x: activations.resolve(act).forward(theirs(x)), theirs


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("act", [None, "relu", torch.nn.GELU("tanh"), torch.nn.functional.silu], ids=str)
def test_parameters_state_and_output_are_those_of_pytorch(act, bias):
    ours, reference, theirs = pair(act, bias=bias)
    assert isinstance(ours, torch.nn.Linear)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(ours(x), reference(x))


@pytest.mark.parametrize("row", activations.ROWS, ids=lambda row: row.name)
def test_the_activation_is_kept_by_name_and_shown(row):
    layer = Linear(4, 5, activation=row)
    assert layer.activation == row.name
    assert repr(layer) == f"Linear(in_features=4, out_features=5, bias=True, activation={row.name})"


def test_no_activation_is_the_identity():
    assert Linear(4, 5, bias=False).activation == "identity"


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))], ids=["deepcopy", "pickle"]
)
def test_copies_are_equal_and_independent(clone):
    layer = Linear(4, 5, activation="silu").eval()
    twin, x = clone(layer), torch.randn(3, 4)
    assert (type(twin), twin.activation, twin.training) == (Linear, "silu", False)
    assert torch.equal(twin(x), layer(x))
    with torch.no_grad():
        twin.weight.zero_()
    assert not torch.equal(twin(x), layer(x))


def test_a_saved_module_loads():
    layer, file, x = Linear(4, 5, activation="mish"), io.BytesIO(), torch.randn(3, 4)
    torch.save(layer, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), layer(x))


def test_checkpoints_load_either_way():
    theirs = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    ours = torch.nn.Sequential(Linear(4, 5, activation="tanh"), torch.nn.Identity(), Linear(5, 2))
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 4)
    torch.testing.assert_close(ours(x), theirs(x))
    theirs.load_state_dict(same_seed(lambda: copy.deepcopy(ours)).state_dict())
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("bias", [True, False])
def test_from_torch_shares_parameters(bias):
    theirs = torch.nn.Linear(4, 5, bias=bias, dtype=torch.float64).eval()
    ours = Linear.from_torch(theirs, "softplus")
    assert ours.weight is theirs.weight
    assert ours.bias is theirs.bias
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert (ours.training, ours.activation) == (False, "softplus")
    x = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(ours(x), torch.nn.functional.softplus(theirs(x)))


def test_from_torch_keeps_frozen_parameters_frozen():
    assert not Linear.from_torch(torch.nn.Linear(4, 5).requires_grad_(False)).weight.requires_grad


class Scaled(torch.nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    "module",
    [
        lambda: Scaled(4, 5),
        lambda: Linear(4, 5),
        lambda: torch.nn.LazyLinear(5),
        lambda: torch.nn.Conv1d(4, 5, 1),
        lambda: parametrizations.weight_norm(torch.nn.Linear(4, 5)),
        lambda: "linear",
    ],
    ids=["subclass", "ours", "lazy", "convolution", "parametrized", "no module"],
)
def test_from_torch_takes_exactly_a_linear(module):
    given = module()
    with pytest.raises(TypeError, match=f"from_torch takes a torch.nn.Linear, got {type(given).__name__}"):
        Linear.from_torch(given)


HOOKS = [
    "register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook",
    "register_full_backward_pre_hook", "register_state_dict_pre_hook", "register_load_state_dict_pre_hook",
]  # fmt: skip


@pytest.mark.parametrize("hook", HOOKS)
def test_from_torch_refuses_a_module_with_hooks(hook):
    module = torch.nn.Linear(4, 5)
    handle = getattr(module, hook)(lambda *args: None)
    with pytest.raises(ValueError, match="hooks, which would be lost"):
        Linear.from_torch(module)
    handle.remove()
    assert Linear.from_torch(module).weight is module.weight


def test_from_torch_refuses_the_old_weight_norm():
    with pytest.warns(FutureWarning, match="weight_norm"):
        module = torch.nn.utils.weight_norm(torch.nn.Linear(4, 5))
    with pytest.raises(ValueError, match="hooks"):
        Linear.from_torch(module)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_dtype_and_device(dtype):
    layer = Linear(4, 5, activation="relu", device="cpu", dtype=dtype)
    assert {p.dtype for p in layer.parameters()} == {dtype}
    assert layer(torch.randn(3, 4, dtype=dtype)).dtype == dtype
    layer.to(torch.float32)
    assert layer(torch.randn(3, 4)).dtype == torch.float32


def test_the_meta_device():
    layer, x = Linear(4, 5, activation="gelu", device="meta"), torch.randn(2, 3, 4, device="meta")
    y = layer(x)
    assert (y.device.type, y.shape) == ("meta", (2, 3, 5))
    y.sum().backward()
    assert layer.weight.grad.shape == (5, 4)
    layer.to_empty(device="cpu").reset_parameters()
    assert layer(torch.randn(3, 4)).isfinite().all()


@pytest.mark.parametrize("act", ["glue", torch.nn.LeakyReLU(0.2)], ids=str)
def test_an_unknown_activation_raises_at_construction(act):
    for build in (lambda: Linear(4, 5, activation=act), lambda: Linear.from_torch(torch.nn.Linear(4, 5), act)):
        with pytest.raises(ValueError, match=r"unknown activation .*known: identity, relu"):
            build()


def test_bad_input_names_the_sizes():
    with pytest.raises(ValueError, match=r"last dimension of x is 3, but weight \(5, 4\)"):
        Linear(4, 5)(torch.randn(2, 3))


def test_parametrizations_work():
    layer, x = parametrizations.weight_norm(Linear(4, 5, activation="gelu")), torch.randn(3, 4)
    parametrize.register_parametrization(layer, "bias", torch.nn.ReLU())
    torch.testing.assert_close(
        layer(x), torch.nn.functional.gelu(torch.nn.functional.linear(x, layer.weight, layer.bias))
    )
    layer(x).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_hooks_fire():
    layer, seen = Linear(4, 5, activation="tanh"), []
    layer.register_forward_hook(lambda module, args, output: seen.append("forward"))
    layer.register_full_backward_hook(lambda module, grad_input, grad_output: seen.append("backward"))
    layer(torch.randn(3, 4, requires_grad=True)).sum().backward()
    assert seen == ["forward", "backward"]


def test_functional_call_and_stacked_modules():
    layers = [Linear(4, 5, activation="sigmoid") for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(layers)
    x = torch.randn(2, 4)
    y = torch.func.vmap(lambda p: torch.func.functional_call(layers[0], (p, buffers), (x,)))(parameters)
    torch.testing.assert_close(y, torch.stack([layer(x) for layer in layers]))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_training_equals_pytorch(optimizer):
    def train(linear, act):
        torch.manual_seed(1)
        net = torch.nn.Sequential(*linear(8, 16, act), *linear(16, 16, act), torch.nn.Linear(16, 3)).double()
        steps = optimizer(net.parameters(), lr=0.05)
        x, target = torch.randn(32, 8, dtype=torch.float64), torch.randint(3, (32,))
        losses = []
        for _ in range(5):
            steps.zero_grad()
            loss = torch.nn.functional.cross_entropy(net(x), target)
            loss.backward()
            steps.step()
            losses.append(loss.item())
        return losses, list(net.parameters())

    ours = train(lambda k, n, act: (Linear(k, n, activation=act),), torch.nn.GELU())
    theirs = train(lambda k, n, act: (torch.nn.Linear(k, n), act), torch.nn.GELU())
    torch.testing.assert_close(ours, theirs)
    assert ours[0][-1] < ours[0][0]


def test_share_memory_and_half_precision_conversions():
    layer = Linear(4, 5, activation="relu").share_memory().half()
    assert layer(torch.randn(3, 4).half()).dtype == torch.float16
    assert torchadx.explain(torch.randn(3, 4).half(), layer.weight, layer.bias, layer.activation).startswith("aten")
