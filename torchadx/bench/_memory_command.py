"""Compare the activation manager with plain PyTorch, save_on_cpu and checkpoint, while a transformer learns text."""

import argparse
import dataclasses
from typing import Any

import torch
from rich.console import Console

from torchadx.bench import (
    _arguments,
    _memory_growth,
    _memory_overhead,
    _memory_strategies,
    _memory_table,
    _memory_targets,
    _table,
    memory,
)
from torchadx.bench._language import Size
from torchadx.bench._memory_results import Growth, Loss, Overhead, Steps

HELP = "what autograd saves: bytes held, gradients, time a step"

#: the small ones first, in a process that has done nothing else yet
SECTIONS = ("overhead", "growth", "steps", "loss")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument(
        "--sections", type=_arguments.some_of(SECTIONS), default=list(SECTIONS), metavar="NAME,...",
        help=f"comma-separated; loss, the longer training, takes most of the time (default: {','.join(SECTIONS)})",
    )  # fmt: skip
    stated = "x".join(map(str, memory.SIZE))
    parser.add_argument(
        "--size", type=_size, default=memory.SIZE, metavar="LxWxSxB",
        help=f"layers x width x sequence x batch (default: {stated})",
    )  # fmt: skip
    names = _memory_strategies.NAMES[1:]
    parser.add_argument(
        "--without",
        type=_arguments.some_of(names),
        default=[],
        metavar="NAME,...",
        help=f"strategies to leave out, of {','.join(names)}",
    )
    counts = {
        "--steps": (20, "training steps of every strategy"),
        "--loss-steps": (200, "steps of the longer training"),
        "--growth-steps": (10_000, "steps under every store"),
        "--rounds": (30, "interleaved rounds of overhead"),
    }
    for name, (default, what) in counts.items():
        parser.add_argument(
            name, type=_arguments.positive, default=default, metavar="N", help=f"{what} (default: {default})"
        )
    parser.add_argument(
        "--directory", metavar="PATH", help="where files go (default: where the system keeps temporary ones)"
    )


def run(options: argparse.Namespace, device: torch.device, console: Console) -> dict[str, Any]:
    """Measure and print every section that the options ask for; return all of it, fit for JSON."""
    overhead = _measure_overhead(options, device, console) if "overhead" in options.sections else None
    growth = _measure_growth(options, device, console) if "growth" in options.sections else []
    steps, loss = _train(options, device, console)
    # the targets are stated for one kind of device
    verdicts = _memory_targets.judge(steps, loss, overhead, growth) if device.type == "cpu" else []
    if verdicts:
        console.print("", _table.targets(verdicts), sep="\n")
    names = ("sections", "without", "steps", "loss_steps", "growth_steps", "rounds")
    return {
        "settings": {name: getattr(options, name) for name in names} | {"size": options.size._asdict()},
        "steps": dataclasses.asdict(steps) if steps else None,
        "loss": dataclasses.asdict(loss) if loss else None,
        "overhead": dataclasses.asdict(overhead) if overhead else None,
        "growth": [dataclasses.asdict(one) for one in growth],
        "targets": [dataclasses.asdict(verdict) for verdict in verdicts],
    }


def _train(options: argparse.Namespace, device: torch.device, console: Console) -> tuple[Steps | None, Loss | None]:
    """Train in turns; the longer training goes on from where the shorter one stopped."""
    steps, loss = None, None
    everyone = "steps" in options.sections
    if not everyone and "loss" not in options.sections:
        return steps, loss
    names = [name for name in (_memory_strategies.NAMES if everyone else memory.LONG) if name not in options.without]
    with _table.progress(len(names)) as begin:
        contest = memory.Contest(options.size, device, names, options.directory, begin)
    if everyone:
        _train_to(contest, options.steps)
        steps = contest.steps()
        _memory_table.print_steps(console, steps)
    if "loss" in options.sections:
        contest.drop([name for name in contest.trainings if name not in memory.LONG])
        _train_to(contest, options.loss_steps)
        loss = contest.loss()
        _memory_table.print_loss(console, loss)
    contest.drop(list(contest.trainings))
    return steps, loss


def _train_to(contest: memory.Contest, steps: int) -> None:
    with _table.progress(contest.steps_until(steps)) as begin:
        contest.train(steps, begin)


def _measure_overhead(options: argparse.Namespace, device: torch.device, console: Console) -> Overhead:
    overhead = _memory_overhead.measure(options.rounds, device)
    _memory_table.print_overhead(console, overhead)
    return overhead


def _measure_growth(options: argparse.Namespace, device: torch.device, console: Console) -> list[Growth]:
    growths = []
    with _table.progress(len(_memory_growth.POLICIES)) as begin:
        for store in _memory_growth.POLICIES:
            begin(f"{options.growth_steps} steps: {store}")
            growths.append(_memory_growth.measure(store, options.growth_steps, options.directory, device))
    _memory_table.print_growth(console, growths)
    return growths


def _size(text: str) -> Size:
    return Size(*_arguments.sizes(text, "LxWxSxB"))
