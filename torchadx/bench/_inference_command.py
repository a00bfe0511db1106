"""Compare modules wrapped by torchadx.InferenceAware with eager PyTorch, torch.compile and torch.jit."""

import argparse
import dataclasses
from typing import Any

import torch
from rich.console import Console

from torchadx.bench import (
    _arguments,
    _inference_cases,
    _inference_contenders,
    _inference_table,
    _inference_targets,
    _table,
    inference,
)
from torchadx.bench._inference_contenders import COMPILE, EAGER
from torchadx.bench._inference_results import Case

HELP = "whole modules in inference mode: eager, compiled, frozen, wrapped"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    stated = [problem for problems in _inference_cases.MODELS.values() for problem in problems]
    parser.add_argument(
        "--cases", type=_inference_cases.parse, default=stated, metavar="NAME[@BATCH],...",
        help=f"comma-separated; mlp-WIDTH-...-WIDTH is any MLP (default: {','.join(_inference_cases.MODELS)})",
    )  # fmt: skip
    groups = ",".join(_inference_contenders.GROUPS)
    parser.add_argument(
        "--without", type=_arguments.some_of(_inference_contenders.GROUPS), default=[], metavar="NAME,...",
        help=f"contenders to leave out, of {groups}",
    )  # fmt: skip
    parser.add_argument("--rounds", type=_arguments.positive, default=20, help="interleaved rounds (default: 20)")


def run(options: argparse.Namespace, device: torch.device, console: Console) -> dict[str, Any]:
    """Measure and print every case that the options ask for; return all of it, fit for JSON."""
    cases = _measure_all(options, device)
    _inference_table.print_cases(console, cases)
    # the targets are stated for one kind of device
    verdicts = _inference_targets.judge(cases) if device.type == "cpu" else []
    if verdicts:
        console.print("", _table.targets(verdicts), sep="\n")
    return {
        "settings": {"rounds": options.rounds, "without": options.without},
        "cases": [_as_json(case) for case in cases],
        "targets": [dataclasses.asdict(verdict) for verdict in verdicts],
    }


def _measure_all(options: argparse.Namespace, device: torch.device) -> list[Case]:
    cases = []
    with _table.progress(len(options.cases)) as begin:
        for problem in options.cases:
            begin(problem.name)
            cases.append(inference.measure(problem, device, options.rounds, options.without))
    return cases


def _as_json(case: Case) -> dict[str, Any]:
    rows = [
        {
            **dataclasses.asdict(row),
            "times_faster_than_eager": case.ratio(row.name, EAGER),
            "times_faster_than_compile": case.ratio(row.name, COMPILE),
        }
        for row in case.rows
    ]
    return {**dataclasses.asdict(case), "rows": rows}
