"""``python -m torchadx.bench``: compare torchadx with what PyTorch offers, in one run, on this machine."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from torchadx.bench import _machine

try:
    from torchadx.bench import (
        _inference_command,
        _inspect_command,
        _jacobian_command,
        _linear_command,
        _memory_command,
        _table,
    )
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] != "rich":
        raise
    sys.exit('torchadx.bench prints its tables with rich, which is not installed: pip install "torchadx[bench]"')

COMMANDS = {
    "inference": _inference_command,
    "inspect": _inspect_command,
    "jacobian": _jacobian_command,
    "linear": _linear_command,
    "memory": _memory_command,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark that the command line asks for.

    Args:
        arguments: Command-line arguments; ``None`` reads ``sys.argv``.
    """
    options = _parser().parse_args(arguments)
    device = torch.device(options.device)
    torch.manual_seed(0)
    machine = _machine.describe(device)
    console = _table.console()
    _table.print_header(console, machine)
    report = {"machine": machine, **options.run(options, device, console)}
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
        console.print(f"written: {options.json}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m torchadx.bench", description=__doc__)
    benchmarks = parser.add_subparsers(required=True, metavar="BENCHMARK")
    for name, command in COMMANDS.items():
        benchmark = benchmarks.add_parser(name, help=command.HELP, description=command.__doc__)
        command.add_arguments(benchmark)
        benchmark.add_argument(
            "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: cuda where there is one"
        )
        benchmark.add_argument("--json", type=Path, metavar="FILE", help="also write all of it, quartiles too, to FILE")
        benchmark.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    main()
