// a table that sorts, searches, opens rows and shows a page at a time

// columns: { label, value(row), text(value, row), numeric, note }; details(row): pairs of a word and a text, or none
function makeTable({ caption, columns, rows, details = null, search = null, hint = "", page = 200, empty = "None." }) {
  if (rows.length === 0) return make("p", { class: "quiet" }, `${caption}: ${empty}`);
  const state = { column: null, descending: false, query: "", shown: page, open: new Set() };
  const found = search && rows.map((row) => search(row).join("\n").toLowerCase());
  const body = make("tbody");
  const status = make("p", { class: "quiet", role: "status" });
  const more = make("button", { type: "button", onclick: showMore }, "");
  const heads = columns.map(head);

  function head(column, index) {
    const button = make(
      "button",
      { type: "button", title: column.note ?? null, onclick: () => sort(index) },
      column.label,
    );
    return make("th", { scope: "col", class: column.numeric ? "number" : null, "aria-sort": "none" }, button);
  }

  function sort(index) {
    const first = columns[index].numeric ?? false;
    state.descending = state.column === index ? !state.descending : first;
    state.column = index;
    heads.forEach((th, other) => {
      th.setAttribute("aria-sort", other !== index ? "none" : state.descending ? "descending" : "ascending");
    });
    show();
  }

  function chosen() {
    const places = [...rows.keys()].filter((place) => !state.query || found[place].includes(state.query));
    if (state.column === null) return places;
    const values = rows.map((row) => columns[state.column].value(row));
    return places.sort((a, b) => compare(values[a], values[b], state.descending) || a - b);
  }

  function show() {
    const places = chosen();
    const visible = places.slice(0, state.shown);
    body.replaceChildren(...visible.flatMap(line));
    status.textContent = `${number(visible.length)} of ${counted(places.length, "row")}`;
    if (state.query) status.textContent += `, found among ${number(rows.length)}`;
    more.hidden = visible.length === places.length;
    more.textContent = `Show ${number(Math.min(page, places.length - visible.length))} more`;
    return visible;
  }

  function line(place) {
    const row = rows[place];
    const cells = columns.map((column, index) => cell(column, row, index === 0));
    if (!details) return [make("tr", {}, ...cells)];
    const open = state.open.has(place);
    const button = make("button", {
      type: "button",
      class: "opener",
      "aria-expanded": String(open),
      "aria-label": `Details of ${columns[0].value(row)}`,
    });
    const tr = make("tr", { "data-place": place }, make("td", {}, button), ...cells);
    button.addEventListener("click", () => toggle(place, button, tr));
    return open ? [tr, detailLine(row)] : [tr];
  }

  function cell(column, row, first) {
    const value = column.value(row);
    const text = value === null ? "–" : column.text ? column.text(value, row) : String(value);
    const attributes = { class: column.numeric ? "number" : column.code ? "code" : null };
    return make(first ? "th" : "td", first ? { ...attributes, scope: "row" } : attributes, text);
  }

  function toggle(place, button, tr) {
    const open = !state.open.has(place);
    state.open[open ? "add" : "delete"](place);
    button.setAttribute("aria-expanded", String(open));
    if (open) tr.after(detailLine(rows[place]));
    else tr.nextElementSibling.remove();
  }

  function detailLine(row) {
    const pairs = details(row).flatMap(([word, text]) => [make("dt", {}, word), make("dd", {}, text)]);
    const list = make("dl", { class: "pairs" }, ...pairs);
    return make("tr", { class: "detail" }, make("td", { colspan: columns.length + 1 }, list));
  }

  function showMore() {
    const next = state.shown;
    state.shown += page;
    const visible = show();
    // the button may be gone, or far away: go on where the new rows begin
    const tr = visible.length > next ? body.querySelectorAll("tr:not(.detail)")[next] : null;
    (tr?.querySelector("button") ?? region).focus();
  }

  const corner = details ? [make("th", { scope: "col" }, make("span", { class: "unseen" }, "Details"))] : [];
  const table = make(
    "table",
    {},
    make("caption", {}, caption),
    make("thead", {}, make("tr", {}, ...corner, ...heads)),
    body,
  );
  const region = make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, table);
  show();
  const box = search && make("div", { class: "tools" }, searchBox(caption, hint, find));
  const below = search || rows.length > page ? make("div", { class: "below" }, more, status) : null;
  return make("div", { class: "table" }, box, region, below);

  function find(query) {
    state.query = query.trim().toLowerCase();
    state.shown = page;
    show();
  }
}

function searchBox(caption, hint, find) {
  const input = make("input", { type: "search", placeholder: hint, autocomplete: "off" });
  input.addEventListener("input", () => find(input.value));
  return make("label", { class: "search" }, make("span", {}, `Search ${caption.toLowerCase()}`), input);
}

const alphabet = new Intl.Collator("en", { numeric: true });

// what is not known comes last, whichever way the rest is sorted
function compare(a, b, descending) {
  if (a === null || b === null) return (a === null) - (b === null);
  const order = typeof a === "number" ? a - b : alphabet.compare(a, b);
  return descending ? -order : order;
}
