"""Serve a digit classifier in PyTorch's gradient modes, plain and in torchadx.InferenceAware, and compare.

    python examples/inference.py

Trains an MLP on scikit-learn's handwritten digits (1,797 real scans of 8 x 8 pixels), serves the held-out scans in each
mode, and asks each for the sensitivity of the logits to the brightness of a scan, by dual numbers.
--plot FILE draws which pixels speak for each digit. Runs on a CPU in well under half a minute.
"""

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.autograd.forward_ad as fwAD
import torch.nn.functional as F
from torch import Tensor, nn

import torchadx
from torchadx import inference

try:
    from matplotlib.figure import Figure
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from tqdm import tqdm
except ModuleNotFoundError as error:
    sys.exit(f'this example needs {error.name}: pip install "torchadx[examples]"')


TRAIN_BATCH = 128
WIDTHS = (64, 512, 512, 10)
#: passes over the held-out scans that are timed, of each way in turn
ROUNDS = 25

LEGEND = """\
saved        what autograd keeps for a backward that never comes
agreement    share of the predictions that are those of grad mode
sensitivity  mean |d logit / d brightness|, by dual numbers; its error is against torch.func.jvp in float64

In inference mode plain PyTorch drops tangents without a word. The wrapped module finds them, exact up to rounding;
what carries tangents is computed in the dtype of the weights, whatever dtype the wrapper has."""


class Way(NamedTuple):
    """A mode, a module to serve in it, and the functions that make and read dual numbers there."""

    mode: Callable[[], contextlib.AbstractContextManager[Any]]
    module: nn.Module
    duals: Any
    name: str

    def serve(self, scans: Tensor) -> Tensor:
        with self.mode():
            return self.module(scans)

    def brightness_tangent(self, scans: Tensor) -> Tensor | None:
        """Derivatives of the logits as all pixels get brighter, each in proportion to what it is."""
        with self.mode(), fwAD.dual_level():
            logits = self.module(self.duals.make_dual(scans, scans))
            tangent = self.duals.unpack_dual(logits).tangent
        return None if tangent is None else tangent.detach()


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images scaled to [0, 1] and labels: four fifths to train on, a stratified fifth to serve."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, labels, test_size=0.2, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = map(torch.tensor, parts)
    return train_images.float(), train_labels, test_images.float(), test_labels


def mlp() -> nn.Sequential:
    first, second, third, classes = WIDTHS
    return nn.Sequential(
        nn.Linear(first, second), nn.GELU(), nn.Linear(second, third), nn.GELU(), nn.Linear(third, classes)
    )


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in tqdm(range(epochs), desc="training", unit="epoch", leave=False):
        for batch in torch.randperm(len(images)).split(TRAIN_BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()


def saved_bytes(way: Way, scans: Tensor) -> int:
    """Bytes that autograd keeps for backward, each storage once, besides the scans and the parameters."""
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        way.serve(scans)
    for tensor in (scans, *way.module.parameters()):
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storage.nbytes() for storage in storages.values())


def median_seconds(ways: Sequence[Way], scans: Tensor) -> list[float]:
    """Serve the scans in turns, so that whatever else the machine does slows all ways down alike."""
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in tqdm(range(ROUNDS), desc="serving", unit="round", leave=False):
        for way, taken in zip(ways, seconds, strict=True):
            start = time.perf_counter()
            way.serve(scans)
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in seconds]


def table_of(ways: Sequence[Way], plain: nn.Module, scans: Tensor) -> Table:
    double = mlp().double()
    double.load_state_dict(plain.state_dict())
    _, expected = torch.func.jvp(double, (scans.double(),), (scans.double(),))
    predictions = ways[0].serve(scans).argmax(1)

    title = f"{len(scans)} held-out scans served at once, an MLP {'-'.join(map(str, WIDTHS))} with GELU"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("mode", "module", "time", "saved", "agreement", "sensitivity", "its error"):
        table.add_column(column, justify="left" if column in ("mode", "module") else "right", no_wrap=True)
    for way, seconds in zip(ways, median_seconds(ways, scans), strict=True):
        same = (way.serve(scans).argmax(1) == predictions).float().mean().item()
        cells = [f"{seconds * 1e3:.2f} ms", f"{saved_bytes(way, scans) / 1024:.0f} KiB", f"{same:.1%}"]
        tangent = way.brightness_tangent(scans)
        if tangent is None:
            cells += ["lost", ""]
        else:
            error = (tangent - expected).abs().max() / expected.abs().max()
            cells += [f"{tangent.abs().mean().item():.4f}", f"{error.item():.0e}"]
        table.add_row(way.mode.__name__, way.name, *cells)
    return table


def pixel_maps(wrapper: nn.Module, scans: Tensor) -> Tensor:
    """Derivatives of the logit of digit i by the pixels of scan i, all in one pass: a row for each pixel of each."""
    rows = scans.repeat_interleave(64, dim=0)
    each_pixel = torch.eye(64).repeat(len(scans), 1)
    with torch.inference_mode():
        _, tangents = inference.jvp(wrapper, (rows,), (each_pixel,))
        return tangents.unflatten(0, (len(scans), 64)).diagonal(dim1=0, dim2=2).T


def draw(scans: Tensor, maps: Tensor, path: Path) -> None:
    figure = Figure(figsize=(12, 2.9), dpi=150, layout="constrained")
    grid = figure.subplots(2, len(scans))
    most = maps.abs().max().item()
    for (upper, lower), scan, weights in zip(grid.T, scans, maps, strict=True):
        upper.imshow(scan.reshape(8, 8), cmap="gray", vmin=0, vmax=1)
        image = lower.imshow(weights.reshape(8, 8), cmap="RdBu_r", vmin=-most, vmax=most)
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    grid[0, 0].set_ylabel("scan")
    grid[1, 0].set_ylabel("∂logit / ∂pixel")
    figure.colorbar(image, ax=grid).set_label("a brighter pixel speaks\nagainst (-) or for (+) the digit")
    figure.suptitle("What every pixel says about the digit, in one pass of dual numbers inside inference_mode")
    figure.savefig(path)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10, help="passes over the training images (default: 10)")
    parser.add_argument("--plot", type=Path, help="draw a scan of each digit and what its pixels say, into this file")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.manual_seed(0)
    train_images, train_labels, scans, labels = digits()
    model = mlp()
    train(model, train_images, train_labels, options.epochs)
    model.eval()

    wrapper = torchadx.InferenceAware(model)
    half = torchadx.InferenceAware(model, dtype=torch.bfloat16)
    ways = [
        Way(torch.enable_grad, model, fwAD, "plain"),
        Way(torch.no_grad, model, fwAD, "plain"),
        Way(torch.inference_mode, model, fwAD, "plain"),
        Way(torch.inference_mode, wrapper, inference, "wrapped"),
        Way(torch.inference_mode, half, inference, "wrapped, bfloat16"),
    ]
    Console(highlight=False, width=100).print(table_of(ways, model, scans))

    accuracy = (ways[3].serve(scans).argmax(1) == labels).float().mean().item()
    print(f"accuracy on the held-out scans, wrapped: {accuracy:.1%}")
    print(f"prepared weights of the two wrappers: {wrapper.prepared_bytes:,} and {half.prepared_bytes:,} bytes\n")
    print(LEGEND)
    if options.plot:
        firsts = torch.stack([scans[labels == digit][0] for digit in range(10)])
        draw(firsts, pixel_maps(wrapper, firsts), options.plot)
        print(f"what the pixels say: {options.plot}")


if __name__ == "__main__":
    main()
