"""Train a character transformer whose saved activations get a third of the memory that they need.

    python examples/long_context.py

Two copies of the model take turns on the same batches of Python's own documentation: one in plain PyTorch, one under a
budget. The first step under a budget measures; from then on a plan says which tensors to keep, to compress or to move.
Printed are what was done with each tensor, why, and how the losses compare; memory over one step goes into a PNG.
Runs on a CPU in well under a minute; a larger one: --layers 6 --width 256 --sequence 512 --batch 8 --steps 20.
"""

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchadx

try:
    from matplotlib.figure import Figure
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from tqdm import tqdm
except ModuleNotFoundError as error:
    sys.exit(f'this example needs {error.name}: pip install "torchadx[examples]"')

MIB = 1 << 20
PLAIN, FITTED = "plain PyTorch", "with a budget"


class Transformer(nn.Module):
    """Predicts the next character, from pre-norm blocks of causal attention and an MLP with GELU."""

    def __init__(self, characters: int, layers: int, width: int, sequence: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, width)
        self.positions = nn.Parameter(0.02 * torch.randn(sequence, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, width // 32, 4 * width, dropout=0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, characters)

    def forward(self, characters: Tensor) -> Tensor:
        x = self.embedding(characters) + self.positions
        causal = nn.Transformer.generate_square_subsequent_mask(len(self.positions))
        for block in self.blocks:
            x = block(x, src_mask=causal, is_causal=True)
        return self.head(self.norm(x))


class Text:
    """The documentation's text as numbers, in windows of ``sequence`` characters and the one that follows."""

    def __init__(self, sequence: int, batch: int) -> None:
        text = "\n\n".join(topics.values())
        self.length, self.characters = len(text), sorted(set(text))
        numbers = {character: number for number, character in enumerate(self.characters)}
        self._windows = torch.tensor([numbers[character] for character in text]).unfold(0, sequence + 1, 1)
        self._batch = batch

    def batch(self, step: int) -> Tensor:
        starts = torch.randint(len(self._windows), (self._batch,), generator=torch.Generator().manual_seed(step))
        return self._windows[starts]


def next_character_loss(model: nn.Module, batch: Tensor) -> Tensor:
    return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


class Trained(NamedTuple):
    losses: list[float]
    seconds: list[float]


def train(
    models: Mapping[str, nn.Module],
    contexts: Mapping[str, contextlib.AbstractContextManager[Any]],
    text: Text,
    steps: int,
) -> dict[str, Trained]:
    """Train the models in turns on the same batches, each forward in its context."""
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=1e-3) for name, model in models.items()}
    trained = {name: Trained([], []) for name in models}
    with tqdm(total=steps, desc="training both", unit="step", leave=False) as bar:
        for step in range(steps):
            batch = text.batch(step)
            for name, model in models.items():
                start = time.perf_counter()
                optimizers[name].zero_grad()
                with contexts[name]:
                    loss = next_character_loss(model, batch)
                loss.backward()
                optimizers[name].step()
                trained[name].seconds.append(time.perf_counter() - start)
                trained[name].losses.append(loss.item())
            bar.update()
    return trained


class Sample(NamedTuple):
    seconds: float
    nbytes: int


class Timeline:
    """Bytes of saved tensors in memory during one step, read whenever a module has run, forward or backward.

    Plain PyTorch has no such count; a manager that keeps every tensor holds what it would.
    """

    def __init__(self, model: nn.Module, manager: torchadx.memory.ActivationManager, batch: Tensor) -> None:
        self._manager = manager
        self._start = time.perf_counter()
        self.samples: list[Sample] = []
        handles = [module.register_forward_hook(self._ran) for module in model.modules()]
        with manager:
            loss = next_character_loss(model, batch)
        self._sample()
        self.backward_begins = self.samples[-1]
        loss.backward()
        self._sample()
        for handle in handles:
            handle.remove()

    @property
    def seconds(self) -> float:
        return self.samples[-1].seconds

    def _sample(self, _gradient: Tensor | None = None) -> None:
        self.samples.append(Sample(time.perf_counter() - self._start, self._manager.report().resident_bytes))

    def _ran(self, _module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        self._sample()
        if isinstance(output, Tensor):
            output.register_hook(self._sample)


def draw(timelines: dict[str, Timeline], budget: int, title: str, path: Path) -> None:
    figure = Figure(figsize=(9, 5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for (name, timeline), color in zip(timelines.items(), ("tab:gray", "tab:blue"), strict=True):
        milliseconds = [1e3 * sample.seconds for sample in timeline.samples]
        mebibytes = [sample.nbytes / MIB for sample in timeline.samples]
        label = f"{name}: at most {max(mebibytes):.1f} MiB"
        axes.step(milliseconds, mebibytes, where="post", color=color, linewidth=1.8, label=label)
        axes.fill_between(milliseconds, mebibytes, step="post", color=color, alpha=0.2, linewidth=0)
        turn = timeline.backward_begins
        axes.plot(1e3 * turn.seconds, turn.nbytes / MIB, "o", color=color)
    axes.axhline(budget / MIB, color="tab:red", linestyle="--", label=f"the budget: {budget / MIB:.1f} MiB")
    axes.plot([], [], "ok", label="forward is done, backward begins")
    axes.set_title(title, loc="left", fontsize="large", pad=12)
    axes.set_xlabel("time in the step (ms)")
    axes.set_ylabel("saved for backward, in memory (MiB)")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"layers": 4, "width": 128, "sequence": 1024, "batch": 2, "steps": 40}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    parser.add_argument("--plot", type=Path, default=Path("long_context.png"), help="default: long_context.png")
    return parser.parse_args()


def main() -> None:
    options = parse()
    text = Text(options.sequence, options.batch)
    models = {}
    for name in (PLAIN, FITTED):
        torch.manual_seed(0)
        models[name] = Transformer(len(text.characters), options.layers, options.width, options.sequence)

    with torchadx.memory.ActivationManager("keep") as everything:
        next_character_loss(models[PLAIN], text.batch(0))
    needed = everything.report().activation_bytes
    budget = torchadx.memory.Budget(needed // 3)
    saved = torchadx.memory.ActivationManager(budget).watch(models[FITTED])

    trained = train(models, {PLAIN: contextlib.nullcontext(), FITTED: saved}, text, options.steps)
    report = saved.report()
    print(report, "", budget.explain(), "", sep="\n")

    title = f"{len(text.characters)} kinds of characters, {text.length:,} in all"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column()
    for name in models:
        table.add_column(name, justify="right")
    table.add_row("memory for saved tensors, at most", f"{needed / MIB:.1f} MiB", f"{report.peak_bytes / MIB:.1f} MiB")
    for what, step in (("loss at the first step", 0), ("loss at the last step", -1)):
        table.add_row(what, *(f"{result.losses[step]:.4f}" for result in trained.values()))
    medians = [statistics.median(result.seconds) for result in trained.values()]
    table.add_row("time per training step, median", *(f"{seconds * 1e3:.0f} ms" for seconds in medians))
    Console(highlight=False).print(table)

    managers = {PLAIN: everything, FITTED: saved}
    batch = text.batch(options.steps)
    # whatever else the machine does slows some steps down: the fastest of a few is shown
    timelines = {
        name: min((Timeline(model, managers[name], batch) for _ in range(5)), key=lambda timeline: timeline.seconds)
        for name, model in models.items()
    }
    title = (
        f"What backward needs, over one training step\n{options.layers} layers, width {options.width}, "
        f"sequence {options.sequence}, batch {options.batch}"
    )
    draw(timelines, needed // 3, title, options.plot)
    print(f"memory over one step: {options.plot}")


if __name__ == "__main__":
    main()
