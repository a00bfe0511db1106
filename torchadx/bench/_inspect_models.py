"""The models that the inspection benchmark looks at: a deep one, a transformer and a convolutional net."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from torchadx.bench._language import CharacterTransformer, Size, Text

DEEP, TRANSFORMER, CONV = "deep", "transformer", "conv"
NAMES = (DEEP, TRANSFORMER, CONV)


class Scale(NamedTuple):
    """How large the models are.

    Attributes:
        layers: Of the deep model, each a linear, a ReLU and a normalization.
        width: Of the deep model, and its batch.
        transformer: Of the transformer and its batch.
        channels: Of the convolutions, one after another.
        images: In a batch of theirs, and how many pixels high and wide they are.
    """

    layers: int
    width: int
    transformer: Size
    channels: Sequence[int]
    images: tuple[int, int]


#: what the targets are stated for
STATED = Scale(200, 64, Size(6, 256, 128, 4), (3, 32, 64, 128), (16, 32))
#: for a look at whether all of it works
QUICK = Scale(12, 32, Size(1, 64, 32, 2), (3, 16, 32), (4, 16))


@dataclasses.dataclass(frozen=True)
class Training:
    """A model that trains by gradient descent with a momentum.

    Attributes:
        name: Of the model.
        model: In fp32.
        args: What it is called with.
        criterion: From what it returns to the loss.
        targets: What the criterion compares with.
        optimizer: Of its parameters.
        described: Its size in a few words.
    """

    name: str
    model: nn.Module
    args: tuple[Any, ...]
    criterion: Callable[[Tensor], Tensor]
    targets: tuple[Tensor, ...]
    optimizer: torch.optim.Optimizer
    described: str

    def forward(self) -> Tensor:
        """Call the model."""
        return self.model(*self.args)

    def loss(self) -> Tensor:
        """Call the model and the loss."""
        return self.criterion(self.forward())

    def step(self) -> Tensor:
        """Take one training step."""
        return self.step_with(self.loss)

    def step_with(self, loss_of: Callable[[], Tensor]) -> Tensor:
        """Take one training step on a loss that is computed in another way."""
        self.optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def forget(self) -> None:
        """Let gradients and the optimizer's state go."""
        self.optimizer.zero_grad()
        self.optimizer.state.clear()

    def tensors(self) -> list[Tensor]:
        """Return parameters, buffers, inputs and targets, which are there whatever runs."""
        given = [leaf for leaf in tree_leaves((self.args, self.targets)) if isinstance(leaf, Tensor)]
        return [*self.model.parameters(), *self.model.buffers(), *given]


def build(name: str, scale: Scale, device: torch.device) -> Training:
    """Return the model of this name, one of ``NAMES``, ready to be trained."""
    torch.manual_seed(0)
    model, x, criterion, targets, described = _BUILDERS[name](scale, device)
    model = model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    return Training(name, model, (x,), criterion, targets, optimizer, described)


_Built = tuple[nn.Module, Tensor, Callable[[Tensor], Tensor], tuple[Tensor, ...], str]


def _mean_square(outputs: Tensor) -> Tensor:
    return outputs.square().mean()


def _deep(scale: Scale, device: torch.device) -> _Built:
    width = scale.width
    layers = (layer for _ in range(scale.layers) for layer in (nn.Linear(width, width), nn.ReLU(), nn.LayerNorm(width)))
    x = torch.randn(width, width, device=device)
    return nn.Sequential(*layers), x, _mean_square, (), f"{scale.layers} layers of width {width}"


def _transformer(scale: Scale, device: torch.device) -> _Built:
    size = scale.transformer
    text = Text(size, device)
    batch = text.batch(0)
    # what is left of all the text is the batch alone
    characters, following = (part.clone() for part in batch)
    model = CharacterTransformer(len(text.vocabulary), size)

    def criterion(logits: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits.flatten(0, 1), following.flatten())

    described = f"{size.layers} layers of width {size.width}, {size.batch} x {size.sequence} characters"
    return model, characters, criterion, (following,), described


def _conv(scale: Scale, device: torch.device) -> _Built:
    count, side = scale.images
    layers: list[nn.Module] = []
    for channels, following in zip(scale.channels, scale.channels[1:], strict=False):
        convolution = nn.Conv2d(channels, following, 3, padding=1)
        layers += [convolution, nn.BatchNorm2d(following), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(scale.channels[-1], 10)]
    x = torch.randn(count, scale.channels[0], side, side, device=device)
    described = f"{len(scale.channels) - 1} convolutions, {count} images of {side} x {side}"
    return nn.Sequential(*layers), x, _mean_square, (), described


_BUILDERS: dict[str, Callable[[Scale, torch.device], _Built]] = {
    DEEP: _deep,
    TRANSFORMER: _transformer,
    CONV: _conv,
}
