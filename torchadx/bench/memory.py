"""The parts of ``python -m torchadx.bench memory``: gradients are checked, then all strategies train in turns."""

import gc
import os
import random
import statistics
from collections.abc import Callable, Collection, Iterator

import torch

from torchadx.bench._harness import summarize
from torchadx.bench._language import Size, Text
from torchadx.bench._memory_results import Check, Loss, Row, Steps
from torchadx.bench._memory_strategies import PLAIN, strategies
from torchadx.bench._memory_training import Training, relative_error, same_bits
from torchadx.memory import BudgetError

SIZE = Size(layers=6, width=256, sequence=512, batch=8)
#: what the longer training compares
LONG = ("plain", "int8")

#: called with a description of what begins
Begin = Callable[[str], None]


class Contest:
    """Strategies that train the same model on the same batches, each a copy of its own.

    Attributes:
        text: What they learn.
        trainings: By name, those that passed the check.
        checks: What was checked.
        left_out: The others, and why.
    """

    def __init__(
        self,
        size: Size,
        device: torch.device,
        names: Collection[str],
        directory: str | os.PathLike[str] | None,
        begin: Begin,
    ) -> None:
        """Check the gradients of every strategy named, plain PyTorch first.

        A strategy is left out if it needs an extra that is not installed, or if its budget cannot be met.

        Raises:
            WrongResultError: A gradient is further from plain PyTorch's than its strategy may take it.
        """
        self.size = size
        self.text = Text(size, device)
        self.trainings: dict[str, Training] = {}
        self.checks: dict[str, Check] = {}
        self.left_out: dict[str, str] = {}
        begin("check plain")
        batch = self.text.batch(0)
        plain = Training(PLAIN, size, self.text, device)
        gradient, again = plain.gradient(batch), plain.gradient(batch)
        noise = 0.0 if same_bits(gradient, again) else relative_error(again, gradient)
        plain.count(batch)
        self._admit(plain, Check(noise == 0, noise, 2 * noise))
        for strategy in strategies(plain.saved, directory):
            if strategy.name not in names:
                continue
            begin(f"check {strategy.name}")
            try:
                training = Training(strategy, size, self.text, device)
                training.count(batch)
                self._admit(training, training.check(batch, gradient, noise))
            except (ModuleNotFoundError, BudgetError) as error:
                self.left_out[strategy.name] = str(error)

    def _admit(self, training: Training, check: Check) -> None:
        self.trainings[training.strategy.name] = training
        self.checks[training.strategy.name] = check

    def steps_until(self, steps: int) -> int:
        """Return how many steps are missing, of all strategies together, until each has taken so many."""
        return sum(max(0, steps - len(training.steps)) for training in self.trainings.values())

    def train(self, steps: int, begin: Begin) -> None:
        """Train until each has taken so many steps, in rounds of one step each, in a fresh order every round."""
        order = random.Random(0)
        for number in range(len(self.trainings["plain"].steps), steps):
            gc.collect()
            for name in order.sample(list(self.trainings), len(self.trainings)):
                begin(f"step {number + 1} of {steps}: {name}")
                self.trainings[name].step()

    def drop(self, names: Collection[str]) -> None:
        """Let these go."""
        for name in names:
            self.trainings.pop(name).close()

    def steps(self) -> Steps:
        """Return what was measured so far."""
        plain = self.trainings["plain"]
        return Steps(
            self.size,
            sum(parameter.numel() for parameter in plain.model.parameters()),
            self.text.length,
            len(self.text.vocabulary),
            len(plain.steps),
            tuple(self._rows()),
            self.left_out,
        )

    def _rows(self) -> Iterator[Row]:
        for name, training in self.trainings.items():
            managed = training.manager is not None
            codecs = statistics.median(step.codecs / step.seconds for step in training.steps)
            stores = statistics.median(step.stores / step.seconds for step in training.steps)
            yield Row(
                name,
                self.checks[name],
                training.saved,
                training.peak,
                summarize([step.seconds for step in training.steps]),
                codecs if managed else None,
                stores if managed else None,
                training.held_out_loss(),
            )

    def loss(self) -> Loss:
        """Return the losses so far."""
        losses = {name: training.held_out_loss() for name, training in self.trainings.items()}
        return Loss(self.size, len(self.trainings["plain"].steps), losses)
