"""Train the same digit classifier with plain PyTorch and with torchadx, from the same seed, and compare them.

    python examples/quickstart.py

The two models take turns on the same batches of scikit-learn's handwritten digits (1,797 real scans of 8 x 8 pixels),
so that their step times are measured side by side. Runs on a CPU in well under half a minute.
"""

import argparse
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchadx

try:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from tqdm import tqdm
except ModuleNotFoundError as error:
    sys.exit(f'this example needs {error.name}: pip install "torchadx[examples]"')


BATCH = 128


class PlainMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lower = nn.Linear(64, 512)
        self.upper = nn.Linear(512, 512)
        self.head = nn.Linear(512, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(F.gelu(self.upper(F.gelu(self.lower(images)))))


class FusedMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lower = torchadx.nn.Linear(64, 512, activation="gelu")
        self.upper = torchadx.nn.Linear(512, 512, activation="gelu")
        self.head = torchadx.nn.Linear(512, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.upper(self.lower(images)))


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images scaled to [0, 1] and labels: four fifths to train on, a stratified fifth to test on."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, labels, test_size=0.2, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = map(torch.tensor, parts)
    return train_images.float(), train_labels, test_images.float(), test_labels


def gradients(model: nn.Module, images: Tensor, labels: Tensor) -> list[Tensor]:
    loss = F.cross_entropy(model(images), labels)
    return list(torch.autograd.grad(loss, list(model.parameters())))


def saved_bytes(model: nn.Module, images: Tensor) -> int:
    """Bytes that autograd keeps for backward, each storage once, besides the images and the parameters."""
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(images).sum()
    assert loss.requires_grad
    for tensor in (images, *model.parameters()):
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storage.nbytes() for storage in storages.values())


def jvp_error(model: nn.Module, images: Tensor) -> tuple[float, float]:
    """Largest entry of a JVP along a random direction, and its largest error against plain PyTorch in float64."""
    reference = PlainMLP()
    reference.load_state_dict(model.state_dict())  # the fused layers keep the names of nn.Linear
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    _, tangent = torch.func.jvp(model, (images,), (direction,))
    _, expected = torch.func.jvp(reference.double(), (images.double(),), (direction.double(),))
    return expected.abs().max().item(), (tangent - expected).abs().max().item()


def train(models: dict[str, nn.Module], images: Tensor, labels: Tensor, epochs: int) -> dict[str, float]:
    """Train the models in turns on the same batches; return the median seconds per step of each."""
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=2e-3) for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    shuffle = torch.Generator().manual_seed(0)
    steps_per_epoch = -(-len(images) // BATCH)
    with tqdm(total=epochs * steps_per_epoch, desc="training both", unit="step", leave=False) as bar:
        for _ in range(epochs):
            for batch in torch.randperm(len(images), generator=shuffle).split(BATCH):
                for name, model in models.items():
                    start = time.perf_counter()
                    optimizers[name].zero_grad()
                    F.cross_entropy(model(images[batch]), labels[batch]).backward()
                    optimizers[name].step()
                    seconds[name].append(time.perf_counter() - start)
                bar.update()
    return {name: statistics.median(times) for name, times in seconds.items()}


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return (model(images).argmax(1) == labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20, help="passes over the training images (default: 20)")
    epochs = parser.parse_args().epochs

    train_images, train_labels, test_images, test_labels = digits()
    models = {}
    for name, build in (("PyTorch", PlainMLP), ("torchadx", FusedMLP)):
        torch.manual_seed(0)
        models[name] = build()
    batch = train_images[:BATCH], train_labels[:BATCH]
    first = [gradients(model, *batch) for model in models.values()]
    step_seconds = train(models, train_images, train_labels, epochs)

    table = Table(title="Digits, an MLP 64-512-512-10 with GELU", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column()
    for name in models:
        table.add_column(name, justify="right")

    def add(what: str, cells: list[str]) -> None:
        table.add_row(what, *cells)

    accuracies = [accuracy(model, test_images, test_labels) for model in models.values()]
    add(f"accuracy on {len(test_images)} held-out scans", [f"{share:.1%}" for share in accuracies])
    add("time per training step, median", [f"{seconds * 1e3:.2f} ms" for seconds in step_seconds.values()])
    kept = [saved_bytes(model, batch[0]) for model in models.values()]
    add(f"saved for backward, batch of {BATCH}", [f"{count / 1024:.0f} KiB" for count in kept])
    jvps = [jvp_error(model, test_images) for model in models.values()]
    add("largest entry of a JVP", [f"{size:.2f}" for size, _ in jvps])
    add("largest error of that JVP, against float64", [f"{error:.1e}" for _, error in jvps])

    apart = max((a - b).abs().max().item() for a, b in zip(*first, strict=True))
    largest = max(gradient.abs().max().item() for gradient in first[0])
    add(f"largest gradient difference, of entries up to {largest:.2f}", ["", f"{apart:.1e}"])
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
