// positions, from the inside out: an open box is laid out first, then stands as one large node in its parent

const TITLE = 26;
const PAD = 12;
const LETTER = 7.3;
const LINE = 16;
const LONGEST = 34;

// where edges cross the border of an open box
const IN = " in";
const OUT = " out";

function layoutGraph(model) {
  const routes = new Map();
  const edges = visibleEdges(model).map((edge) => ({ ...edge, legs: legs(edge, routes) }));
  layoutBox(model.root, routes);
  settle(model.root, 0, 0);
  return edges.map((edge) => ({ ...edge, points: edge.legs.flatMap(settled) }));
}

function settled({ level, points }) {
  return points.map(({ x, y }) => ({ x: level.x + x, y: level.y + y }));
}

// an edge leaves its boxes one by one, crosses to a sibling, and enters boxes one by one
function legs(edge, routes) {
  const [one, other] = siblings(edge.from, edge.to);
  const out = between(edge.from, one).map((item) => leg(routes, item.parent, item.key, OUT));
  const into = between(edge.to, other).map((item) => leg(routes, item.parent, IN, item.key));
  return [...out, leg(routes, one.parent, one.key, other.key), ...into.reverse()];
}

// an item and the boxes around it, innermost first, as far as they are inside an outer one
function between(item, outer) {
  const chain = [];
  for (let place = item; place !== outer; place = place.parent) chain.push(place);
  return chain;
}

function leg(routes, level, from, to) {
  if (!routes.has(level)) routes.set(level, new Map());
  const here = routes.get(level);
  const key = `${from} > ${to}`;
  if (!here.has(key)) here.set(key, { level, from, to, points: [] });
  return here.get(key);
}

function layoutBox(outer, routes) {
  const graph = new dagre.graphlib.Graph();
  graph.setGraph({ rankdir: "TB", nodesep: 18, ranksep: 28, edgesep: 8, marginx: PAD, marginy: PAD });
  const inside = [...outer.boxes, ...outer.nodes];
  for (const item of inside) {
    if (item.open) layoutBox(item, routes);
    else Object.assign(item, closedSize(item));
    graph.setNode(item.key, { width: item.width, height: item.height });
  }
  const here = [...(routes.get(outer)?.values() ?? [])];
  addPorts(graph, here);
  for (const { from, to } of here) graph.setEdge(from, to, {});
  dagre.layout(graph);
  const top = outer.parent ? TITLE : 0;
  for (const item of inside) {
    const { x, y, width, height } = graph.node(item.key);
    Object.assign(item, { dx: x - width / 2, dy: y - height / 2 + top });
  }
  for (const route of here)
    route.points = graph.edge(route.from, route.to).points.map(({ x, y }) => ({ x, y: y + top }));
  outer.width = Math.max(graph.graph().width, textWidth(outer.name) + 2 * PAD + 20);
  outer.height = graph.graph().height + top;
}

// edges of no weight keep the entrance above, and the exit below, of all that is inside
function addPorts(graph, here) {
  const items = graph.nodes();
  const [starts, ends] = [new Set(here.map(({ from }) => from)), new Set(here.map(({ to }) => to))];
  if (starts.has(IN)) {
    graph.setNode(IN, { width: 1, height: 1 });
    const inner = new Set(here.filter(({ from }) => from !== IN).map(({ to }) => to));
    for (const item of items.filter((key) => !inner.has(key))) graph.setEdge(IN, item, { weight: 0 });
  }
  if (ends.has(OUT)) {
    graph.setNode(OUT, { width: 1, height: 1 });
    const inner = new Set(here.filter(({ to }) => to !== OUT).map(({ from }) => from));
    for (const item of items.filter((key) => !inner.has(key))) graph.setEdge(item, OUT, { weight: 0 });
  }
}

function closedSize(item) {
  const lines = item.node ? nodeLines(item.node) : [shortened(item.name), counted(item.count, "node")];
  const width = Math.max(...lines.map(textWidth)) + (item.node ? 18 : 42);
  return { width, height: lines.length * LINE + 12 };
}

function nodeLines(node) {
  return node.label.split("\n").map((line) => shortened(line.trim()));
}

function shortened(text) {
  return text.length > LONGEST ? `${text.slice(0, LONGEST - 1)}…` : text;
}

function textWidth(text) {
  return Math.min(text.length, LONGEST) * LETTER;
}

function settle(outer, x, y) {
  Object.assign(outer, { x, y });
  for (const item of outer.nodes) Object.assign(item, { x: x + item.dx, y: y + item.dy });
  for (const inner of outer.boxes) settle(inner, x + inner.dx, y + inner.dy);
}
