// the part of the page around the graph: buttons, the picture in its frame, and what is said about a node

const MOST_EXPANDED = 1500;
const ZOOM = 1.25;
const KINDS = [
  ["backward", "backward node"],
  ["leaf", "leaf"],
  ["saved", "saved tensor"],
  ["output", "output"],
  ["base", "base of a view"],
];

function fillGraph(passes) {
  if (passes.every((pass) => pass.graph === null)) {
    section("graph").append(make("p", {}, "No graph was recorded."));
    return;
  }
  const lead =
    "Modules are closed boxes at first: choose one to look inside, or a node to read about it. " +
    "Thick lines stand for several edges.";
  const legend = KINDS.map(([kind, words]) =>
    make("li", {}, make("span", { class: `swatch kind-${kind}`, "aria-hidden": "true" }), words),
  );
  const dotted = make("li", {}, make("span", { class: "swatch-dotted", "aria-hidden": "true" }), "view of");
  section("graph").append(make("p", { class: "lead" }, lead), make("ul", { class: "legend" }, ...legend, dotted));
  passes.forEach((pass, index) => {
    const heading = passHeading(passes, index);
    if (heading) section("graph").append(heading);
    section("graph").append(
      pass.graph === null
        ? make("p", {}, "No graph was recorded of this pass.")
        : graphPart(pass.graph, of(passes, index), index),
    );
  });
}

function graphPart(graph, of, index) {
  const model = graphModel(graph);
  const frame = make("div", {
    class: "graph-frame",
    tabindex: "0",
    role: "region",
    "aria-label": `Autograd graph${of}`,
  });
  const panel = make(
    "div",
    { class: "about", role: "status" },
    make("p", { class: "quiet" }, "Choose a box or a node."),
  );
  const tooMany = model.size > MOST_EXPANDED;
  const reason = `${number(model.size)} nodes are too many to open at once (at most ${number(MOST_EXPANDED)}).`;
  const why = make(
    "span",
    { class: "quiet", id: `why-${index}` },
    tooMany ? reason : `${counted(model.size, "node")}, ${counted(graph.edges.length, "edge")}`,
  );
  const buttons = [
    action("Expand all", () => openAll(true), { disabled: tooMany, "aria-describedby": `why-${index}` }),
    action("Collapse all", () => openAll(false)),
    action("Zoom out", () => zoom(1 / ZOOM)),
    action("Zoom in", () => zoom(ZOOM)),
  ];
  const after = make("span", { id: `after-graph-${index}`, tabindex: "-1" });
  const skip = make("a", { class: "skip", href: `#after-graph-${index}` }, "Skip the graph");
  let scale = 1;
  render();
  return make(
    "div",
    { class: "graph" },
    make("div", { class: "tools" }, ...buttons, why),
    skip,
    make("div", { class: "graph-pair" }, frame, panel),
    after,
  );

  function render() {
    const edges = layoutGraph(model);
    frame.replaceChildren(graphPicture(model, edges, { toggle, show }));
    size();
  }

  function size() {
    const svg = frame.firstElementChild;
    svg.setAttribute("width", model.root.width * scale);
    svg.setAttribute("height", model.root.height * scale);
  }

  function zoom(factor) {
    scale = Math.min(Math.max(scale * factor, 0.2), 3);
    size();
  }

  // the box stays where it was under the pointer, and keeps the focus
  function toggle(item) {
    const [x, y] = [item.x, item.y];
    item.open = !item.open;
    render();
    frame.scrollLeft += (item.x - x) * scale;
    frame.scrollTop += (item.y - y) * scale;
    frame.querySelector(`[data-key="${CSS.escape(item.key)}"]`).focus({ preventScroll: true });
  }

  function openAll(open) {
    for (const one of model.boxes.values()) one.open = open || one === model.root;
    render();
  }

  function show(item) {
    panel.replaceChildren(...(item.node ? aboutNode(item.node) : aboutBox(item)));
  }
}

function action(words, act, attributes = {}) {
  return make("button", { type: "button", onclick: act, ...attributes }, words);
}

function aboutNode(node) {
  return about(node.label, [["kind", node.kind], ["module", moduleName(node.module)], ...Object.entries(node.detail)]);
}

function aboutBox(item) {
  const counts = [
    ["nodes inside", item.count],
    ["of its own", item.nodes.length],
    ["boxes inside", item.boxes.length],
  ];
  return about(
    item.path,
    counts.map(([word, count]) => [word, number(count)]),
  );
}

function about(title, pairs) {
  const list = pairs.flatMap(([word, text]) => [make("dt", {}, word), make("dd", {}, text)]);
  return [make("p", { class: "label code" }, title), make("dl", { class: "pairs" }, ...list)];
}
