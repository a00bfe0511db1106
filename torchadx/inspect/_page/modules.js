// saved bytes by module: a treemap, and the same as a nested list for keyboards and screen readers

const HUES = 8;
const MUCH = 0.3;
const HEIGHT = 384;
const MARGIN = 4;
// a picture that is not the largest is as wide as that, and lower; much lower would be hard to read
const LOWEST = 0.25;

function fillModules(passes) {
  const trees = passes.map((pass) => moduleTree(pass.saved.rows));
  const most = Math.max(...trees.map((tree) => tree.bytes));
  if (most === 0) {
    section("modules").append(make("p", {}, "The graph holds no memory of its own."));
    return;
  }
  const names = coloredPaths(trees, most);
  const lead = "Held by the graph now; area is bytes. Choose a module in the picture to look inside.";
  const same = " Both passes are drawn to one scale: the same area is the same number of bytes.";
  section("modules").append(make("p", { class: "lead" }, lead + (passes.length === 2 ? same : "")));
  const parts = trees.map((tree, index) => modulePart(passes, index, tree, most, names));
  section("modules").append(make("div", { class: passes.length === 2 ? "pair" : "single" }, ...parts));
}

function modulePart(passes, index, tree, most, names) {
  const total = `Treemap of saved bytes by module${of(passes, index)}: ${bytes(tree.bytes)}.`;
  const label = `${total} The list that follows has the same numbers.`;
  const height = heightShare(tree, most) * (HEIGHT - 2 * MARGIN) + 2 * MARGIN;
  const holder = make("div", { class: "chart treemap", role: "img", "aria-label": label, style: `height:${height}px` });
  const list = make(
    "details",
    { open: passes.length === 1 },
    make("summary", {}, `As a list${of(passes, index)}`),
    moduleList(tree, most),
  );
  chart(holder, () => treemap(tree, most, names));
  return make("div", { class: "part" }, passHeading(passes, index), holder, make("div", { class: "tree" }, list));
}

function moduleTree(rows) {
  const tree = branch("all", null);
  for (const row of rows.filter((one) => one.held_bytes > 0)) {
    const parts = row.module ? row.module.split(".") : [moduleName(row.module)];
    let place = tree;
    place.bytes += row.held_bytes;
    for (const part of parts) {
      const path = place.path === null ? part : `${place.path}.${part}`;
      if (!place.inside.has(part)) place.inside.set(part, branch(part, path));
      place = place.inside.get(part);
      place.bytes += row.held_bytes;
    }
    place.own += row.held_bytes;
  }
  setApart(tree);
  return tree;
}

function branch(name, path) {
  return { name, path, bytes: 0, own: 0, inside: new Map() };
}

// what a module with others inside holds itself would be a blank area
function setApart(node) {
  for (const inner of node.inside.values()) setApart(inner);
  if (node.inside.size === 0 || node.own === 0) return;
  node.inside.set("(itself)", { ...branch("(itself)", `${node.path}.(itself)`), bytes: node.own });
}

// what is much of the whole is told apart by its parts; the same module, of each pass, has the same colour
function coloredPaths(nodes, most) {
  const names = new Set(nodes.flatMap((node) => [...node.inside.keys()]));
  return [...names].flatMap((name) => {
    const same = nodes.map((node) => node.inside.get(name)).filter(Boolean);
    const large = Math.max(...same.map((node) => node.bytes)) > MUCH * most;
    return large && same.some((node) => node.inside.size > 0) ? coloredPaths(same, most) : [same[0].path];
  });
}

function hueOf(path, names) {
  const place = names.indexOf(path);
  return place < 0 ? null : place % HUES;
}

function largestFirst(tree) {
  return [...tree.inside.values()].sort((a, b) => b.bytes - a.bytes);
}

function heightShare(tree, most) {
  return Math.max(tree.bytes / most, LOWEST);
}

function treemap(tree, most, names) {
  const trace = { ids: [], labels: [], parents: [], values: [], customdata: [] };
  const colors = [];
  const visit = (node, id, parent, hue) => {
    trace.ids.push(id);
    trace.labels.push(plain(node.name));
    trace.parents.push(parent);
    trace.values.push(node.bytes);
    trace.customdata.push([
      bytes(node.bytes),
      `${((100 * node.bytes) / tree.bytes).toFixed(1)} % of all`,
      plain(node.path ?? "all modules"),
    ]);
    colors.push(hue === null ? color("sunken") : color(`hue-${hue}`));
    for (const inner of largestFirst(node)) {
      visit(inner, `${id}.${inner.name}`, id, hue ?? hueOf(inner.path, names));
    }
  };
  visit(tree, "all", "", null);
  const shape = { type: "treemap", branchvalues: "total", maxdepth: 5, sort: true, tiling: { pad: 2 } };
  const look = {
    marker: { colors, line: { color: color("surface"), width: 1 }, pad: { t: 20, l: 3, r: 3, b: 3 }, cornerradius: 3 },
    pathbar: { visible: true, thickness: 20 },
    domain: { x: [0, tree.bytes / most / heightShare(tree, most)], y: [0, 1] },
    textfont: { color: color("text") },
    texttemplate: "%{label}<br>%{customdata[0]}",
    hovertemplate: "%{customdata[2]}<br>%{customdata[0]}, %{customdata[1]}<extra></extra>",
  };
  return {
    data: [{ ...trace, ...shape, ...look }],
    layout: { margin: { t: MARGIN, l: MARGIN, r: MARGIN, b: MARGIN } },
  };
}

function moduleList(tree, most) {
  return make("ul", {}, ...largestFirst(tree).map((node) => make("li", {}, moduleLine(node, most))));
}

function moduleLine(node, most) {
  const bar = make(
    "span",
    { class: "bar", "aria-hidden": "true" },
    make("span", { style: `width:${(100 * node.bytes) / most}%` }),
  );
  const words = [
    make("span", { class: "name code" }, node.name),
    make("span", { class: "size" }, bytes(node.bytes)),
    bar,
  ];
  if (node.inside.size === 0) return make("div", { class: "line" }, ...words);
  return make("details", {}, make("summary", { class: "line" }, ...words), moduleList(node, most));
}
