"""``python -m torchadx.bench linear``: compare torchadx with what PyTorch offers, in one run, on this machine."""

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from torchadx import activations, dispatch, tuning
from torchadx.bench import _machine, linear
from torchadx.bench._modes import MODES, Shape
from torchadx.bench._results import Case

try:
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from torchadx.bench import _table, _targets
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] != "rich":
        raise
    sys.exit('torchadx.bench prints its tables with rich, which is not installed: pip install "torchadx[bench]"')


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
    backends = {
        dtype: dispatch.select("linear", torch.empty(0, dtype=linear.DTYPES[dtype], device=device))
        for dtype in options.dtypes
    }
    _table.print_header(console, machine, backends)
    cases = _measure_all(options, device)
    # the targets are stated for one activation on one kind of device
    stated = options.activation == "gelu" and device.type == "cpu"
    verdicts = _targets.judge(cases, device) if stated else []
    chosen = _chosen_for(cases)
    _table.print_results(console, cases, options.activation, chosen, verdicts)
    if options.json:
        report = {
            "machine": machine,
            "backends": {dtype: choice._asdict() for dtype, choice in backends.items()},
            "choices": [_choice_as_json(record) for record in chosen],
            "settings": {"activation": options.activation, "rounds": options.rounds, "without": options.without},
            "cases": [_as_json(case) for case in cases],
            "targets": [dataclasses.asdict(verdict) for verdict in verdicts],
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")
        console.print(f"written: {options.json}")


def _measure_all(options: argparse.Namespace, device: torch.device) -> list[Case]:
    plan = list(dict.fromkeys(_plan(options.modes, options.shapes, options.dtypes)))
    columns = (SpinnerColumn(), TextColumn("{task.completed}/{task.total} {task.description}"), TimeElapsedColumn())
    cases = []
    # drawn between cases only: a thread that redraws would disturb the timings
    with Progress(*columns, transient=True, auto_refresh=False) as progress:
        task = progress.add_task("", total=len(plan))
        for mode, shape, dtype in plan:
            progress.update(task, description=f"{mode} {'x'.join(map(str, shape))} {dtype}", refresh=True)
            cases.append(
                linear.measure(mode, shape, dtype, options.activation, device, options.rounds, options.without)
            )
            progress.advance(task)
    return cases


def _plan(modes: Sequence[str], shapes: Sequence[Shape], dtypes: Sequence[str]) -> Iterator[tuple[str, Shape, str]]:
    yield from itertools.product((mode for mode in modes if mode != "overhead"), shapes, dtypes)
    if "overhead" in modes:
        yield from itertools.product(("forward", "train"), [linear.OVERHEAD_SHAPE], dtypes)


def _chosen_for(cases: Sequence[Case]) -> list[tuning.Record]:
    """Of what is tuned on this machine, the choices for the sizes and dtypes that were measured here."""
    met = {(tuning.bucket(m), k, n, linear.DTYPES[case.dtype]) for case in cases for m, k, n in [case.shape]}
    return [r for r in tuning.list() if (r.key.m, r.key.k, r.key.n, r.key.dtype) in met]


def _as_json(case: Case) -> dict[str, Any]:
    contenders = [
        {
            **dataclasses.asdict(row),
            "times_faster_than_eager": case.ratio(row.name, "eager"),
            "times_faster_than_compile": case.ratio(row.name, "compile"),
            "share_of_bare_gemm": case.ratio(row.name, "bare GEMM"),
            "tflops": case.flops / row.timing.median / 1e12 if row.timing else None,
        }
        for row in case.rows
    ]
    return {**dataclasses.asdict(case), "rows": contenders}


def _choice_as_json(record: tuning.Record) -> dict[str, Any]:
    key = record.key._asdict() | {"device": str(record.key.device), "dtype": str(record.key.dtype)}
    return {**record._asdict(), "key": key}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m torchadx.bench", description=__doc__)
    benchmarks = parser.add_subparsers(required=True, metavar="BENCHMARK")
    linear_parser = benchmarks.add_parser("linear", help="activation(x @ weight.T + bias)")
    shapes = ",".join("x".join(map(str, shape)) for shape in linear.SHAPES)
    linear_parser.add_argument(
        "--shapes", type=_shapes, default=list(linear.SHAPES), metavar="MxKxN,...",
        help=f"rows x in-features x out-features (default: {shapes})",
    )  # fmt: skip
    linear_parser.add_argument(
        "--dtypes", type=_names(linear.DTYPES), default=["fp32", "bf16"], help="comma-separated (default: fp32,bf16)"
    )
    names = sorted(row.name for row in activations.known())
    linear_parser.add_argument("--activation", default="gelu", choices=names, metavar="NAME", help="default: gelu")
    modes = [*MODES, "overhead"]
    linear_parser.add_argument(
        "--modes", type=_names(modes), default=modes,
        help=f"comma-separated; overhead is forward and train at 4x8x8 (default: {','.join(modes)})",
    )  # fmt: skip
    linear_parser.add_argument("--without", type=_split, default=[], help="contenders to leave out, e.g. compile")
    linear_parser.add_argument("--rounds", type=int, default=30, help="interleaved rounds (default: 30)")
    linear_parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: cuda where there is one"
    )
    linear_parser.add_argument("--json", type=Path, metavar="FILE", help="also write all of it, quartiles too, to FILE")
    return parser


def _split(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _names(known: Collection[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        words = _split(text)
        unknown = [word for word in words if word not in known]
        if unknown or not words:
            raise argparse.ArgumentTypeError(f"{text!r}: expected some of {','.join(known)}")
        return words

    return parse


def _shapes(text: str) -> list[Shape]:
    return [_shape(word) for word in _split(text)]


def _shape(text: str) -> Shape:
    sizes = text.lower().split("x")
    if len(sizes) != 3 or not all(size.isdecimal() for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r}: expected MxKxN, e.g. 256x1024x4096")
    m, k, n = map(int, sizes)
    return m, k, n


if __name__ == "__main__":
    main()
