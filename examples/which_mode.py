"""Forward, reverse or a plan of both: what a whole Jacobian costs on four shapes of network, and what one can show.

    python examples/which_mode.py

Forward mode takes one sweep per input, reverse mode one per output. A plan multiplies where the network is narrow, and
has no need of either. Times go into a table and a log-log plot. Then an autoencoder learns scikit-learn's handwritten
digits; the Jacobians of all its samples show to which pixels its code listens, and to which the reconstruction.
Runs on a CPU in well under a minute; --quick takes a few seconds.
"""

import argparse
import itertools
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchadx import autodiff

try:
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from sklearn.datasets import load_digits
    from tqdm import tqdm
except ModuleNotFoundError as error:
    sys.exit(f'this example needs {error.name}: pip install "torchadx[examples]"')

FORWARD, REVERSE, PLANNED = "forward", "reverse", "planned"
STYLES = {FORWARD: ("tab:orange", "o"), REVERSE: ("tab:green", "s"), PLANNED: ("tab:blue", "D")}
ARCHITECTURES: dict[str, Callable[[int], tuple[int, ...]]] = {
    "encoder": lambda width: (width, width // 2, width // 4, 16),
    "decoder": lambda width: (16, width // 4, width // 2, width),
    "square": lambda width: (width,) * 4,
    "autoencoder": lambda width: (width, width // 4, 16, width // 4, width),
}
FORMULAS = {
    "encoder": "w → w/2 → w/4 → 16",
    "decoder": "16 → w/4 → w/2 → w",
    "square": "w → w → w → w",
    "autoencoder": "w → w/4 → 16 → w/4 → w",
}
#: seconds of timing that a width gets, and the least rounds
BUDGET, LEAST_ROUNDS = 0.5, 5
#: times faster, from where it shows
NOTICEABLE = 1.2


def mlp(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width, out in itertools.pairwise(widths):
        layers += [nn.Linear(width, out), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).requires_grad_(False)


class Point(NamedTuple):
    width: int
    mode: str
    seconds: dict[str, float]

    @property
    def faster(self) -> float:
        """How many times faster than the better pure mode the plan is."""
        return min(self.seconds[FORWARD], self.seconds[REVERSE]) / self.seconds[PLANNED]


def measure(widths: Sequence[int]) -> Point:
    """Check that all three agree, then time them in turns."""
    torch.manual_seed(0)
    f, x = mlp(widths), torch.randn(widths[0])
    plan = autodiff.plan_jacobian(f, x)
    runs = {FORWARD: torch.func.jacfwd(f), REVERSE: torch.func.jacrev(f), PLANNED: plan}
    expected = runs[REVERSE](x)
    for run in runs.values():
        torch.testing.assert_close(run(x), expected, rtol=1e-4, atol=1e-6)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + BUDGET
    while time.perf_counter() < end or len(seconds[PLANNED]) < LEAST_ROUNDS:
        for name, run in runs.items():
            start = time.perf_counter()
            run(x)
            seconds[name].append(time.perf_counter() - start)
    # whatever else the machine does slows some rounds down: the fastest is shown
    return Point(max(widths), plan.mode, {name: min(taken) for name, taken in seconds.items()})


def measure_all(widths: Sequence[int]) -> dict[str, list[Point]]:
    points: dict[str, list[Point]] = {name: [] for name in ARCHITECTURES}
    with tqdm(total=len(ARCHITECTURES) * len(widths), desc="timing", unit="Jacobian", leave=False) as bar:
        for (name, architecture), width in itertools.product(ARCHITECTURES.items(), widths):
            with torch.no_grad():
                points[name].append(measure(architecture(width)))
            bar.update()
    return points


def crossover(widths: Sequence[int], ratios: Sequence[float]) -> float | None:
    """Return the width from which on a ratio of times is above 1, on straight lines in a log-log plot.

    There is none where the last ratio is hardly above 1: lines that run into each other cross by chance.
    """
    found = None
    for (left, right), pair in zip(itertools.pairwise(widths), itertools.pairwise(ratios), strict=True):
        before, after = map(math.log, pair)
        if before < 0 < after:
            found = left * (right / left) ** (before / (before - after))
    return found if ratios[-1] >= NOTICEABLE else None


def table_of(points: dict[str, list[Point]]) -> Table:
    title = "A whole Jacobian, fastest of several rounds, in ms"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("network", "w", FORWARD, REVERSE, PLANNED, "faster", "mode"):
        table.add_column(column, justify="left" if column in ("network", "mode") else "right", no_wrap=True)
    for name, several in points.items():
        head = iter((name, FORMULAS[name]))
        for point in several:
            times = (f"{1e3 * point.seconds[mode]:.2f}" for mode in STYLES)
            table.add_row(next(head, ""), str(point.width), *times, f"{point.faster:.2f}x", point.mode)
        table.add_section()
    return table


def plot(points: dict[str, list[Point]], path: Path) -> None:
    figure = Figure(figsize=(11, 8), dpi=150, layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    for axes, (name, several) in zip(panels.flat, points.items(), strict=True):
        draw_times(axes, several)
        axes.set_title(f"{name}:  {FORMULAS[name]}", loc="left")
    low, high = panels[0, 0].get_ylim()
    panels[0, 0].set_ylim(low, 2 * high)  # room for what is said above the lines
    panels[0, 0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[0, 0].yaxis.set_major_formatter("{x:g}")
    for axes in panels[-1]:
        axes.set_xlabel("width w")
    for axes in panels[:, 0]:
        axes.set_ylabel("time of a whole Jacobian (ms)")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle("Which mode? Forward and reverse against a plan, fp32, tanh between the layers", fontsize="x-large")
    figure.savefig(path)


def draw_times(axes: Any, points: Sequence[Point]) -> None:
    widths = [point.width for point in points]
    for mode, (color, marker) in STYLES.items():
        milliseconds = [1e3 * point.seconds[mode] for point in points]
        axes.loglog(widths, milliseconds, color=color, marker=marker, markersize=5, linewidth=1.8, label=mode)
    axes.set_xticks(widths, [str(width) for width in widths])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    last = points[-1]
    text = f"planned: {last.faster:.1f}x as fast at w = {last.width}"
    axes.text(0.03, 0.97, text, transform=axes.transAxes, va="top", color=STYLES[PLANNED][0], fontweight="bold")
    swapped = [point.seconds[REVERSE] / point.seconds[FORWARD] for point in points]
    crossovers = {
        "planned is ahead": [point.faster for point in points],
        "forward beats reverse": swapped,
        "reverse beats forward": [1 / ratio for ratio in swapped],
    }
    for row, (what, ratios) in enumerate(crossovers.items()):
        width = crossover(widths, ratios)
        if width is not None:
            axes.axvline(width, ymax=0.9, color="gray", linestyle=":")
            side = "right" if width > math.sqrt(widths[0] * last.width) else "left"
            where = {"transform": axes.get_xaxis_transform(), "va": "top", "ha": side, "color": "dimgray"}
            axes.text(width, 0.89 - 0.06 * row, f" from w ≈ {width:.0f}: {what} ", **where)


class Autoencoder(nn.Module):
    """64-32-8-32-64: a scan of 8 x 8 pixels, by way of a code of eight numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 8), nn.Tanh())
        self.decoder = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 64))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


def train(model: nn.Module, scans: Tensor, steps: int) -> float:
    """Learn to restore scans from noisy ones, and so to ignore pixels that tell nothing; return the last error."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in tqdm(range(steps), desc="training", unit="step", leave=False):
        batch = scans[torch.randint(len(scans), (256,))]
        loss = F.mse_loss(model(batch + 0.1 * torch.randn_like(batch)), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return F.mse_loss(model(scans), scans).sqrt().item()


class Sensitivity(NamedTuple):
    """Means over samples: of |d code / d pixel| (8, 64), and of |d output pixel / d input pixel| (64, 64)."""

    code: Tensor
    reconstruction: Tensor
    error: float


def sensitivity(model: Autoencoder, scans: Tensor) -> Sensitivity:
    """Take one Jacobian a sample, of the encoder and of the whole, and compare both with torch.func."""
    means, errors = [], []
    with torch.no_grad():
        for f in (model.encoder, model):
            jacobians = autodiff.jacobian(f, scans, batched=True)
            expected = torch.vmap(torch.func.jacrev(f))(scans)
            errors.append((jacobians - expected).abs().max().item())
            means.append(jacobians.abs().mean(0))
    return Sensitivity(*means, max(errors))


def draw_map(found: Sensitivity, scans: Tensor, path: Path) -> None:
    figure = Figure(figsize=(12, 6.2), dpi=150, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(2.1, 1))
    most = found.code.max().item()
    left.suptitle("The code: mean |∂code / ∂pixel|", fontsize="x-large")
    grid = left.subplots(2, 4)
    for number, (axes, weights) in enumerate(zip(grid.flat, found.code, strict=True), 1):
        image = picture(axes, weights, f"code {number}", "magma", most)
    left.colorbar(image, ax=grid, orientation="horizontal", shrink=0.7, aspect=40).set_label(
        "change of the code (from -1 to 1) per change of the pixel (from 0 to 1)"
    )
    right.suptitle("The reconstruction", fontsize="x-large")
    upper, lower = right.subplots(2, 1)
    image = picture(upper, found.reconstruction.sum(0), "Σ over output pixels of mean |∂output / ∂pixel|", "viridis")
    right.colorbar(image, ax=upper, shrink=0.8).set_label("per change of the pixel")
    image = picture(lower, scans.mean(0), "for comparison: the mean scan", "gray")
    right.colorbar(image, ax=lower, shrink=0.8).set_label("grey value of the pixel")
    figure.savefig(path)


def picture(axes: Any, pixels: Tensor, title: str, colors: str, most: float | None = None) -> Any:
    image = axes.imshow(pixels.reshape(8, 8), cmap=colors, vmin=0, vmax=most)
    axes.set_title(title, fontsize="medium")
    axes.set_xticks([])
    axes.set_yticks([])
    return image


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small widths and a short training")
    for name, what in {"plot": "times", "map": "sensitivities"}.items():
        default = Path(f"which_mode_{name}.png")
        parser.add_argument(f"--{name}", type=Path, default=default, help=f"{what} (default: {default})")
    return parser.parse_args()


def main() -> None:
    options = parse()
    console = Console(highlight=False, width=100)
    points = measure_all((64, 128) if options.quick else (64, 128, 256, 512, 1024))
    console.print(table_of(points))
    plot(points, options.plot)
    print(f"times: {options.plot}\n")

    torch.manual_seed(0)
    scans = torch.tensor(load_digits().data / 16, dtype=torch.float32)
    model = Autoencoder()
    error = train(model, scans, 100 if options.quick else 3000)
    found = sensitivity(model, scans)
    draw_map(found, scans, options.map)
    print(f"{len(scans):,} digits through a code of 8 numbers: a pixel is off by {error:.3f} (rms, of 0 to 1)")
    print(f"largest difference of a Jacobian from torch.func.jacrev's: {found.error:.1e}")
    strongest = found.code.sum(0).argmax().item()
    print(f"the code listens most to row {strongest // 8 + 1}, column {strongest % 8 + 1} of the scan")
    print(f"sensitivities: {options.map}")


if __name__ == "__main__":
    main()
