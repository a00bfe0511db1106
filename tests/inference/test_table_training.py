"""The table's rows on modules left in train mode, and on weights that change between calls."""

import copy

import pytest
import torch
import torch.autograd.forward_ad as fwAD
import torch.nn.functional as F
from torch import nn

from torchadx import InferenceAware
from torchadx.inference import make_dual, unpack_dual

from .situations import MODES, draw, near, said


class Drops(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, self.training)


class DropsInside(nn.Module):
    """Reads ``self.training`` in a function within ``forward``."""

    def forward(self, *xs):
        return sum([F.dropout(x, 0.5, self.training) for x in xs])


class Branches(nn.Module):
    def forward(self, x):
        if self.training:
            return x * 2
        return x


class Attends(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


ACTING = {
    "dropout": lambda: nn.Dropout(0.5),
    "channels": lambda: nn.Dropout1d(0.5),
    "alpha": lambda: nn.AlphaDropout(0.5),
    "batch norm": lambda: nn.BatchNorm1d(4),
    "instance norm": lambda: nn.InstanceNorm1d(4, track_running_stats=True),
    "function": Drops,
    "function inside": DropsInside,
    "branch": Branches,
    "rrelu": nn.RReLU,
    "lstm": lambda: nn.LSTM(4, 4, num_layers=2, dropout=0.5, batch_first=True),
    "attention": lambda: Attends(0.5),
    "encoder layer": lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
    "deep": lambda: nn.Sequential(nn.Linear(4, 4), nn.ModuleDict({"a": nn.Dropout(0.5)})["a"], nn.Sequential(Drops())),
}
IDLE = {
    "linear": lambda: nn.Linear(4, 4),
    "p is 0": lambda: nn.Dropout(0.0),
    "layer norm": lambda: nn.LayerNorm(4),
    "instance norm": lambda: nn.InstanceNorm1d(4),
    "lstm": lambda: nn.LSTM(4, 4, batch_first=True),
    "attention": lambda: Attends(0.0),
    "encoder layer": lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True),
    "in eval mode": lambda: nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4)).eval(),
}


def first(out):
    return out[0] if isinstance(out, tuple) else out


def infer(module, x):
    with torch.inference_mode():
        return first(module(x))


@pytest.mark.parametrize("name", ACTING)
def test_one_warning_where_something_acts(name):
    module, x = ACTING[name](), torch.randn(2, 4, 4)
    wrapper = InferenceAware(module)
    for mode in (torch.enable_grad, torch.no_grad):
        with mode():
            assert said(lambda: wrapper(x)) == []
    (text,) = said(lambda: [infer(wrapper, x) for _ in range(3)])
    assert "train mode" in text
    assert "eval_in_inference=True" in text
    assert len(said(lambda: infer(InferenceAware(module), x))) == 1, "another wrapper says it again"
    assert said(lambda: infer(InferenceAware(copy.deepcopy(module).eval()), x)) == []


@pytest.mark.parametrize("name", IDLE)
def test_silence_where_nothing_acts(name):
    assert said(lambda: infer(InferenceAware(IDLE[name]()), torch.randn(2, 4, 4))) == []


def test_the_numbers_are_pytorchs_without_the_option():
    module, x = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5)), draw(8, 4)
    twin = copy.deepcopy(module.double())
    wrapper = InferenceAware(module)
    torch.manual_seed(1)
    expected = infer(twin, x)
    torch.manual_seed(1)
    with pytest.warns(UserWarning, match="train mode"):
        near(infer(wrapper, x), expected)
    near(dict(module.state_dict()), dict(twin.state_dict()))


@pytest.mark.parametrize("name", ACTING)
@pytest.mark.parametrize("dual", [False, True])
def test_eval_for_the_call(name, dual):
    module, x = ACTING[name]().double(), draw(2, 4, 4)
    wrapper, twin = InferenceAware(module, eval_in_inference=True), copy.deepcopy(module).eval()
    flags, state = [m.training for m in module.modules()], copy.deepcopy(module.state_dict())
    with fwAD.dual_level(), torch.inference_mode():
        given = make_dual(x, x) if dual else x
        got = []
        assert said(lambda: got.append(first(wrapper(given)))) == []
        near(unpack_dual(got[0]).primal, first(twin(x)))
        assert (unpack_dual(got[0]).tangent is not None) == dual
    assert [m.training for m in module.modules()] == flags
    assert wrapper.training
    near(dict(module.state_dict()), dict(state))


def test_each_module_is_back_in_its_own_mode():
    seen = []

    class Notes(nn.Module):
        def forward(self, x):
            seen.append([m.training for m in module.modules()])
            return x

    module = nn.Sequential(nn.Dropout(0.5).eval(), nn.Sequential(nn.BatchNorm1d(4).eval(), nn.Dropout(0.5)), Notes())
    module[1].training = False
    flags = [m.training for m in module.modules()]
    assert len(set(flags)) == 2
    wrapper = InferenceAware(module, eval_in_inference=True)
    assert [m.training for m in module.modules()] == flags
    infer(wrapper, torch.randn(3, 4))
    assert [m.training for m in module.modules()] == flags
    for mode in (torch.enable_grad, torch.no_grad):
        with mode():
            wrapper(torch.randn(3, 4))
    assert seen == [[False] * len(flags), flags, flags]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_exceptions(error):
    class Fails(nn.Module):
        def forward(self, x):
            assert not self.training
            raise error

    module = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4).eval(), Fails())
    flags, before = [m.training for m in module.modules()], [dict(vars(m)) for m in module.modules()]
    wrapper = InferenceAware(module, eval_in_inference=True)
    for level in (fwAD.dual_level, torch.inference_mode):
        with level(), torch.inference_mode(), pytest.raises(error):
            wrapper(torch.randn(3, 4))
        assert [m.training for m in module.modules()] == flags
    assert [dict(vars(m)) for m in module.modules()] == before


def test_nested_wrappers():
    inner = InferenceAware(nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 4)), eval_in_inference=True)
    outer, x = InferenceAware(nn.Sequential(inner, nn.Linear(4, 4)), eval_in_inference=True), torch.randn(3, 4)
    twin = copy.deepcopy(outer.module).eval()
    torch.testing.assert_close(infer(outer, x), infer(twin, x))
    assert all(m.training for m in outer.modules())
    partly = nn.Sequential(inner, nn.Dropout(0.0))
    torch.testing.assert_close(infer(partly, x), infer(copy.deepcopy(partly).eval(), x))
    assert all(m.training for m in partly.modules())


def test_train_and_eval_reach_the_module():
    module = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 4))
    wrapper = InferenceAware(module)
    assert wrapper.eval() is wrapper
    assert not any(m.training for m in (wrapper, *module.modules()))
    assert wrapper.train() is wrapper
    assert all(m.training for m in (wrapper, *module.modules()))
    assert not InferenceAware(module.eval()).training


# weights that change


def optimize(module, x):
    module(x).square().sum().backward()
    torch.optim.SGD(module.parameters(), lr=0.1).step()


def swap(module, x):
    module[0].weight.data = module[0].weight.data * 2


CHANGES = {
    "optimizer": optimize,
    "loading": lambda module, x: module.load_state_dict({k: v * 2 for k, v in module.state_dict().items()}),
    "data swapped": swap,
    "data written": lambda module, x: module[0].weight.data.mul_(2),
    "written in inference mode": lambda module, x: torch.inference_mode()(module[0].weight.mul_)(2),
    "new parameter": lambda module, x: setattr(module[0], "weight", nn.Parameter(torch.randn(256, 256))),
    "new module": lambda module, x: module.__setitem__(0, nn.Linear(256, 256)),
    "new activation": lambda module, x: module.__setitem__(1, nn.ReLU()),
    "another dtype": lambda module, x: module.double(),
    "bias": lambda module, x: module[0].bias.data.add_(1),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_between_calls_are_seen(name):
    module, x = nn.Sequential(nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 256)).eval(), torch.randn(16, 256)
    wrapper = InferenceAware(module)
    before = [infer(wrapper, x) for _ in range(3)]
    assert wrapper.prepared_bytes > 0
    CHANGES[name](module, x)
    x = x.to(module[2].weight.dtype)
    for _ in range(3):
        got = infer(wrapper, x)
        torch.testing.assert_close(got, infer(module, x))
        assert not torch.equal(got.double(), before[0].double())
    for mode in MODES.values():
        with mode():
            torch.testing.assert_close(wrapper(x), module(x))
