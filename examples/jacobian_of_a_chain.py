"""The Jacobian of a chain of three linear layers, which is W3 W2 W1, by every road that PyTorch offers.

    python examples/jacobian_of_a_chain.py

Backward multiplies from the left, one row of the Jacobian (a cotangent) at a time; forward mode multiplies from the
right, one column (a tangent) at a time. All roads agree, and which is cheaper depends on whether the chain narrows or
widens. The inputs are scikit-learn's handwritten digits, one scan or sixteen side by side. Runs on a CPU in seconds.
"""

import itertools
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor, nn

import torchadx

try:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from sklearn.datasets import load_digits
    from tqdm import tqdm
except ModuleNotFoundError as error:
    sys.exit(f'this example needs {error.name}: pip install "torchadx[examples]"')


def chain(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(torchadx.nn.Linear(width, out) for width, out in itertools.pairwise(widths)))


def scans(count: int) -> Tensor:
    """``count`` digits side by side: a vector of 64 pixels each, in [0, 1]."""
    images = load_digits().images[:count] / 16
    return torch.tensor(images, dtype=torch.float32).flatten()


def product_of_weights(f: nn.Sequential, x: Tensor) -> Tensor:
    first, second, third = (layer.weight.detach() for layer in f)
    return third @ second @ first


def by_backward(f: nn.Sequential, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    rows = []
    y = f(x)
    for cotangent in torch.eye(y.numel()):
        x.grad = None
        torch.autograd.backward(y, grad_tensors=cotangent, inputs=[x], retain_graph=True)
        rows.append(x.grad)
    return torch.stack(rows)


def by_autograd_grad(f: nn.Sequential, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    y = f(x)
    return torch.autograd.grad(y, x, torch.eye(y.numel()), is_grads_batched=True)[0]


def by_dual_numbers(f: nn.Sequential, x: Tensor) -> Tensor:
    columns = []
    for tangent in torch.eye(x.numel()):
        with fwAD.dual_level():
            columns.append(fwAD.unpack_dual(f(fwAD.make_dual(x, tangent))).tangent.detach())
    return torch.stack(columns, 1)


def by_jacrev(f: nn.Sequential, x: Tensor) -> Tensor:
    return torch.func.jacrev(f)(x).detach()


def by_jacfwd(f: nn.Sequential, x: Tensor) -> Tensor:
    return torch.func.jacfwd(f)(x).detach()


ROADS = {
    "backward(grad_tensors=v)": ("reverse, row by row", by_backward),
    "autograd.grad(is_grads_batched)": ("reverse, batched", by_autograd_grad),
    "forward_ad dual numbers": ("forward, column by column", by_dual_numbers),
    "func.jacrev": ("reverse, batched", by_jacrev),
    "func.jacfwd": ("forward, batched", by_jacfwd),
}


def show_that_all_agree(console: Console) -> None:
    f, x = chain(64, 48, 32, 10), scans(1)
    expected = product_of_weights(f.double(), x)
    f.float()
    table = Table("road", "mode", title="Jacobian of 64-48-32-10 at a digit, each entry against W3 W2 W1 in float64")
    table.title_justify, table.box = "left", box.SIMPLE_HEAD
    table.add_column("difference", justify="right")
    for name, (mode, jacobian) in ROADS.items():
        difference = (jacobian(f, x) - expected).abs().max().item()
        if difference > 1e-6:
            raise AssertionError(f"{name} is {difference:.1e} away from W3 W2 W1")
        table.add_row(name, mode, f"{difference:.1e}")
    console.print(table)
    console.print(f"Entries reach {expected.abs().max().item():.2f}. All agree.\n")


def median_seconds(runs: dict[str, Callable[[], Tensor]], rounds: int, bar: tqdm) -> dict[str, float]:
    """Time the runs in turns, after one each to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
        bar.update()
    return {name: statistics.median(times) for name, times in seconds.items()}


def race_forward_against_reverse(console: Console, rounds: int = 20) -> None:
    narrowing, widening = (chain(1024, 256, 64, 4), scans(16)), (chain(64, 256, 512, 2048), scans(1))
    title = "Forward against reverse, median time of a whole Jacobian"
    table = Table("chain", title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("inputs", "outputs", "jacfwd", "jacrev", "cheaper"):
        table.add_column(column, justify="right")
    with tqdm(total=2 * rounds, desc="timing", unit="round", leave=False) as bar:
        for f, x in (narrowing, widening):
            widths = [x.numel(), *(layer.out_features for layer in f)]
            runs = {"forward": lambda f=f, x=x: by_jacfwd(f, x), "reverse": lambda f=f, x=x: by_jacrev(f, x)}
            seconds = median_seconds(runs, rounds, bar)
            cheaper, dearer = sorted(seconds, key=seconds.__getitem__)
            table.add_row(
                "-".join(map(str, widths)),
                str(widths[0]),
                str(widths[-1]),
                *(f"{seconds[mode] * 1e3:.2f} ms" for mode in runs),
                f"[bold]{cheaper}[/], {seconds[dearer] / seconds[cheaper]:.1f}x",
            )
    console.print(table)
    note = "jacfwd pushes one tangent per input forward, jacrev pulls one cotangent per output back."
    console.print(note, soft_wrap=True)


def main() -> None:
    console = Console(highlight=False)
    show_that_all_agree(console)
    race_forward_against_reverse(console)


if __name__ == "__main__":
    main()
