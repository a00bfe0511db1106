"""Make a payload small: records as columns of distinct values, and no more instants than a chart can show."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# of a chart some 1,000 pixels wide; each stretch of time keeps its lowest and its highest instant
_STRETCHES = 1500


def packed(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a payload with its long lists packed; ``unpacked`` in ``dom.js`` is the way back."""
    return {**payload, "passes": [_pass(one) for one in payload["passes"]]}


def _pass(one: Mapping[str, Any]) -> dict[str, Any]:
    small = dict(one)
    if one.get("saved") is not None:
        small["saved"] = {**one["saved"], "rows": columns(one["saved"]["rows"])}
    if one.get("graph") is not None:
        small["graph"] = {part: columns(one["graph"][part]) for part in ("nodes", "edges")}
    if one.get("timeline") is not None:
        devices = {name: thinned(device) for name, device in one["timeline"]["devices"].items()}
        small["timeline"] = {**one["timeline"], "devices": devices}
    return small


def columns(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Turn records with the same keys into columns, each as its distinct values and an index into them."""
    keys = list(records[0]) if records else []
    for record in records:
        if list(record) != keys:
            raise ValueError(f"records of one list have the same keys: got {list(record)} after {keys}")
    return {"length": len(records), "columns": {key: _column(record[key] for record in records) for key in keys}}


def _column(values: Iterable[Any]) -> dict[str, list[Any]]:
    places: dict[str, int] = {}
    distinct: list[Any] = []
    index = []
    for value in values:
        # lists have no hash, and 1 == True == 1.0
        text = json.dumps(value)
        if text not in places:
            places[text] = len(distinct)
            distinct.append(value)
        index.append(places[text])
    return {"distinct": distinct, "index": index}


def thinned(device: Mapping[str, Any], stretches: int = _STRETCHES) -> dict[str, Any]:
    """Keep the lowest and the highest instant of each stretch of time, with the first and the last of all.

    The result has ``instants``: how many there were.
    """
    times = device["times"]
    small = {**device, "instants": len(times)}
    if len(times) > 2 * stretches:
        kept = _extremes(times, [sum(values) for values in zip(*device["categories"].values(), strict=True)], stretches)
        small["times"] = [times[place] for place in kept]
        small["categories"] = {name: [values[place] for place in kept] for name, values in device["categories"].items()}
    small["times"] = [round(time, 4) for time in small["times"]]
    return small


def _extremes(times: Sequence[float], totals: Sequence[int], stretches: int) -> list[int]:
    start, length = times[0], (times[-1] - times[0]) or 1.0
    kept = {0, len(times) - 1}
    by_stretch: dict[int, list[int]] = {}
    for place, time in enumerate(times):
        by_stretch.setdefault(int((time - start) / length * stretches), []).append(place)
    for places in by_stretch.values():
        kept |= {min(places, key=totals.__getitem__), max(places, key=totals.__getitem__)}
    return sorted(kept)
