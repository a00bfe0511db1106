// the autograd graph as a tree of boxes: modules inside modules, nodes inside modules

// a box with more nodes than this has them in boxes of this many, so that no layout is slow
const BOX_NODES = 80;

// so few nodes outside of modules stand beside the modules, where inputs come first and outputs last
const LOOSE_NODES = 40;

function graphModel(graph) {
  const root = box("root", "", null);
  const loose = graph.nodes.filter((node) => node.module === null).length <= LOOSE_NODES;
  const boxes = new Map([["root", root]]);
  const items = new Map();
  for (const node of graph.nodes) {
    const parent = boxFor(loose ? (node.module ?? "") : node.module, root, boxes);
    const item = { key: `node ${node.id}`, parent, node };
    parent.nodes.push(item);
    items.set(node.id, item);
  }
  for (const one of [...boxes.values()]) splitNodes(one, boxes);
  countNodes(root);
  return { root, boxes, items, edges: graph.edges, size: graph.nodes.length };
}

function box(key, name, parent) {
  return { key, name, parent, path: name, boxes: [], nodes: [], open: parent === null, count: 0 };
}

function boxFor(module, root, boxes) {
  if (module === "") return root;
  let place = root;
  for (const part of module === null ? [moduleName(null)] : module.split(".")) {
    const path = place === root ? part : `${place.path}.${part}`;
    if (!boxes.has(path)) {
      boxes.set(path, { ...box(path, part, place), path });
      place.boxes.push(boxes.get(path));
    }
    place = boxes.get(path);
  }
  return place;
}

function splitNodes(whole, boxes) {
  if (whole.nodes.length <= BOX_NODES) return;
  for (let start = 0; start < whole.nodes.length; start += BOX_NODES) {
    const part = box(`${whole.key} from ${start}`, `nodes from ${start + 1}`, whole);
    part.path = `${whole.parent ? whole.path : moduleName("")}, nodes from ${start + 1}`;
    part.nodes = whole.nodes.slice(start, start + BOX_NODES);
    for (const item of part.nodes) item.parent = part;
    boxes.set(part.key, part);
    whole.boxes.push(part);
  }
  whole.nodes = [];
}

function countNodes(one) {
  one.count = one.boxes.reduce((sum, inner) => sum + countNodes(inner), one.nodes.length);
  return one.count;
}

function ancestors(item) {
  const chain = [];
  for (let place = item; place !== null; place = place.parent) chain.unshift(place);
  return chain;
}

// the outermost closed box around an item, or the item
function visibleAs(item) {
  return ancestors(item).find((place) => !place.node && !place.open) ?? item;
}

// edges between what is visible; those between the same two ends are one, dotted if all of them are
function visibleEdges(model) {
  const merged = new Map();
  for (const { source, target, style } of model.edges) {
    const [from, to] = [visibleAs(model.items.get(source)), visibleAs(model.items.get(target))];
    if (from === to) continue;
    const key = `${from.key} > ${to.key}`;
    const edge = merged.get(key) ?? { from, to, count: 0, dotted: true };
    edge.count += 1;
    edge.dotted &&= style === "dotted";
    merged.set(key, edge);
  }
  return [...merged.values()];
}

// the two places under their innermost common box between which an edge runs
function siblings(from, to) {
  const [one, other] = [ancestors(from), ancestors(to)];
  let depth = 0;
  while (one[depth] === other[depth]) depth += 1;
  return [one[depth], other[depth]];
}
