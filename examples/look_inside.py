"""See what two models save for backward, and where their memory and time go, before and after an ActivationManager.

    python examples/look_inside.py

A classifier of scikit-learn's handwritten digits and a small character transformer are trained for some steps, in plain
PyTorch and with their saved activations at eight bits. Printed are what autograd keeps, what the manager changed, and
what each module's forward and backward cost. For each model an HTML page (open it in a browser: it works offline) and
two pictures are written. Runs on a CPU in well under a minute.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchadx
from torchadx import inspect

try:
    import plotly  # noqa: F401
    from sklearn.datasets import load_digits
    from tqdm import tqdm
except ModuleNotFoundError as error:
    sys.exit(f'this example needs {error.name}: pip install "torchadx[examples]"')

Context = Callable[[], contextlib.AbstractContextManager[Any]]


class Transformer(nn.Module):
    """Predicts the next character."""

    def __init__(self, characters: int, layers: int, width: int, sequence: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, width)
        self.positions = nn.Parameter(0.02 * torch.randn(sequence, width))
        block = nn.TransformerEncoderLayer(
            width, width // 32, 4 * width, dropout=0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(block, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, characters)

    def forward(self, characters: Tensor) -> Tensor:
        causal = nn.Transformer.generate_square_subsequent_mask(len(self.positions))
        return self.head(self.encoder(self.embedding(characters) + self.positions, mask=causal, is_causal=True))


class Problem(NamedTuple):
    """A model and the loss of its next batch."""

    name: str
    model: nn.Module
    loss: Callable[[nn.Module], Tensor]


def digits(batch: int) -> Problem:
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16).float(), torch.tensor(labels)
    model = nn.Sequential(
        nn.Linear(64, 512), nn.GELU(), nn.Linear(512, 512), nn.GELU(), nn.LayerNorm(512), nn.Linear(512, 10)
    )

    def loss(model: nn.Module) -> Tensor:
        chosen = torch.randint(len(x), (batch,))
        return F.cross_entropy(model(x[chosen]), y[chosen])

    return Problem("digits", model, loss)


def characters(layers: int, width: int, sequence: int, batch: int) -> Problem:
    text = "\n\n".join(topics.values())
    alphabet = {character: number for number, character in enumerate(sorted(set(text)))}
    windows = torch.tensor([alphabet[character] for character in text]).unfold(0, sequence + 1, 1)

    def loss(model: nn.Module) -> Tensor:
        chosen = windows[torch.randint(len(windows), (batch,))]
        return F.cross_entropy(model(chosen[:, :-1]).flatten(0, 1), chosen[:, 1:].flatten())

    return Problem("transformer", Transformer(len(alphabet), layers, width, sequence), loss)


def training_step(problem: Problem, around: Context) -> Callable[[], float]:
    """Return one step of training, its forward in a context."""
    optimizer = torch.optim.AdamW(problem.model.parameters(), lr=1e-3)

    def step() -> float:
        optimizer.zero_grad()
        with around():
            loss = problem.loss(problem.model)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def look(problem: Problem, policy: str, steps: int, folder: Path) -> None:
    manager = torchadx.memory.ActivationManager(policy).watch(problem.model)
    plain = training_step(problem, contextlib.nullcontext)
    managed = training_step(problem, lambda: manager)
    losses = [plain() for _ in tqdm(range(steps), desc=f"training on {problem.name}", unit="step", leave=False)]

    before = inspect.saved(problem.loss, problem.model, model=problem.model, measure=True)
    with inspect.saved(model=problem.model) as seen, manager:
        loss = problem.loss(problem.model)
    after = seen.report(loss)
    del loss

    print(f"== {problem.name}: loss {losses[0]:.3f} to {losses[-1]:.3f} in {steps} steps", "", before, "", sep="\n")
    print(f"with {policy}:", before.diff(after), "", sep="\n")
    with inspect.profile(model=problem.model) as profiled:
        for _ in range(3):
            plain()
    print("three steps:", profiled, "", sep="\n")

    before.draw(folder / f"{problem.name}_saved.png", after)
    inspect.timeline(plain, model=problem.model).draw(folder / f"{problem.name}_memory.png")
    page = folder / f"{problem.name}.html"
    inspect.report(problem.model, managed, page, before=(problem.model, plain), title=f"{problem.name}: {policy}")
    for path in sorted(folder.glob(f"{problem.name}*.*")):
        print(f"written: {path}")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("look_inside"), help="default: look_inside")
    parser.add_argument("--policy", default="int8", help="what the manager does; default: int8")
    parser.add_argument("--steps", type=int, default=20, help="of training before the look; default: 20")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    for problem in (digits(batch=256), characters(layers=2, width=128, sequence=256, batch=4)):
        look(problem, options.policy, options.steps, options.folder)


if __name__ == "__main__":
    main()
