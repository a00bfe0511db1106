"""Networks of the zoo: how each is built, the shape of its input, and whether samples are apart from each other."""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

import torchadx


def autoencoder(activation):
    """Wide, narrow in the middle, wide again: the classic digits autoencoder in small."""
    widths = [24, 16, 10, 3, 10, 16, 24]
    layers = [layer for n, m in itertools.pairwise(widths) for layer in (nn.Linear(n, m), activation())]
    return nn.Sequential(*layers[:-1])


def conv_autoencoder():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.SiLU(), nn.Conv2d(4, 2, 3, stride=2, padding=1), nn.Tanh(),
        nn.ConvTranspose2d(2, 4, 4, stride=2, padding=1), nn.SiLU(), nn.ConvTranspose2d(4, 1, 4, stride=2, padding=1),
    )  # fmt: skip


def settled(norm):
    """Give a batch norm statistics and weights that are not the initial ones."""
    for tensor in (norm.running_mean, norm.weight.data, norm.bias.data):
        tensor.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


class ResNetBlock(nn.Module):
    def __init__(self, channels=3):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = settled(nn.BatchNorm2d(channels))
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = settled(nn.BatchNorm2d(channels))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        out += x
        return self.relu(out)


class UNet(nn.Module):
    def __init__(self, channels=3):
        super().__init__()
        self.down1 = nn.Conv2d(1, channels, 3, padding=1)
        self.down2 = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.bottom = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1)
        self.up2 = nn.Conv2d(4 * channels, channels, 3, padding=1)
        self.up1 = nn.Conv2d(2 * channels, 1, 3, padding=1)

    def forward(self, x):
        first = F.gelu(self.down1(x))
        second = F.gelu(self.down2(F.max_pool2d(first, 2)))
        h = F.gelu(self.bottom(F.max_pool2d(second, 2)))
        h = F.gelu(self.up2(torch.cat([F.interpolate(h, scale_factor=2), second], 1)))
        return self.up1(torch.cat([F.interpolate(h, scale_factor=2), first], 1))


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.rnn = kind(3, 5, batch_first=True, **options)

    def forward(self, x):
        return self.rnn(x)[0]


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return x + self.attention(x, x, x, need_weights=False)[0]


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


def residual_mlp():
    blocks = [nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6)) for _ in range(3)]
    return nn.Sequential(nn.Linear(4, 6), *map(Residual, blocks), nn.Linear(6, 5))


def encoder_layer(**options):
    return nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True, **options)


def frozen(module):
    """Without a parameter that asks for gradients, PyTorch would rather take its inference path."""
    return module.requires_grad_(False)


def torchadx_chain():
    names = ["gelu", "tanh", "silu", "relu", None]
    widths = [5, 12, 3, 12, 7, 4]
    return nn.Sequential(
        *(torchadx.nn.Linear(n, m, activation=a) for n, m, a in zip(widths, widths[1:], names, strict=False))
    )


def mixer():
    """Norm, attention-free token mixing, dropout that eval turns off, a shared layer used twice."""
    shared = nn.Linear(6, 6)
    return nn.Sequential(
        nn.RMSNorm(6), shared, nn.Mish(), nn.Dropout(0.5), shared, nn.Hardswish(), nn.Flatten(), nn.Linear(24, 7)
    )


# name -> (build, shape of x, whether samples are apart)
NETWORKS = {
    "autoencoder_tanh": (lambda: autoencoder(nn.Tanh), (2, 24), True),
    "autoencoder_relu": (lambda: autoencoder(nn.ReLU), (2, 24), True),
    "autoencoder_gelu": (lambda: autoencoder(nn.GELU), (2, 24), True),
    "autoencoder_silu": (lambda: autoencoder(nn.SiLU), (2, 24), True),
    "autoencoder_softplus": (lambda: autoencoder(nn.Softplus), (2, 24), True),
    "autoencoder_elu": (lambda: autoencoder(nn.ELU), (2, 24), True),
    "autoencoder_unbatched": (lambda: autoencoder(nn.Tanh), (24,), False),
    "widening_mlp": (lambda: nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 30)), (2, 2), True),
    "narrowing_mlp": (lambda: nn.Sequential(nn.Linear(30, 8), nn.Tanh(), nn.Linear(8, 2)), (2, 30), True),
    "linear_only": (lambda: nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3, bias=False)), (3, 4), True),
    "conv_autoencoder": (conv_autoencoder, (2, 1, 8, 8), True),
    "resnet_block": (ResNetBlock, (2, 3, 4, 4), True),
    "unet": (UNet, (1, 1, 8, 8), True),
    "lstm": (lambda: Recurrent(nn.LSTM), (2, 4, 3), True),
    "lstm_bidirectional": (lambda: Recurrent(nn.LSTM, bidirectional=True), (2, 3, 3), True),
    "gru": (lambda: Recurrent(nn.GRU, num_layers=2), (2, 4, 3), True),
    "elman": (lambda: Recurrent(nn.RNN), (2, 4, 3), True),
    "transformer_post_norm": (encoder_layer, (2, 4, 8), True),
    "transformer_pre_norm": (lambda: encoder_layer(norm_first=True), (2, 4, 8), True),
    "transformer_frozen": (lambda: frozen(encoder_layer()), (2, 4, 8), True),
    "self_attention": (SelfAttention, (2, 4, 8), True),
    "residual_mlp": (residual_mlp, (3, 4), True),
    "torchadx_chain": (torchadx_chain, (3, 5), True),
    "mixer": (mixer, (2, 4, 6), True),
}
