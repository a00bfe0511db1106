"""The modules that the inference benchmark serves: MLPs, a transformer encoder, the digits model, a tiny linear."""

import argparse
import dataclasses
import itertools
import re
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchadx.bench import _arguments

#: layers, features, heads, hidden features and positions of the encoder
LAYERS, WIDTH, HEADS, HIDDEN, SEQUENCE = 12, 256, 8, 1024, 128
#: widths joined by a dash, with GELU between the layers
MLP_NAME = re.compile(r"mlp(-[1-9]\d*){2,}")


@dataclasses.dataclass(frozen=True)
class Problem:
    """A module, and the batch that it serves.

    Attributes:
        model: What the command line calls it.
        make: Builds it.
        sample: Shape of one input without the batch.
        batch: How many of them a call takes.
    """

    model: str
    make: Callable[[], nn.Module]
    sample: tuple[int, ...]
    batch: int

    @property
    def name(self) -> str:
        """The model and the batch, as tables show them and the command line takes them."""
        return f"{self.model}@{self.batch}"

    def build(self, device: torch.device) -> tuple[nn.Module, Tensor]:
        """Return the module in fp32 and eval mode, and an input."""
        torch.manual_seed(0)
        module = self.make().eval().to(device)
        return module, torch.randn(self.batch, *self.sample, device=device)


class DigitsMLP(nn.Module):
    """A classifier of 8 x 8 pixels that calls GELU as a function, between layers that are no ``nn.Sequential``."""

    def __init__(self) -> None:
        super().__init__()
        self.lower = nn.Linear(64, 512)
        self.upper = nn.Linear(512, 512)
        self.head = nn.Linear(512, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(batch, 64)`` to logits ``(batch, 10)``."""
        return self.head(F.gelu(self.upper(F.gelu(self.lower(images)))))


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Return linears with GELU between any two."""
    layers: list[nn.Module] = []
    for width, out in itertools.pairwise(widths):
        layers += [nn.Linear(width, out), nn.GELU()]
    return nn.Sequential(*layers[:-1])


def encoder() -> nn.TransformerEncoder:
    """Return PyTorch's own encoder."""
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, batch_first=True)
    return nn.TransformerEncoder(layer, LAYERS)


def mlp_problems(name: str) -> list[Problem]:
    """Return the problems that a name such as ``mlp-1024-4096-1024`` describes, one a stated batch."""
    widths = [int(word) for word in name.split("-")[1:]]
    return [Problem(name, lambda: mlp(widths), (widths[0],), batch) for batch in (1, 16, 256)]


#: the stated cases, by model
MODELS: dict[str, list[Problem]] = {
    "mlp-1024-4096-1024": mlp_problems("mlp-1024-4096-1024"),
    "encoder": [Problem("encoder", encoder, (SEQUENCE, WIDTH), batch) for batch in (1, 8)],
    "digits": [Problem("digits", DigitsMLP, (64,), batch) for batch in (1, 32, 360)],
    # so small that a call is all overhead
    "overhead": [Problem("overhead", lambda: nn.Linear(8, 8), (8,), 4)],
}


def parse(text: str) -> list[Problem]:
    """Read comma-separated names of models, or of any other MLP, each with ``@BATCH`` if one batch is meant.

    Raises:
        argparse.ArgumentTypeError: A name is neither, or a batch is no number.
    """
    words = _arguments.words(text)
    problems = [problem for word in words for problem in _named(word)]
    if not problems:
        raise _unknown(text)
    return problems


def _named(word: str) -> list[Problem]:
    name, at, batch = word.partition("@")
    if name not in MODELS and not MLP_NAME.fullmatch(name):
        raise _unknown(word)
    problems = MODELS.get(name) or mlp_problems(name)
    return [dataclasses.replace(problems[0], batch=_arguments.positive(batch))] if at else problems


def _unknown(text: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"{text!r}: expected some of {','.join(MODELS)},mlp-WIDTH-...-WIDTH, or @BATCH")
