// Data and state of the page: filters, the URL fragment, number formats.

const DATA = JSON.parse(document.getElementById("data").textContent);
const KINDS = ["measured", "published", "not measured"];
const QUANTITIES = new Map(DATA.quantities.map((quantity) => [quantity.name, quantity]));
const LIMIT = /^([a-z0-9_]+)(<=|>=|<|>)(-?\d+(?:\.\d+)?)$/;
const COMPARE = { "<": (a, b) => a < b, "<=": (a, b) => a <= b, ">": (a, b) => a > b, ">=": (a, b) => a >= b };

const LINES = DATA.lines.map((line, place) => {
  const row = DATA.rows[line.row];
  const setting = line.setting === undefined ? null : DATA.settings[line.setting];
  const flags = line.flags || [];
  const words = [row.name, row.title, row.backbone, row.neck, row.detector, row.dataset, row.schedule, line.kind, setting && setting.title, ...flags];
  return { ...line, place, row, settingPlace: line.setting, setting, flags, haystack: words.filter(Boolean).join(" ").toLowerCase() };
});

// the most frequent detectors have their own colour, the others share one
const OWN_COLOURS = 7, SHARED_COLOUR = "c7";
const FAMILY_COUNTS = DATA.rows.reduce((counts, row) => counts.set(row.family, (counts.get(row.family) || 0) + 1), new Map());
const FAMILIES = [...FAMILY_COUNTS.keys()].sort((a, b) => FAMILY_COUNTS.get(b) - FAMILY_COUNTS.get(a) || byText(a, b));

const state = { search: "", kinds: new Set(["measured", "published"]), source: "", family: "", backbone: "", dataset: "", trusted: false,
  sort: "box_ap", descending: true, x: "time_ms", y: "box_ap", log: false, setting: "", hidden: null, theme: "" };

function colourOf(family) {
  const place = FAMILIES.indexOf(family);
  return place < OWN_COLOURS ? `c${place}` : SHARED_COLOUR;
}

function byText(a, b) { return a < b ? -1 : a > b ? 1 : 0; }

function value(line, name) { const found = line.values[name]; return found ? found[0] : undefined; }

/** A number with the given decimal places. */
function written(number, digits) { return number.toFixed(digits); }

function interval(edges, digits) { return `${written(edges[0], digits)}–${written(edges[1], digits)}`; }

/** Why a line does not have this number. */
function whyNot(line, name) {
  if (line.kind === "measured") return DATA.texts[line.absent[name]];
  return line.kind === "published" ? "not reported" : DATA.texts[line.reason];
}

/** Words and limits of the filter; all must match. */
function parseSearch(text) {
  const words = [], limits = [], unknown = [];
  for (const part of text.toLowerCase().split(/\s+/).filter(Boolean)) {
    const limit = LIMIT.exec(part);
    if (!limit) words.push(part);
    else if (QUANTITIES.has(limit[1])) limits.push([limit[1], COMPARE[limit[2]], Number(limit[3])]);
    else unknown.push(limit[1]);
  }
  return { words, limits, unknown };
}

function filtered() {
  const { words, limits } = parseSearch(state.search);
  return LINES.filter((line) => state.kinds.has(line.kind) && (!state.trusted || line.trusted)
    && (!state.source || line.row.source === state.source) && (!state.family || line.row.family === state.family)
    && (!state.backbone || line.row.backbone === state.backbone) && (!state.dataset || line.row.dataset === state.dataset)
    && words.every((word) => line.haystack.includes(word))
    && limits.every(([name, holds, limit]) => line.values[name] !== undefined && holds(line.values[name][0], limit)));
}

/** The URL fragment contains the state, so that a view can be shared. */
const KEPT = { q: "search", source: "source", family: "family", backbone: "backbone", data: "dataset", sort: "sort", x: "x", y: "y", setting: "setting", theme: "theme" };
const USUAL = { ...state };

function writeAddress() {
  const kept = new URLSearchParams();
  for (const [short, name] of Object.entries(KEPT)) if (state[name] !== USUAL[name]) kept.set(short, state[name]);
  if (state.descending !== USUAL.descending) kept.set("up", "1");
  if (state.trusted) kept.set("trusted", "1");
  if (state.log) kept.set("log", "1");
  const kinds = KINDS.filter((kind) => state.kinds.has(kind)).map((kind) => kind[0]).join("");
  if (kinds !== "mp") kept.set("kinds", kinds);
  history.replaceState(null, "", kept.size ? `#${kept}` : location.pathname + location.search);
}

function readAddress() {
  const kept = new URLSearchParams(location.hash.slice(1));
  for (const [short, name] of Object.entries(KEPT)) if (kept.has(short)) state[name] = kept.get(short);
  state.descending = !kept.has("up");
  state.trusted = kept.has("trusted");
  state.log = kept.has("log");
  if (kept.has("kinds")) state.kinds = new Set(KINDS.filter((kind) => kept.get("kinds").includes(kind[0])));
  for (const axis of ["x", "y"]) if (!QUANTITIES.has(state[axis])) state[axis] = USUAL[axis];
  if (!sortable(state.sort)) state.sort = USUAL.sort;
}

/** Create an element with attributes and children; text is never parsed as HTML. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, given] of Object.entries(attributes)) if (given !== undefined && given !== null && given !== false) element.setAttribute(name, given === true ? "" : given);
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, given] of Object.entries(attributes)) if (given !== undefined && given !== null) element.setAttribute(name, given);
  element.append(...children.flat(Infinity));
  return element;
}

function badge(line) { return make("span", { class: `badge ${line.kind.split(" ")[0]}` }, line.kind); }

/** A link to the weights, or text if there is none; with a warning if the source also has a wrong link. */
function weightsLink(row, focusable = true) {
  const known = row.weights || [], weights = known.find((each) => !each.wrong), wrong = known.find((each) => each.wrong);
  const warning = wrong ? make("span", { class: "flag", title: wrong.wrong }, "wrong link") : null;
  if (!known.length) return [make("span", { title: "no weights published" }, "–")];
  return [weights ? addressOf(weights, row, focusable) : null, weights && warning ? " " : null, warning].filter(Boolean);
}

function addressOf(weights, row, focusable) {
  const address = (weights.urls || []).find((url) => /^https?:\/\//.test(url)) || weights.manual;
  if (!address || !/^https?:\/\//.test(address)) return make("code", {}, (weights.urls || [weights.manual])[0]);
  return make("a", { href: address, rel: "noopener noreferrer", tabindex: focusable ? null : "-1", "aria-label": `weights of ${row.name}` }, weights.urls ? "weights" : "page");
}
