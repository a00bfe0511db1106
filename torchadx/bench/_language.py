"""A character transformer, and the text it learns: the topics of Python's own documentation, which Python brings."""

from pydoc_data.topics import topics
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

#: features of an attention head
HEAD = 64

#: windows from the last tenth of the text are never trained on
HELD_OUT = 0.1


class Size(NamedTuple):
    """Blocks, features, characters of context, and windows of text in a batch."""

    layers: int
    width: int
    sequence: int
    batch: int


class Batch(NamedTuple):
    """Characters and the ones that follow them, ``(batch, sequence)`` each."""

    characters: Tensor
    following: Tensor


class Text:
    """The text as numbers.

    Attributes:
        vocabulary: Every character in it, once, in order.
        length: Characters in all.
    """

    def __init__(self, size: Size, device: torch.device) -> None:
        """Read the text; ``size`` and ``device`` are those of batches."""
        joined = "\n\n".join(topics.values())
        self.vocabulary = sorted(set(joined))
        self.length = len(joined)
        numbers = {character: number for number, character in enumerate(self.vocabulary)}
        everything = torch.tensor([numbers[character] for character in joined])
        windows = everything.unfold(0, size.sequence + 1, 1)
        self._size, self._device = size, device
        self._first_held_out = round((1 - HELD_OUT) * len(windows))
        self._windows = windows

    def batch(self, step: int) -> Batch:
        """Draw the batch of a training step: the same for everyone."""
        return self._draw(step, 0, self._first_held_out - self._size.sequence)

    def held_out(self, count: int) -> list[Batch]:
        """Draw batches that no training step sees."""
        return [self._draw(number, self._first_held_out, len(self._windows)) for number in range(count)]

    def _draw(self, seed: int, low: int, high: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        starts = torch.randint(low, high, (self._size.batch,), generator=generator)
        drawn = self._windows[starts].to(self._device)
        return Batch(drawn[:, :-1], drawn[:, 1:])


class Block(nn.Module):
    """Causal self-attention and an MLP with GELU, each normalized before and added after."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // HEAD)
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, sequence, width)`` to the same shape."""
        parts = self.query_key_value(self.attention_norm(x)).chunk(3, -1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.projection(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.mlp_norm(x))


class CharacterTransformer(nn.Module):
    """A decoder-only transformer with learned positions.

    Args:
        characters: How many there are.
        size: Of the model, and the longest sequence.
        checkpointed: Whether blocks are computed again in backward, by ``torch.utils.checkpoint``.
    """

    def __init__(self, characters: int, size: Size, checkpointed: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, size.width)
        self.positions = nn.Parameter(0.02 * torch.randn(size.sequence, size.width))
        self.blocks = nn.ModuleList(Block(size.width) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, characters)
        self.checkpointed = checkpointed

    def forward(self, characters: Tensor) -> Tensor:
        """Return the logits of the characters that follow, ``(batch, sequence, characters)``."""
        x = self.embedding(characters) + self.positions[: characters.shape[1]]
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        return self.head(self.norm(x))

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean cross entropy, in nats a character."""
        return F.cross_entropy(self(batch.characters).flatten(0, 1), batch.following.flatten())
