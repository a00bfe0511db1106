"""Modules to wrap, by name: what people build from PyTorch, sized so that prepared weights are worth a call."""

import dataclasses
import types
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils._pytree import tree_map

import torchadx
from torchadx.inference import InferenceAware

from . import zoo_modules as modules


@dataclasses.dataclass(frozen=True)
class Case:
    """One module and what to call it with; seeded by name, so the same whatever was drawn before.

    Attributes:
        name: A word for test ids.
        build: Makes the module, in float32.
        args: Makes the positional arguments, in float32.
        kwargs: Makes the keyword arguments.
        functional: Whether transforms of ``torch.func`` can go through the bare module.
    """

    name: str
    build: Callable[[], nn.Module]
    args: Callable[[], tuple[Any, ...]]
    kwargs: Callable[[], dict[str, Any]] = dict
    functional: bool = True

    def __str__(self):
        return self.name

    def seed(self):
        torch.manual_seed(zlib.crc32(self.name.encode()))

    def module(self, dtype=torch.float32):
        self.seed()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*weight_norm.*is deprecated", FutureWarning)
            return self.build().to(dtype)

    def inputs(self, dtype=torch.float32):
        self.seed()

        def cast(leaf):
            return leaf.to(dtype) if torch.is_tensor(leaf) and leaf.is_floating_point() else leaf

        return tree_map(cast, (self.args(), self.kwargs()))


def rows(*shape):
    return lambda: (torch.randn(*shape),)


def mlp(act=nn.GELU, bias=True):
    return nn.Sequential(nn.Linear(256, 512, bias), act(), nn.Linear(512, 256, bias))


def patched():
    """A module and one inside it whose ``forward`` the user has replaced."""
    model = mlp()
    plain = model.forward
    model.forward = lambda x: plain(x) * 2
    model[0].forward = types.MethodType(lambda self, x: F.linear(x, self.weight) + 1, model[0])
    return model


def parametrized():
    model = mlp()
    parametrize.register_parametrization(model[0], "weight", modules.Doubled())
    parametrize.register_parametrization(model[2], "bias", modules.Doubled())
    return model


def each(change, act=nn.ReLU):
    """Return a builder of an MLP whose linear layers went through ``change``."""

    def build():
        model = mlp(act)
        for layer in (model[0], model[2]):
            change(layer)
        return model

    return build


def weight_as_buffer(layer):
    weight = layer.weight.detach()
    del layer.weight
    layer.register_buffer("weight", weight)


def odd_bias(layer):
    strided, expanded = torch.randn(2 * len(layer.bias))[::2], torch.ones(1).expand(len(layer.bias))
    layer.bias = nn.Parameter(strided if layer.in_features == 256 else expanded)


def column_major(layer):
    layer.weight = nn.Parameter(torch.randn(layer.weight.shape[::-1]).t() / 8)


def encoder(act, norm_first, batch_first, **options):
    def build():
        layout = {"norm_first": norm_first, "batch_first": batch_first}
        return nn.TransformerEncoderLayer(256, 4, 512, 0.1, act, **layout, **options)

    return build


def stack(norm_first=False, act="relu"):
    def build():
        layer = nn.TransformerEncoderLayer(256, 4, 512, 0.1, act, norm_first=norm_first, batch_first=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "enable_nested_tensor is True", UserWarning)
            return nn.TransformerEncoder(layer, 2, nn.LayerNorm(256))

    return build


def padding(batch=4, length=5):
    mask = torch.zeros(batch, length, dtype=torch.bool)
    mask[0, length - 2 :] = True
    return mask


def causal(length=5):
    return nn.Transformer.generate_square_subsequent_mask(length)


def forbidden(length=5):
    return torch.ones(length, length, dtype=torch.bool).triu(1)


def batch():
    return {"image": torch.randn(16, 256), "others": [torch.randn(16, 256), torch.randn(16, 256)], "name": "tree"}


TOKENS = rows(4, 5, 256)
ACTIVATIONS = {
    "relu": nn.ReLU, "relu in place": lambda: nn.ReLU(inplace=True), "tanh": nn.Tanh, "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU, "gelu tanh": lambda: nn.GELU("tanh"), "hardswish": nn.Hardswish, "mish": nn.Mish,
    "leaky": nn.LeakyReLU, "steep": lambda: nn.LeakyReLU(0.3), "elu": lambda: nn.ELU(0.5), "prelu": nn.PReLU,
    "subclass": modules.Shifted, "softmax": lambda: nn.Softmax(-1), "identity": nn.Identity,
    "dropout": lambda: nn.Dropout(0.3),
}  # fmt: skip

CASES = [
    Case("mlp", mlp, rows(16, 256)),
    Case("mlp without bias", lambda: mlp(bias=False), rows(16, 256)),
    *(Case(f"mlp {name}", lambda act=act: mlp(act), rows(16, 256)) for name, act in ACTIVATIONS.items()),
    Case("linear alone", lambda: nn.Linear(256, 512), rows(2, 9, 256)),
    Case("fused linear", lambda: torchadx.nn.Linear(256, 512, activation="gelu"), rows(16, 256)),
    Case("fused linear, then relu", lambda: nn.Sequential(torchadx.nn.Linear(256, 512, activation="tanh"), nn.ReLU()),
         rows(16, 256)),
    Case("sequential in sequential", lambda: nn.Sequential(mlp(), nn.Sequential(nn.ReLU()), nn.Sequential(), mlp()),
         rows(16, 256)),
    Case("one layer twice", lambda: nn.Sequential(*[nn.Linear(256, 256), nn.GELU()] * 2), rows(16, 256)),
    Case("residual network", modules.resnet, rows(16, 3, 8, 8)),
    Case("lstm", lambda: nn.LSTM(256, 32, num_layers=2, batch_first=True), TOKENS),
    Case("lstm with a state", lambda: nn.LSTM(256, 32, bidirectional=True),
         lambda: (torch.randn(5, 2, 256), (torch.randn(2, 2, 32), torch.randn(2, 2, 32)))),
    Case("gru", lambda: nn.GRU(256, 32, num_layers=2, dropout=0.2), TOKENS),
    *(Case(f"encoder layer {act}{' norm first' * first}{' batch first' * batch}", encoder(act, first, batch), TOKENS)
      for act in ("relu", "gelu") for first in (False, True) for batch in (False, True)),
    Case("encoder layer without bias", encoder("relu", False, True, bias=False), TOKENS),
    Case("encoder layer silu", encoder(F.silu, False, True), TOKENS),
    Case("encoder layer causal", encoder("gelu", True, True), TOKENS,
         lambda: {"src_mask": causal(), "is_causal": True}),
    Case("encoder layer masked", encoder("relu", False, True), TOKENS, lambda: {"src_mask": forbidden()}),
    Case("encoder layer padded", encoder("relu", True, True), TOKENS, lambda: {"src_key_padding_mask": padding()}),
    Case("encoder layer unbatched", encoder("relu", False, True), rows(16, 256)),
    Case("encoder", stack(), TOKENS),
    Case("encoder gelu norm first", stack(True, "gelu"), TOKENS),
    Case("encoder causal", stack(), TOKENS, lambda: {"mask": causal(), "is_causal": True}),
    Case("encoder masked and padded", stack(True), TOKENS,
         lambda: {"mask": forbidden(), "src_key_padding_mask": padding()}),
    Case("encoder padded", stack(), TOKENS, lambda: {"src_key_padding_mask": padding()}),
    Case("decoder layer", lambda: nn.TransformerDecoderLayer(256, 4, 512, batch_first=True),
         lambda: (torch.randn(4, 5, 256), torch.randn(4, 7, 256))),
    Case("attention", lambda: nn.MultiheadAttention(256, 4, batch_first=True),
         lambda: (torch.randn(4, 5, 256), torch.randn(4, 7, 256), torch.randn(4, 7, 256))),
    Case("self attention", lambda: nn.MultiheadAttention(256, 4, batch_first=True),
         lambda: (torch.randn(4, 5, 256),) * 3, lambda: {"need_weights": False}),
    Case("attention masked", lambda: nn.MultiheadAttention(256, 4, bias=False, batch_first=True),
         lambda: (torch.randn(4, 5, 256),) * 3,
         lambda: {"attn_mask": forbidden(), "key_padding_mask": padding(), "average_attn_weights": False}),
    Case("shared and tied", modules.Tied, rows(16, 512)),
    Case("tied embedding", modules.Language, lambda: (torch.randint(512, (2, 9)),)),
    Case("weight norm", each(parametrizations.weight_norm), rows(16, 256)),
    Case("spectral norm", each(parametrizations.spectral_norm), rows(16, 256)),
    Case("old weight norm", each(nn.utils.weight_norm), rows(16, 256)),
    Case("old spectral norm", each(nn.utils.spectral_norm), rows(16, 256)),
    Case("pruned", each(lambda layer: prune.l1_unstructured(layer, "weight", 0.5)), rows(16, 256)),
    Case("parametrized", parametrized, rows(16, 256)),
    Case("weight as buffer", each(weight_as_buffer), rows(16, 256)),
    Case("weight column-major", each(column_major), rows(16, 256)),
    Case("bias strided, and expanded", each(odd_bias), rows(16, 256)),
    Case("frozen", lambda: mlp().requires_grad_(False), rows(16, 256)),
    Case("loop", modules.Loop, rows(16, 256)),
    Case("early exit", lambda: modules.EarlyExit(0.15), rows(16, 256)),
    Case("late exit", lambda: modules.EarlyExit(1.0), rows(16, 256)),
    Case("trees", modules.Trees, lambda: (batch(),), lambda: {"scale": 0.5}),
    Case("changing", modules.Changing, rows(16, 256)),
    Case("recursive", modules.Recursive, rows(16, 256)),
    Case("checkpointed", modules.Checkpointed, rows(16, 256)),
    Case("force", lambda: modules.Force(False), rows(16, 256), functional=False),
    Case("force by a transform", lambda: modules.Force(True), rows(16, 256)),
    Case("vmap inside", modules.Mapped, rows(16, 256)),
    Case("own forward", lambda: modules.OwnForward(*mlp()), rows(16, 256)),
    Case("patched", patched, rows(16, 256)),
    Case("nested wrapper", lambda: nn.Sequential(InferenceAware(mlp()), nn.ReLU(), nn.Linear(256, 512)),
         rows(16, 256)),
    Case("wrapper of a wrapper", lambda: InferenceAware(mlp()), rows(16, 256)),
    Case("fake-quantised", each(lambda layer: setattr(layer, "__class__", modules.FakeQuantized)), rows(16, 256)),
    Case("adapters", lambda: nn.Sequential(modules.LowRank(256, 512), nn.GELU(), modules.LowRank(512, 256)),
         rows(16, 256)),
]  # fmt: skip
