// the graph as SVG: edges below, boxes and nodes in the order of reading

let pictures = 0;

function graphPicture(model, edges, actions) {
  pictures += 1;
  const arrow = `arrow-${pictures}`;
  const { width, height } = model.root;
  const head = draw("path", { d: "M0 0 8 4 0 8z", class: "arrow" });
  const size = { viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto-start-reverse" };
  const lines = draw("g", { "aria-hidden": "true" }, ...edges.map((edge) => edgeLine(edge, arrow)));
  const parts = [
    draw("defs", {}, draw("marker", { id: arrow, ...size }, head)),
    lines,
    ...insideOf(model.root, actions),
  ];
  return draw(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": "Autograd graph" },
    ...parts,
  );
}

function insideOf(outer, actions) {
  const boxes = outer.boxes.map((inner) => boxShape(inner, actions));
  return [...boxes, ...outer.nodes.map((item) => nodeShape(item, actions))]
    .sort((a, b) => a.y - b.y)
    .map((one) => one.shape);
}

function boxShape(item, actions) {
  const { x, y, width, height, open } = item;
  const words = `module ${item.path}, ${counted(item.count, "node")}`;
  const button = draw("g", {
    class: "box-button",
    tabindex: "0",
    role: "button",
    "aria-expanded": String(open),
    "aria-label": words,
    "data-key": item.key,
  });
  const middle = x + width / 2;
  button.append(draw("rect", { x, y, width, height: open ? TITLE : height, rx: 6 }));
  button.append(
    draw("path", {
      class: "sign",
      d: sign(open),
      transform: `translate(${x + 14} ${y + (open ? TITLE : height) / 2})`,
    }),
  );
  if (open) button.append(label(shortened(item.name), x + 26, y + 17, "start"));
  else
    button.append(
      label(shortened(item.name), middle + 8, y + 18),
      label(counted(item.count, "node"), middle + 8, y + 34, "middle", "count"),
    );
  onActivate(button, () => actions.toggle(item));
  button.addEventListener("focus", () => actions.show(item));
  const frame = open ? [draw("rect", { class: "frame", x, y, width, height, rx: 6 })] : [];
  return {
    y,
    shape: draw("g", { class: open ? "box open" : "box" }, ...frame, button, ...(open ? insideOf(item, actions) : [])),
  };
}

function sign(open) {
  return open ? "M-4 -2 0 3 4 -2" : "M-2 -4 3 0 -2 4";
}

function nodeShape(item, actions) {
  const { x, y, width, height, node } = item;
  const lines = nodeLines(node);
  const attributes = { class: `node kind-${node.kind}`, tabindex: "0", role: "img", "data-key": item.key };
  const shape = draw("g", { ...attributes, "aria-label": `${node.kind} ${node.label}` });
  shape.append(draw("rect", { x, y, width, height, rx: 2 }));
  lines.forEach((line, place) => shape.append(label(line, x + width / 2, y + 18 + place * LINE)));
  shape.addEventListener("focus", () => actions.show(item));
  shape.addEventListener("click", () => actions.show(item));
  return { y, shape };
}

function label(text, x, y, anchor = "middle", kind = null) {
  return draw("text", { x, y, "text-anchor": anchor, class: kind }, text);
}

function edgeLine(edge, arrow) {
  const attributes = { class: edge.dotted ? "edge dotted" : "edge", "marker-end": `url(#${arrow})` };
  return draw("path", {
    ...attributes,
    d: curve(edge.points),
    "stroke-width": Math.min(1 + Math.log2(edge.count) / 2, 3),
  });
}

// through the middles of the stretches, with the points between as controls
function curve(points) {
  const middles = points.slice(1).map((point, place) => middle(points[place], point));
  const bends = middles.slice(1).map((to, place) => `Q${spot(points[place + 1])} ${spot(to)}`);
  return `M${spot(points[0])} L${spot(middles[0])} ${bends.join(" ")} L${spot(points[points.length - 1])}`;
}

function middle(one, other) {
  return { x: (one.x + other.x) / 2, y: (one.y + other.y) / 2 };
}

function spot({ x, y }) {
  return `${x.toFixed(1)} ${y.toFixed(1)}`;
}

function onActivate(element, action) {
  element.addEventListener("click", action);
  element.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    action();
  });
}
