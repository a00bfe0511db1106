// memory by category over time, for each device, with what was alive at the peak and what made it rise

const CATEGORIES = ["parameter", "gradient", "optimizer state", "activation", "input", "temporary"];
const RISES = 15;
// pixels: a letter with its share of the space about it, and a chart with no room for leaning labels
const LETTERS = 9;
const SMALL = 600;
// of the time shown
const SHORTEST = 0.01;

function fillTimeline(passes) {
  if (passes.every((pass) => pass.timeline === null)) {
    section("timeline").append(make("p", {}, "No timeline was recorded."));
    return;
  }
  passes.forEach((pass, index) => {
    const heading = passHeading(passes, index);
    if (heading) section("timeline").append(heading);
    if (pass.timeline === null) {
      section("timeline").append(make("p", {}, "No timeline was recorded of this pass."));
      return;
    }
    const parts = Object.keys(pass.timeline.devices).map((name) => deviceParts(passes, index, name));
    const tables = [...parts.map((part) => part.table), risesTable(pass.timeline.rises, of(passes, index))];
    section("timeline").append(...parts.map((part) => part.figure), make("div", { class: "pair" }, ...tables));
    if (pass.timeline.notes.length > 0) section("timeline").append(noteList(pass.timeline.notes));
  });
}

function deviceParts(passes, index, name) {
  const { devices, phases } = passes[index].timeline;
  const device = devices[name];
  const highest = Math.max(...passes.map((pass) => pass.timeline?.devices[name]?.peak.bytes ?? 0));
  const { peak } = device;
  const words = `${name}: peak of ${bytes(peak.bytes)} at ${milliseconds(peak.time)}${phaseAt(phases, peak.time)}.`;
  const holder = make("div", {
    class: "chart timeline",
    role: "img",
    "aria-label": `Memory over time${of(passes, index)}, ${words}`,
  });
  const lasted = phases.map((phase) => `${phase.name} ${milliseconds(phase.end - phase.start)}`);
  const legend = Object.entries(device.categories).filter(([, values]) => Math.max(...values) > 0);
  const caption = make("figcaption", {}, make("strong", {}, words), ` ${lasted.join(", ")}.${thinning(device)}`);
  const figure = make("figure", {}, caption, legendOf(legend.map(([category]) => category)), holder);
  chart(holder, () => timelineFigure(device, legend, phases, highest, holder.clientWidth));
  return { figure, table: aliveTable(peak.alive, `Alive at the peak of ${name}${of(passes, index)}`) };
}

function phaseAt(phases, time) {
  const phase = phases.find((one) => one.start <= time && time <= one.end);
  return phase ? ` (${phase.name})` : "";
}

function thinning(device) {
  const shown = device.times.length;
  if (shown === device.instants) return "";
  return ` Drawn: ${number(shown)} of ${number(device.instants)} instants, the lowest and the highest of each stretch.`;
}

function categoryToken(category) {
  const place = CATEGORIES.indexOf(category);
  return `category-${place < 0 ? "other" : place}`;
}

function legendOf(categories) {
  const items = categories.map((category) => {
    const swatch = make("span", {
      class: "swatch",
      style: `background:var(--${categoryToken(category)})`,
      "aria-hidden": "true",
    });
    return make("li", {}, swatch, category);
  });
  return make("ul", { class: "legend" }, ...items);
}

function timelineFigure(device, stacked, phases, highest, width) {
  const data = stacked.map(([category, values]) => ({
    type: "scatter",
    mode: "lines",
    stackgroup: "one",
    name: category,
    x: device.times,
    y: values,
    customdata: values.map(bytes),
    line: { shape: "hv", width: 0.8, color: color(categoryToken(category)) },
    fillcolor: color(categoryToken(category)),
    hovertemplate: "%{customdata}",
  }));
  const first = Math.min(device.times[0], ...phases.map((phase) => phase.start));
  const last = Math.max(device.times[device.times.length - 1], ...phases.map((phase) => phase.end));
  const ticks = byteTicks(highest);
  const axis = { gridcolor: color("line"), zerolinecolor: color("line"), linecolor: color("line") };
  const labels = phases.flatMap((phase) => bandLabel(phase, (phase.end - phase.start) / (last - first), width));
  const layout = {
    showlegend: false,
    hovermode: "x unified",
    margin: { t: 48, l: 64, r: 12, b: 40 },
    xaxis: { ...axis, range: [first, last], ticksuffix: " ms", nticks: width < SMALL ? 4 : 8, showgrid: false },
    yaxis: { ...axis, range: [0, highest * 1.16 || 1], tickvals: ticks, ticktext: ticks.map(bytes), fixedrange: true },
    shapes: phases.map((phase, place) => band(phase, place)),
    annotations: [...labels, peakMark(device.peak, first, last)],
  };
  return { data, layout };
}

// steps of a power of two, so that every tick is a round number of its unit
function byteTicks(highest) {
  const step = 2 ** Math.ceil(Math.log2(Math.max(highest, 1) / 6));
  return Array.from({ length: Math.floor((highest * 1.16) / step) + 1 }, (_, place) => place * step);
}

function band(phase, place) {
  const area = { type: "rect", xref: "x", yref: "paper", x0: phase.start, x1: phase.end, y0: 0, y1: 1 };
  return { ...area, layer: "below", line: { width: 0 }, fillcolor: color(place % 2 ? "band-odd" : "band-even") };
}

// a label wider than its band leans on it; the shortest have their names in the caption alone
function bandLabel(phase, share, width) {
  const narrow = share * width < LETTERS * phase.name.length;
  if (share < SHORTEST || (narrow && (phase.name === "other" || width < SMALL))) return [];
  const place = {
    x: (phase.start + phase.end) / 2,
    xref: "x",
    y: 1,
    yref: "paper",
    yanchor: "bottom",
    showarrow: false,
  };
  const leaning = narrow ? { textangle: 35, xanchor: "right" } : {};
  return [{ ...place, ...leaning, text: plain(phase.name), font: { color: color("quiet") } }];
}

function peakMark(peak, first, last) {
  const left = peak.time > (first + last) / 2;
  const arrow = {
    showarrow: true,
    arrowhead: 2,
    arrowsize: 0.9,
    arrowwidth: 1.5,
    arrowcolor: color("text"),
    ax: left ? -46 : 46,
    ay: -16,
  };
  const box = { bgcolor: color("surface"), bordercolor: color("line"), borderpad: 3, xanchor: left ? "right" : "left" };
  return { x: peak.time, y: peak.bytes, text: `peak ${bytes(peak.bytes)}`, ...arrow, ...box };
}

function aliveTable(alive, caption) {
  const columns = [
    { label: "Module", value: (row) => moduleName(row.module), code: true },
    { label: "Bytes", value: (row) => row.nbytes, text: bytes, numeric: true },
    { label: "Category", value: (row) => row.category },
    { label: "Tensors", value: (row) => row.count, text: number, numeric: true },
    { label: "Made by", value: (row) => row.op, code: true },
  ];
  const rows = [...alive].sort((a, b) => b.nbytes - a.nbytes);
  return makeTable({ caption, columns, rows, page: RISES });
}

function risesTable(rises, of) {
  const columns = [
    { label: "Module", value: (row) => moduleName(row.module), code: true },
    { label: "Rise", value: (row) => row.bytes, text: bytes, numeric: true },
    { label: "Phase", value: (row) => row.phase },
    { label: "Device", value: (row) => row.device },
  ];
  return makeTable({ caption: `Which module owns each rise${of}`, columns, rows: rises.slice(0, RISES) });
}
