"""Pictures of reports and timelines, with matplotlib."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torchadx.inspect._names import module_name
from torchadx.memory.report import size

if TYPE_CHECKING:
    from torchadx.inspect._saved._report import SavedReport
    from torchadx.inspect._timeline._timeline import DeviceTimeline, Timeline

# distinguishable with any colour vision (Okabe and Ito)
COLORS = {
    "parameter": "#0072b2",
    "optimizer state": "#56b4e9",
    "gradient": "#e69f00",
    "activation": "#d55e00",
    "input": "#009e73",
    "temporary": "#999999",
}
_SHADES = {"forward": "#f4f4f4", "backward": "#e6e6e6", "optimizer": "#d8d8d8", "other": "#ffffff"}
_MIB = 1 << 20


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        message = 'draw() needs matplotlib: pip install "torchadx[inspect]"'
        raise ModuleNotFoundError(message, name=error.name) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_timeline(timeline: "Timeline", path: str | os.PathLike[str]) -> None:
    """Draw a timeline, a panel for each device."""
    figure = _figure(9.0, 0.6 + 3.6 * len(timeline.devices))
    panels = figure.subplots(len(timeline.devices), squeeze=False)[:, 0]
    for panel, (name, device) in zip(panels, timeline.devices.items(), strict=True):
        _draw_device(panel, name, device)
        for phase in timeline.phases:
            panel.axvspan(phase.start, phase.end, color=_SHADES[phase.name], lw=0, zorder=0)
            if phase.name != "other" and phase.end - phase.start > 0.05 * device.curve.times[-1]:
                middle = (phase.start + phase.end) / 2
                panel.text(middle, 1.01, phase.name, transform=panel.get_xaxis_transform(), ha="center", va="bottom")
    figure.savefig(path, dpi=160)


def _draw_device(panel: Any, name: str, device: "DeviceTimeline") -> None:
    used = {category: values for category, values in device.curve.categories.items() if any(values)}
    heights = [[value / _MIB for value in values] for values in used.values()]
    panel.stackplot(
        device.curve.times,
        *heights,
        labels=list(used),
        colors=[COLORS[category] for category in used],
        step="post",
        linewidth=0,
        zorder=1,
    )
    top = device.peak_bytes / _MIB
    panel.plot([device.peak_ms], [top], "kv", markersize=5, zorder=2)
    panel.annotate(
        f"at most {size(device.peak_bytes)}",
        (device.peak_ms, top),
        xytext=(0, 7),
        textcoords="offset points",
        ha="right" if device.peak_ms > device.curve.times[-1] / 2 else "left",
    )
    panel.set(xlabel="ms", ylabel=f"MiB on {name}", ylim=(0, 1.18 * top), xlim=(0, device.curve.times[-1]))
    panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, reverse=True)


def draw_saved(reports: "Sequence[tuple[str, SavedReport]]", path: str | os.PathLike[str], limit: int) -> None:
    """Draw what modules hold as bars, the bars of several reports beside each other."""
    sums = [{row.module: row.own_bytes for row in report.by_module()} for _, report in reports]
    most: dict[str | None, int] = {}
    for each in sums:
        for module, nbytes in each.items():
            most[module] = max(most.get(module, 0), nbytes)
    modules = sorted((module for module in most if most[module]), key=lambda module: -most[module])[:limit]
    figure = _figure(8.0, 1.2 + 0.3 * max(1, len(modules)) * max(1, 0.6 * len(reports)))
    panel = figure.subplots()
    height = 0.8 / len(reports)
    for index, ((name, report), each) in enumerate(zip(reports, sums, strict=True)):
        places = [place + (index - (len(reports) - 1) / 2) * height for place in range(len(modules))]
        values = [each.get(module, 0) / _MIB for module in modules]
        label = f"{name}: {size(report.held_bytes)}".removeprefix(": ")
        bars = panel.barh(places, values, height, color=list(COLORS.values())[(3, 0, 4, 2)[index % 4]], label=label)
        panel.bar_label(bars, [size(value * _MIB) for value in values], padding=3, fontsize=8)
    panel.set_yticks(range(len(modules)), [module_name(module) for module in modules], parse_math=False)
    panel.set(xlabel="MiB held for backward", ylim=(max(1, len(modules)) - 0.4, -0.6))
    panel.margins(x=0.12)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=160)
