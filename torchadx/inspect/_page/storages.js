// every storage the graph holds on to, why, and what would spare it

function fillStorages(passes) {
  passes.forEach((pass, index) => {
    const heading = passHeading(passes, index);
    if (heading) section("storages").append(heading);
    section("storages").append(storagesTable(pass.saved.rows, of(passes, index)));
  });
}

function storagesTable(rows, of) {
  return makeTable({
    caption: `Saved storages${of}`,
    columns: STORAGE_COLUMNS,
    rows,
    details: storageDetails,
    hint: "module, node, type, reason …",
    search: searched,
    empty: "the backward pass saved nothing.",
  });
}

function shape(sizes) {
  return sizes === null ? null : sizes.length === 0 ? "scalar" : sizes.join(" × ");
}

function searched(row) {
  const words = STORAGE_COLUMNS.filter((column) => !column.numeric).map((column) => column.value(row) ?? "");
  return [...words, row.why, row.remedy, row.relation ?? "", ...row.slots];
}

const STORAGE_COLUMNS = [
  { label: "Module", value: (row) => moduleName(row.module), code: true },
  { label: "Held", value: (row) => row.held_bytes, text: bytes, numeric: true, note: "by the graph for it, now" },
  { label: "Storage", value: (row) => row.storage_bytes, text: bytes, numeric: true, note: "the whole storage" },
  { label: "Frees", value: (row) => row.marginal_bytes, text: bytes, numeric: true, note: "if it were not saved" },
  { label: "Saved by", value: (row) => `${row.node}.${row.slot}`, code: true },
  { label: "Shape", value: (row) => shape(row.shape), code: true },
  { label: "Type", value: (row) => row.dtype, code: true },
  { label: "Where", value: (row) => row.residence, code: true },
  { label: "Source", value: (row) => row.source, code: true },
  { label: "Belongs to", value: (row) => row.alias },
];

function storageDetails(row) {
  const strides = row.strides === null ? "not known" : `(${row.strides.join(", ")})`;
  return [
    ["Why it is saved", row.why],
    ["What spares it", row.remedy],
    ["Slots", row.slots.join(", ")],
    ["Relation", row.relation ?? "a tensor of its own"],
    ["Strides", `${strides}; ${bytes(row.nbytes)} seen of a storage of ${bytes(row.storage_bytes)}`],
    ["Order", `saved at ${row.saved_at}, used at ${row.used_at}`],
  ].filter(([, text]) => text !== "");
}
