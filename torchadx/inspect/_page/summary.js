// totals as a row of figures

const FIGURES = [
  ["Naive", "naive_bytes", (totals) => `sum over ${counted(totals.tensors, "saved tensor")}, as if none shared memory`],
  ["Unique", "unique_bytes", () => "the storages they show, each once and whole"],
  ["Without parameters", "activation_bytes", () => "nor buffers, inputs and memory of others"],
  ["Held now", "held_bytes", (totals) => `by the graph, ${bytes(totals.resident_bytes)} of it on the device`],
  ["Measured peak", "peak_bytes", () => "by torch's allocator, during the step"],
];

function fillSummary(passes) {
  const totals = passes.map((pass) => pass.saved.totals);
  section("summary").append(
    make("dl", { class: "figures" }, ...FIGURES.map((figure) => summaryFigure(figure, totals))),
  );
  const every = passes.map((pass) => pass.saved.notes);
  const common = every[0].filter((note) => every.every((notes) => notes.includes(note)));
  addNotes("Notes", common);
  every.forEach((notes, index) =>
    addNotes(
      `Notes${of(passes, index)}`,
      notes.filter((note) => !common.includes(note)),
    ),
  );
}

function addNotes(title, notes) {
  if (notes.length === 0) return;
  section("summary").append(make("h3", {}, title), noteList(notes));
}

function summaryFigure([label, key, explain], totals) {
  const values = totals.map((one) => one[key]);
  const last = values[values.length - 1];
  const lines = [make("dd", { class: "value" }, last === null ? "–" : bytes(last))];
  if (values.length === 2 && !values.includes(null)) lines.push(comparison(values));
  const words = last === null ? "not measured" : explain(totals[totals.length - 1]);
  return make("div", { class: "figure" }, make("dt", {}, label), ...lines, make("dd", { class: "quiet" }, words));
}

function comparison([before, after]) {
  const kind = after < before ? "less" : after > before ? "more-bytes" : "same";
  const mark = make("span", { class: `change ${kind}` }, change(before, after));
  return make("dd", { class: "comparison" }, make("span", {}, `${bytes(before)} → ${bytes(after)}`), " ", mark);
}
