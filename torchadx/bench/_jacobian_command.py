"""Compare planned Jacobians with torch.func, torch.autograd.functional, both compiled, and JAX if it is installed."""

import argparse
import dataclasses
from typing import Any

import torch
from rich.console import Console

from torchadx.bench import (
    _arguments,
    _jacobian_cases,
    _jacobian_peers,
    _jacobian_random,
    _jacobian_table,
    _jacobian_targets,
    _table,
    jacobian,
)
from torchadx.bench._jacobian_results import Case, Sample

HELP = "whole Jacobians: planned, forward, reverse, compiled, jitted"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    names = ",".join(problem.name for problem in _jacobian_cases.PROBLEMS)
    parser.add_argument(
        "--cases", type=_jacobian_cases.parse, default=list(_jacobian_cases.PROBLEMS), metavar="NAME,...",
        help=f"comma-separated; WIDTH-...-WIDTH-relu or -tanh is any MLP (default: {names})",
    )  # fmt: skip
    known = (*_jacobian_peers.GROUPS, *_jacobian_peers.NAMES)
    parser.add_argument(
        "--without", type=_arguments.some_of(known), default=[], metavar="NAME,...",
        help=f"peers to leave out, of {','.join(known)}",
    )  # fmt: skip
    parser.add_argument("--rounds", type=_arguments.positive, default=10, help="interleaved rounds (default: 10)")
    parser.add_argument(
        "--compile-limit", type=_arguments.positive, default=120, metavar="SECONDS",
        help="a peer that takes longer to compile is left out (default: 120)",
    )  # fmt: skip
    parser.add_argument(
        "--random", type=_count, default=100, metavar="N", help="random networks; 0: none (default: 100)"
    )


def run(options: argparse.Namespace, device: torch.device, console: Console) -> dict[str, Any]:
    """Measure and print every case that the options ask for; return all of it, fit for JSON."""
    cases = _measure_all(options, device)
    _jacobian_table.print_cases(console, cases)
    planning = _jacobian_random.plan_deep(device)
    _jacobian_table.print_planning(console, planning)
    samples = _measure_random(options.random, device)
    if samples:
        _jacobian_table.print_random(console, samples)
    # the targets are stated for one kind of device
    verdicts = _jacobian_targets.judge(cases, planning, samples) if device.type == "cpu" else []
    if verdicts:
        console.print("", _table.targets(verdicts), sep="\n")
    names = ("rounds", "without", "compile_limit", "random")
    return {
        "settings": {name: getattr(options, name) for name in names},
        "cases": [_as_json(case) for case in cases],
        "planning": dataclasses.asdict(planning),
        "random": [{**dataclasses.asdict(sample), "ratio": sample.ratio} for sample in samples],
        "targets": [dataclasses.asdict(verdict) for verdict in verdicts],
    }


def _measure_all(options: argparse.Namespace, device: torch.device) -> list[Case]:
    cases = []
    with _table.progress(len(options.cases)) as begin:
        for problem in options.cases:
            begin(problem.name)
            cases.append(jacobian.measure(problem, device, options.rounds, options.without, options.compile_limit))
    return cases


def _measure_random(count: int, device: torch.device) -> list[Sample]:
    with _table.progress(count) as begin:
        return list(_jacobian_random.measure(count, device, begin))


def _as_json(case: Case) -> dict[str, Any]:
    ratios = {f"times_faster_than_{group}": case.ratio(group) for group in ("eager", "compiled")}
    return {**dataclasses.asdict(case), **ratios}


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number")
    return int(text)
