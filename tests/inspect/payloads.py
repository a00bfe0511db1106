"""Payloads of the page: a small one, two passes, many rows, a large graph, and one whose every string is hostile."""

from typing import Any

HOSTILE = (
    "</script><script>alert(1)</script><!--<img src=x onerror=alert(2)>"
    '<a href="mailto:x">x</a>"\'&${title}%{label}<b>\u2028'
)
CATEGORIES = ("parameter", "gradient", "optimizer state", "activation", "input", "temporary")


def small() -> dict[str, Any]:
    """One pass over a network of two blocks, with everything."""
    return {"title": "Saved memory of Sequential", "subtitle": "Sequential, torch 2.13.0, cpu", "passes": [one_pass()]}


def bare() -> dict[str, Any]:
    """One pass of which only the saved tensors are known."""
    return {**small(), "passes": [{**one_pass(), "timeline": None, "graph": None, "profile": None}]}


def only_graph() -> dict[str, Any]:
    """One pass of which only the graph is known, as that of a single loss."""
    return {**small(), "passes": [{**one_pass(), "saved": None, "timeline": None, "profile": None}]}


def two_passes() -> dict[str, Any]:
    after = one_pass("after", scale=0.4)
    after["saved"]["totals"]["naive_bytes"] = one_pass()["saved"]["totals"]["naive_bytes"]
    return {**small(), "passes": [one_pass("before"), after]}


def many_rows(count: int = 5000) -> dict[str, Any]:
    payload = bare()
    payload["passes"][0]["saved"] = saved([row(place, f"layers.{place // 50}.{place % 7}") for place in range(count)])
    return payload


def large_graph(nodes: int = 3000, modules: int = 200) -> dict[str, Any]:
    """A chain of modules, ten to a block, each with a chain of nodes."""
    payload = bare()
    each = nodes // modules
    paths = [f"blocks.{place // 10}.{place % 10}" for place in range(modules)]
    listed = [node(place, f"AddBackward{place}", "backward", paths[place // each]) for place in range(nodes)]
    payload["passes"][0]["graph"] = {"nodes": listed, "edges": [edge(place, place + 1) for place in range(nodes - 1)]}
    return payload


def hostile() -> dict[str, Any]:
    """Every string that is no word of the contract is ``HOSTILE``."""
    kept = {"kind", "style", "name"}

    def replaced(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {HOSTILE if key == "detail" else name: replaced(inner, name) for name, inner in value.items()}
        if isinstance(value, list):
            return [replaced(inner, key) for inner in value]
        return HOSTILE if isinstance(value, str) and key not in kept else value

    return replaced(small())


def one_pass(name: str = "", scale: float = 1.0) -> dict[str, Any]:
    rows = [row(place, module, scale) for place, module in enumerate(MODULES * 3)]
    return {
        "name": name,
        "saved": saved(rows, ["Sizes of tensors that other code made are those seen when they were saved."]),
        "timeline": timeline(scale),
        "graph": graph(),
        "profile": profile(),
    }


MODULES: tuple[str | None, ...] = (
    *("encoder.0.attention.query", "encoder.0.attention.key", "encoder.0.attention", "encoder.0.norm"),
    *("encoder.0.feedforward.0", "encoder.0.feedforward.2", "encoder.1.attention.query", "encoder.1.norm"),
    *("encoder.1.feedforward.0", "head", "", "CrossEntropyLoss", None),
)


def saved(rows: list[dict[str, Any]], notes: list[str] | None = None) -> dict[str, Any]:
    unique = sum(one["storage_bytes"] for one in rows)
    held = sum(one["held_bytes"] for one in rows)
    totals = {"tensors": 2 * len(rows), "naive_bytes": 2 * unique, "unique_bytes": unique, "activation_bytes": held}
    totals |= {"held_bytes": held, "resident_bytes": held // 2, "peak_bytes": 2 * unique}
    return {"totals": totals, "rows": rows, "notes": notes or []}


def row(place: int, module: str | None, scale: float = 1.0) -> dict[str, Any]:
    width = 16 * (1 + place % 9)
    parameter = place % 5 == 4
    nbytes = 4 * 128 * width
    return {
        **{"module": module, "source": f"model.py:{30 + place}", "node": "AddmmBackward0", "slot": "mat1"},
        "slots": ["AddmmBackward0.mat1", "ReluBackward0.result"],
        **{"shape": [128, width], "dtype": "float32", "strides": [width, 1]},
        **{"nbytes": nbytes, "storage_bytes": nbytes, "marginal_bytes": 0 if parameter else nbytes},
        "held_bytes": 0 if parameter else int(nbytes * scale),
        "alias": f"parameter {module}.weight" if parameter else None,
        "relation": "shared by 2 slots",
        **{"residence": "cpu" if scale == 1 else "int8@host", "saved_at": place, "used_at": 400 - place},
        "why": "The gradient of the weight is the product of the cotangent with the layer's input.",
        "remedy": "torchadx.nn.FusedLinear keeps it once for both slots.",
    }


def timeline(scale: float = 1.0, instants: int = 90) -> dict[str, Any]:
    times = [0.1 * place for place in range(instants)]
    half = instants // 2
    hill = [place if place < half else instants - place for place in range(instants)]
    unit = 1 << 16
    values = {
        "parameter": [20 * unit] * instants,
        "gradient": [max(0, place - half) * unit // 2 for place in range(instants)],
        "optimizer state": [8 * unit] * instants,
        "activation": [int(3 * unit * height * scale) for height in hill],
        "input": [2 * unit] * instants,
        "temporary": [(place % 5) * 2 * unit for place in range(instants)],
    }
    totals = [sum(column) for column in zip(*values.values(), strict=True)]
    peak = totals.index(max(totals))
    alive = [
        {"category": "activation", "module": module, "op": "addmm", "nbytes": (place + 1) * unit, "count": place + 1}
        for place, module in enumerate(MODULES)
    ]
    rises = [
        {"device": "cpu", "module": module, "phase": "forward", "bytes": (40 - place) * unit}
        for place, module in enumerate(MODULES * 2)
    ]
    return {
        "devices": {
            "cpu": {
                **{"times": times, "categories": values},
                "peak": {"time": times[peak], "bytes": totals[peak], "alive": alive},
            }
        },
        "phases": [
            {"name": "forward", "start": 0.0, "end": times[half]},
            {"name": "backward", "start": times[half], "end": times[-12]},
            {"name": "optimizer", "start": times[-12], "end": times[-1]},
        ],
        "rises": rises,
        "notes": ["4 blocks were freed unseen"],
    }


def graph() -> dict[str, Any]:
    nodes = [node(0, "input\n(128, 64)", "leaf", None)]
    edges = []
    last = 0
    for path in ("encoder.0.attention.query", "encoder.0.norm", "encoder.1.attention.query", "encoder.1.norm", "head"):
        start = len(nodes)
        nodes += [
            node(start, f"{path}.weight\n(64, 64)", "leaf", path),
            node(start + 1, "AccumulateGrad", "backward", path),
            node(start + 2, "AddmmBackward0", "backward", path),
            node(start + 3, "mat1\n(128, 64)", "saved", path),
        ]
        edges += [edge(start, start + 1), edge(start + 1, start + 2), edge(start + 3, start + 2), edge(last, start + 2)]
        last = start + 2
    start = len(nodes)
    nodes += [
        node(start, "AddBackward0", "backward", ""),
        node(start + 1, "NllLossBackward0", "backward", "CrossEntropyLoss"),
        node(start + 2, "loss\n()", "output", None),
        node(start + 3, "base\n(1)", "base", None),
    ]
    edges += [edge(last, start), edge(3, start), edge(start, start + 1), edge(start + 1, start + 2)]
    return {"nodes": nodes, "edges": [*edges, edge(start + 3, start + 2, "dotted")]}


def node(place: int, label: str, kind: str, module: str | None) -> dict[str, Any]:
    detail = {"sequence number": str(place), "shape": "(128, 64)"}
    return {"id": place, "label": label, "kind": kind, "module": module, "detail": detail}


def edge(source: int, target: int, style: str = "solid") -> dict[str, Any]:
    return {"source": source, "target": target, "style": style}


def profile() -> dict[str, Any]:
    def module(place: int, path: str | None) -> dict[str, Any]:
        times = ("forward_self_ms", "forward_ms", "backward_self_ms", "backward_ms")
        return {
            **{"module": path, "class": "Linear", "calls": 1},
            **{name: 0.37 * (place + 1) * (1 + rank) / 2 for rank, name in enumerate(times)},
            **{"forward_bytes": 4096 * place, "backward_bytes": -512 * place},
            **{"device_forward_ms": 0.0, "device_backward_ms": 0.0},
        }

    advice = {
        "what": "encoder.0.attention waits for its softmax",
        "why": "A third of its backward is one softmax over a tensor of 2 MiB.",
        "remedy": "scaled_dot_product_attention computes both in one kernel.",
    }
    return {"modules": [module(place, path) for place, path in enumerate(MODULES)], "advice": [advice]}
