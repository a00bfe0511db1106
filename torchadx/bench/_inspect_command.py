"""Check what torchadx.inspect tells against counts by other means, then time it against torchviz and torch.profiler."""

import argparse
import dataclasses
import sys
from typing import Any

import torch
from rich.console import Console

from torchadx.bench import _arguments, _inspect_models, _inspect_table, _inspect_targets, _table, inspect
from torchadx.bench._inspect_results import Case

HELP = "saved tensors, graph, memory over time, time by module, page: are they right, and what do they cost"

_ROUNDS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    sections, names, groups = (",".join(known) for known in (inspect.SECTIONS, _inspect_models.NAMES, inspect.GROUPS))
    parser.add_argument(
        "--sections", type=_arguments.some_of(inspect.SECTIONS), default=list(inspect.SECTIONS), metavar="NAME,...",
        help=f"comma-separated (default: {sections})",
    )  # fmt: skip
    parser.add_argument(
        "--cases", type=_arguments.some_of(_inspect_models.NAMES), default=list(_inspect_models.NAMES),
        metavar="NAME,...", help=f"models, in the sections that look at them (default: {names})",
    )  # fmt: skip
    parser.add_argument(
        "--without", type=_arguments.some_of(inspect.GROUPS), default=[], metavar="NAME,...",
        help=f"contenders to leave out, of {groups}",
    )  # fmt: skip
    parser.add_argument(
        "--rounds", type=_arguments.positive, metavar="N",
        help=f"interleaved rounds; of pages 3 at most (default: {_ROUNDS}, or 1 with --quick)",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="small models: whether it is right, not how long it takes")


def run(options: argparse.Namespace, device: torch.device, console: Console) -> dict[str, Any]:
    """Measure and print every section that the options ask for; return all of it, fit for JSON."""
    scale = _inspect_models.QUICK if options.quick else _inspect_models.STATED
    rounds = options.rounds or (1 if options.quick else _ROUNDS)
    cases = _measure_all(options, scale, rounds, device)
    _inspect_table.print_cases(console, cases)
    # the targets are stated for one kind of device
    verdicts = _inspect_targets.judge(cases, not options.quick) if device.type == "cpu" else []
    if verdicts:
        console.print("", _table.targets(verdicts), sep="\n")
    names = ("sections", "cases", "without", "quick")
    return {
        "settings": {name: getattr(options, name) for name in names} | {"rounds": rounds},
        "cases": [case.to_dict() for case in cases],
        "targets": [dataclasses.asdict(verdict) for verdict in verdicts],
    }


def _measure_all(
    options: argparse.Namespace, scale: _inspect_models.Scale, rounds: int, device: torch.device
) -> list[Case]:
    chosen = [
        (section, name)
        for section, names in inspect.SECTIONS.items()
        for name in names
        if section in options.sections and name in options.cases
    ]
    if not chosen:
        sys.exit(f"none of {','.join(options.sections)} looks at {','.join(options.cases)}: see --sections and --cases")
    cases = []
    with _table.progress(len(chosen)) as begin:
        for section, name in chosen:
            begin(f"{section}: {name}")
            cases.append(inspect.measure(section, name, scale, device, rounds, options.without))
    return cases
