"""Compare ``torchadx.functional.linear`` with eager PyTorch, torch.compile and what a careful user writes by hand."""

import argparse
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from rich.console import Console

from torchadx import activations, dispatch, tuning
from torchadx.bench import _arguments, _table, _targets, linear
from torchadx.bench._modes import MODES, Shape
from torchadx.bench._results import Case

HELP = "activation(x @ weight.T + bias)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    shapes = ",".join("x".join(map(str, shape)) for shape in linear.SHAPES)
    parser.add_argument(
        "--shapes", type=_shapes, default=list(linear.SHAPES), metavar="MxKxN,...",
        help=f"rows x in-features x out-features (default: {shapes})",
    )  # fmt: skip
    parser.add_argument(
        "--dtypes", type=_arguments.some_of(linear.DTYPES), default=["fp32", "bf16"],
        help="comma-separated (default: fp32,bf16)",
    )  # fmt: skip
    names = sorted(row.name for row in activations.known())
    parser.add_argument("--activation", default="gelu", choices=names, metavar="NAME", help="default: gelu")
    modes = [*MODES, "overhead"]
    parser.add_argument(
        "--modes", type=_arguments.some_of(modes), default=modes,
        help=f"comma-separated; overhead is forward and train at 4x8x8 (default: {','.join(modes)})",
    )  # fmt: skip
    parser.add_argument("--without", type=_arguments.words, default=[], help="contenders to leave out, e.g. compile")
    parser.add_argument("--rounds", type=_arguments.positive, default=30, help="interleaved rounds (default: 30)")


def run(options: argparse.Namespace, device: torch.device, console: Console) -> dict[str, Any]:
    """Measure and print every case that the options ask for; return all of it, fit for JSON."""
    backends = {
        dtype: dispatch.select("linear", torch.empty(0, dtype=linear.DTYPES[dtype], device=device))
        for dtype in options.dtypes
    }
    _table.print_backends(console, backends)
    cases = _measure_all(options, device)
    # the targets are stated for one activation on one kind of device
    stated = options.activation == "gelu" and device.type == "cpu"
    verdicts = _targets.judge(cases, device) if stated else []
    chosen = _chosen_for(cases)
    _table.print_results(console, cases, options.activation, chosen, verdicts)
    return {
        "backends": {dtype: choice._asdict() for dtype, choice in backends.items()},
        "choices": [_choice_as_json(record) for record in chosen],
        "settings": {"activation": options.activation, "rounds": options.rounds, "without": options.without},
        "cases": [_as_json(case) for case in cases],
        "targets": [dataclasses.asdict(verdict) for verdict in verdicts],
    }


def _measure_all(options: argparse.Namespace, device: torch.device) -> list[Case]:
    plan = list(dict.fromkeys(_plan(options.modes, options.shapes, options.dtypes)))
    cases = []
    with _table.progress(len(plan)) as begin:
        for mode, shape, dtype in plan:
            begin(f"{mode} {'x'.join(map(str, shape))} {dtype}")
            cases.append(
                linear.measure(mode, shape, dtype, options.activation, device, options.rounds, options.without)
            )
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


def _shapes(text: str) -> list[Shape]:
    return [_shape(word) for word in _arguments.words(text)]


def _shape(text: str) -> Shape:
    m, k, n = _arguments.sizes(text, "MxKxN")
    return m, k, n
