// elements, words and numbers; data reaches the page as text alone, never as markup

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];
const SVG = "http://www.w3.org/2000/svg";

function make(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function draw(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function section(name) {
  return document.getElementById(name);
}

function leaveOut(name) {
  section(name).remove();
  document.querySelector(`nav a[href="#${name}"]`).parentElement.remove();
}

// records travel as columns, see _pack.py
function unpacked({ length, columns }) {
  const entries = Object.entries(columns);
  const record = (place) => entries.map(([key, column]) => [key, column.distinct[column.index[place]]]);
  return Array.from({ length }, (_, place) => Object.fromEntries(record(place)));
}

function bytes(count) {
  let size = Math.abs(count);
  let unit = 0;
  while (size >= 1024 && unit < UNITS.length - 1) {
    size /= 1024;
    unit += 1;
  }
  const digits = unit === 0 || size >= 100 ? 0 : size >= 10 ? 1 : 2;
  return `${count < 0 ? "−" : ""}${size.toFixed(digits)} ${UNITS[unit]}`;
}

function milliseconds(time) {
  return `${time >= 100 ? time.toFixed(0) : time >= 10 ? time.toFixed(1) : time.toFixed(2)} ms`;
}

function number(count) {
  return count.toLocaleString("en");
}

function counted(count, noun) {
  return `${number(count)} ${noun}${count === 1 ? "" : "s"}`;
}

function change(before, after) {
  if (before === after) return "no change";
  if (before === 0) return `+${bytes(after)}`;
  const percent = (100 * Math.abs(after - before)) / before;
  const written = percent < 0.1 ? "under 0.1" : percent.toFixed(percent < 10 ? 1 : 0);
  return `${after > before ? "+" : "−"}${written} %`;
}

function moduleName(path) {
  return path === null ? "(outside)" : path === "" ? "(model)" : path;
}

function noteList(notes) {
  return make("ul", { class: "notes" }, ...notes.map((note) => make("li", {}, note)));
}

// a heading for each pass, where there are two to tell apart
function passHeading(passes, index) {
  return passes.length === 1 ? null : make("h3", {}, passes[index].name);
}

function of(passes, index) {
  return passes.length === 1 ? "" : `, ${passes[index].name}`;
}
