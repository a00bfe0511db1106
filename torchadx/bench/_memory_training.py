"""One strategy at work: a model of its own, trained step by step, and what each step took and held."""

import gc
import time
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import save_on_cpu

from torchadx.bench._harness import WrongResultError, saved_bytes
from torchadx.bench._language import Batch, CharacterTransformer, Size, Text
from torchadx.bench._memory_results import Check
from torchadx.bench._memory_strategies import Strategy
from torchadx.memory import ActivationManager

LEARNING_RATE = 1e-3

#: bytes alive that are nobody's fault: scalars, random states
SMALL_CHANGE = 1 << 16


class Step(NamedTuple):
    """Seconds of a step, and those of them spent in codecs and in stores."""

    seconds: float
    codecs: float
    stores: float


class Training:
    """A strategy with a model and an optimizer; from the same seed for every strategy.

    Attributes:
        strategy: How what backward needs is held.
        model: The model.
        manager: The activation manager, if the strategy has one.
        steps: What the steps so far took.
        saved: The most bytes held for backward so far, wherever that was, parameters not counted.
        peak: The most bytes of that in the memory of the device at once.
    """

    def __init__(self, strategy: Strategy, size: Size, text: Text, device: torch.device) -> None:
        """Build the model.

        Raises:
            ModuleNotFoundError: The strategy needs an extra that is not installed.
        """
        self.strategy = strategy
        self.steps: list[Step] = []
        self.saved = self.peak = 0
        self._text, self._device = text, device
        self._context = strategy.open()
        self.manager = self._context if isinstance(self._context, ActivationManager) else None
        torch.manual_seed(0)
        self.model = CharacterTransformer(len(text.vocabulary), size, strategy.checkpointed).to(device)
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE)
        if self.manager is not None:
            self.manager.watch(self.model)

    def step(self) -> None:
        """Take the next training step, on the batch that is every strategy's at that step."""
        batch = self._text.batch(len(self.steps))
        start = self._now()
        self._optimizer.zero_grad()
        with self._context:
            loss = self.model.loss(batch)
        loss.backward()
        self._optimizer.step()
        seconds = self._now() - start
        codecs, stores = self._learn()
        self.steps.append(Step(seconds, codecs, stores))

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _learn(self) -> tuple[float, float]:
        """Read the manager's report, if there is a manager; return the seconds spent in codecs and in stores."""
        if self.manager is None:
            return 0.0, 0.0
        report = self.manager.report()
        self.saved, self.peak = max(self.saved, report.held_bytes), max(self.peak, report.peak_bytes)
        return report.encode_seconds + report.decode_seconds, report.copy_seconds

    @torch.no_grad()
    def held_out_loss(self, batches: int = 4) -> float:
        """Return the mean loss on text that no step sees, in nats a character."""
        losses = [self.model.loss(batch).item() for batch in self._text.held_out(batches)]
        return sum(losses) / len(losses)

    def gradient(self, batch: Batch) -> Tensor:
        """Return the gradient of all parameters as one vector."""
        with self._context:
            loss = self.model.loss(batch)
        gradients = torch.autograd.grad(loss, list(self.model.parameters()))
        self._learn()
        return torch.cat([gradient.flatten() for gradient in gradients])

    def check(self, batch: Batch, plain: Tensor, noise: float) -> Check:
        """Compare two gradients, one after the other, with plain PyTorch's.

        Args:
            batch: What to differentiate the loss of.
            plain: The gradient by plain PyTorch.
            noise: The relative error of that when it is computed again; 0 where it is the same bits.

        Raises:
            WrongResultError: A gradient is further away than the strategy may take it.
        """
        # two: a budget measures in the first pass, and follows its plan from the second on
        gradients = [self.gradient(batch) for _ in range(2)]
        bitwise = all(same_bits(gradient, plain) for gradient in gradients)
        error = max(relative_error(gradient, plain) for gradient in gradients)
        bound = max(self.strategy.bound, 2 * noise)
        if bitwise or (bound and error <= bound):
            return Check(bitwise, error, bound)
        wanted = f"at most {bound:.1e} is allowed" if bound else "the same bits were expected"
        raise WrongResultError(
            f"{self.strategy.name}: the gradient is {error:.1e} away from plain PyTorch's, and {wanted}; nothing was "
            "timed"
        )

    def count(self, batch: Batch) -> None:
        """Count what is held for backward, as far as possible without asking who holds it.

        Raises:
            WrongResultError: A manager reports less than it holds.
        """
        owned = list(self.model.parameters())
        if self.manager is not None:
            self._compare_with_report(self.manager, batch)
        elif isinstance(self._context, save_on_cpu):
            pack = self._context.pack_hook
            self.saved = saved_bytes(lambda: self.model.loss(batch), owned, lambda tensor: pack(tensor)[1])
            self.peak = self.saved if self._device.type == "cpu" else 0
        else:
            self.saved = self.peak = saved_bytes(lambda: self.model.loss(batch), owned)
            if self.strategy.checkpointed:
                # backward computes one block at a time again
                self.peak += self._saved_by_one_block(len(batch.characters))

    def _saved_by_one_block(self, batch: int) -> int:
        block, positions = self.model.blocks[0], self.model.positions
        x = torch.zeros(batch, *positions.shape, device=positions.device)
        return saved_bytes(lambda: block(x), [x, *block.parameters()])

    def _compare_with_report(self, manager: ActivationManager, batch: Batch) -> None:
        before = live_bytes(self._device)
        with manager:
            loss = self.model.loss(batch)
        manager.flush()
        alive = live_bytes(self._device) - before - loss.nbytes
        resident = manager.report().resident_bytes
        if alive > 1.01 * resident + SMALL_CHANGE:
            raise WrongResultError(
                f"{self.strategy.name}: {resident} bytes of saved tensors are said to be in memory, but forward left "
                f"{alive} bytes of tensors alive; nothing was timed"
            )

    def close(self) -> None:
        """Free what the manager's stores hold."""
        if self.manager is not None:
            self.manager.close()


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of the same type are equal bit for bit, signs of zeros and NaN included."""
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def relative_error(gradient: Tensor, plain: Tensor) -> float:
    """Return ``||gradient - plain|| / ||plain||``, computed in float64."""
    exact = plain.double()
    return ((gradient.double() - exact).norm() / exact.norm()).item()


def live_bytes(device: torch.device) -> int:
    """Count the bytes of all tensors on a device that Python sees, each storage once."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) in (Tensor, torch.nn.Parameter)]
    here = [tensor for tensor in tensors if tensor.device.type == device.type and tensor.layout == torch.strided]
    storages = [tensor.untyped_storage() for tensor in here]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
