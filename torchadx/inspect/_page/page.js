// the whole page, from top to bottom

const { passes: packedPasses } = JSON.parse(document.getElementById("payload").textContent);

const pages = packedPasses.map((pass) => ({
  ...pass,
  saved: pass.saved && { ...pass.saved, rows: unpacked(pass.saved.rows) },
  graph: pass.graph && { nodes: unpacked(pass.graph.nodes), edges: unpacked(pass.graph.edges) },
}));

const looked = pages.filter((pass) => pass.saved);
for (const [name, fill] of [
  ["summary", fillSummary],
  ["modules", fillModules],
  ["storages", fillStorages],
]) {
  if (looked.length > 0) fill(looked);
  else leaveOut(name);
}
fillTimeline(pages);
fillGraph(pages);
fillProfile(pages);

addEventListener("load", redrawAll);
