// The table: only visible rows are in the document, so that thousands of rows scroll smoothly.

const ROW_HEIGHT = 52, SPARE_ROWS = 8;
const LONG_NAME = 36;  // characters; longer names use both lines of a row

const TEXT_COLUMNS = [
  { name: "row", title: "Model", width: 330, text: (line) => line.row.name },
  { name: "kind", title: "Numbers", width: 150, text: (line) => `${KINDS.indexOf(line.kind)} ${line.flags.join(" ")}` },
  { name: "backbone", title: "Backbone", width: 140, text: (line) => line.row.backbone },
  { name: "detector", title: "Detector", width: 130, text: (line) => line.row.detector },
  { name: "setting", title: "Setting", width: 420, text: (line) => (line.setting ? line.setting.title : "~") },
];
const NUMBER_COLUMNS = DATA.quantities.map((quantity) => ({ name: quantity.name, title: quantity.title, width: 112, quantity }));
const COLUMNS = [...TEXT_COLUMNS.slice(0, 2), ...NUMBER_COLUMNS, { name: "weights", title: "Weights", width: 96 }, { name: "licence", title: "Licence", width: 150, text: (line) => licenceOf(line.row) },
  { name: "command", title: "Command", width: 96 }, ...TEXT_COLUMNS.slice(2)];

function sortable(name) { return name !== "weights" && name !== "command" && COLUMNS.some((column) => column.name === name); }

const table = { lines: [], active: 0, first: -1, last: -1, body: null, scroller: null, head: null };

function shownColumns() { return COLUMNS.filter((column) => !state.hidden.has(column.name)); }

function emptyColumns() {
  return new Set(NUMBER_COLUMNS.filter((column) => !LINES.some((line) => line.values[column.name])).map((column) => column.name));
}

/** Sorted by the chosen column. Measured and published numbers are sorted separately; lines without a number come last. */
function sorted(lines) {
  const way = state.descending ? -1 : 1, column = COLUMNS.find((each) => each.name === state.sort);
  const key = column.quantity ? (line) => value(line, column.name) : column.text;
  const group = column.quantity ? (line) => KINDS.indexOf(line.kind) : () => 0;
  const order = (a, b) => (a === b ? 0 : a === undefined ? 1 : b === undefined ? -1 : way * (a < b ? -1 : 1));
  return lines.map((line) => [group(line), key(line), line])
    .sort((a, b) => a[0] - b[0] || order(a[1], b[1]) || byText(a[2].row.name, b[2].row.name) || a[2].place - b[2].place).map(([, , line]) => line);
}

function buildHead() {
  const columns = shownColumns();
  document.querySelector("#table colgroup").replaceChildren(...columns.map((column) => {
    const col = make("col");
    col.style.width = `${columnWidth(column)}px`;
    return col;
  }));
  table.root.style.width = `${columns.reduce((sum, column) => sum + columnWidth(column), 0)}px`;
  table.head.replaceChildren(make("tr", { "aria-rowindex": 1 }, columns.map((column) => {
    const title = [make("span", { class: "title" }, column.title), column.quantity ? make("small", {}, column.quantity.unit) : null];
    const inside = sortable(column.name) ? make("button", { type: "button", "data-sort": column.name }, title) : make("span", { class: "still" }, title);
    const hint = column.quantity && column.quantity.note ? `${column.title}: ${column.quantity.note}` : null;
    return make("th", { scope: "col", class: column.quantity ? "number" : "", title: hint, "data-column": column.name }, inside);
  })));
  markSorted();
}

const NARROW = { row: 150, kind: 104 };

function columnWidth(column) {
  const narrow = matchMedia("(max-width: 760px)").matches;
  if (narrow && NARROW[column.name]) return NARROW[column.name];
  return column.quantity ? Math.max(narrow ? 92 : 114, 46 + 8.8 * column.title.length) : column.width;
}

function markSorted() {
  for (const head of table.head.querySelectorAll("th")) {
    if (!sortable(head.dataset.column)) continue;
    const here = head.dataset.column === state.sort;
    head.setAttribute("aria-sort", here ? (state.descending ? "descending" : "ascending") : "none");
  }
}

function cell(line, column) {
  if (column.quantity) return numberCell(line, column);
  if (column.name === "row") {
    const name = make("button", { type: "button", tabindex: "-1", "data-place": line.place, title: line.row.name }, make("strong", {}, breakable(line.row.name)), line.row.name.length > LONG_NAME ? null : make("small", {}, line.row.title));
    return make("th", { scope: "row" }, name);
  }
  if (column.name === "kind") return make("td", { title: line.flags.join(", ") }, badge(line), line.flags.length ? make("small", {}, make("span", { class: "flag" }, line.flags.join(", "))) : null);
  if (column.name === "command") return make("td", {}, line.row.runnable ? copyButton(line.row) : "–");
  if (column.name === "weights") return make("td", {}, weightsLink(line.row, false));
  const text = column.name === "setting" ? (line.setting ? line.setting.title : "–") : column.text(line);
  return make("td", { title: text }, text);
}

function numberCell(line, column) {
  const found = line.values[column.name], digits = column.quantity.digits;
  if (!found) {
    const why = whyNot(line, column.name);
    return make("td", { class: "number", title: why }, make("span", { "aria-label": `none: ${why}` }, "–"));
  }
  const small = found.length > 1 ? make("small", {}, interval(found.slice(1), digits)) : null;
  return make("td", { class: line.trusted ? "number" : "number untrusted" }, written(found[0], digits), small);
}

/** Show the filtered lines and their number. */
function layTable(lines) {
  table.lines = sorted(lines);
  table.active = Math.min(table.active, Math.max(0, table.lines.length - 1));
  table.root.setAttribute("aria-rowcount", table.lines.length + 1);
  markSorted();
  table.scroller.scrollTop = 0;
  table.first = table.last = -1;
  showRows();
  const column = COLUMNS.find((each) => each.name === state.sort);
  const { unknown } = parseSearch(state.search);
  const wrong = unknown.length ? ` Unknown number: ${unknown.join(", ")}.` : "";
  document.getElementById("status").textContent = `${table.lines.length} of ${LINES.length} lines, by ${column.title}, ${state.descending ? "descending" : "ascending"}.${wrong}`;
}

/** Put the visible rows into the document. */
function showRows(all = false) {
  const top = Math.floor(table.scroller.scrollTop / ROW_HEIGHT), count = Math.ceil(innerHeight / ROW_HEIGHT);  // the box is never taller than the window
  const first = all ? 0 : Math.max(0, top - SPARE_ROWS), last = all ? table.lines.length : Math.min(table.lines.length, top + count + SPARE_ROWS);
  if (first === table.first && last === table.last) return;
  const kept = new Map([...table.body.querySelectorAll("tr[data-index]")].map((row) => [Number(row.dataset.index), row]));
  const reusable = table.first >= 0, hadFocus = table.body.contains(document.activeElement), columns = shownColumns();
  const rows = [];
  for (let index = first; index < last; index += 1) rows.push((reusable && kept.get(index)) || bodyRow(table.lines[index], index, columns));
  const empty = table.lines.length ? null : make("tr", {}, make("td", { class: "empty", colspan: columns.length }, "No line matches these filters."));
  table.body.replaceChildren(spacer(first * ROW_HEIGHT, columns.length), ...rows, ...(empty ? [empty] : []), spacer((table.lines.length - last) * ROW_HEIGHT, columns.length));
  [table.first, table.last] = [first, last];
  if (hadFocus && !table.body.contains(document.activeElement)) table.scroller.focus({ preventScroll: true });
  markActive();
}

function bodyRow(line, index, columns) {
  return make("tr", { "data-index": index, "aria-rowindex": index + 2, class: line.kind.split(" ")[0] }, columns.map((column) => cell(line, column)));
}

function spacer(height, span) {
  const inside = make("td", { colspan: span });
  inside.style.height = `${height}px`;
  return make("tr", { class: "spacer", "aria-hidden": "true" }, inside);
}

/** Tab reaches the active row; arrow keys change it. */
function markActive() {
  for (const row of table.body.querySelectorAll("tr[data-index]")) {
    const here = Number(row.dataset.index) === table.active;
    row.classList.toggle("active", here && row.contains(document.activeElement));
    row.querySelector("th button").tabIndex = here ? 0 : -1;
    for (const inside of row.querySelectorAll("td a, td .copy")) inside.tabIndex = here ? 0 : -1;
  }
}

function goToRow(index) {
  if (!table.lines.length) return;
  table.active = Math.max(0, Math.min(table.lines.length - 1, index));
  const head = table.head.offsetHeight, top = table.active * ROW_HEIGHT, view = table.scroller.clientHeight - head;
  if (top < table.scroller.scrollTop) table.scroller.scrollTop = top;
  else if (top + ROW_HEIGHT > table.scroller.scrollTop + view) table.scroller.scrollTop = top + ROW_HEIGHT - view;
  showRows();
  const button = table.body.querySelector(`tr[data-index="${table.active}"] th button`);
  button.focus({ preventScroll: true });
  markActive();
}

const MOVES = { ArrowDown: (now) => now + 1, ArrowUp: (now) => now - 1, PageDown: (now, page) => now + page, PageUp: (now, page) => now - page, Home: () => 0,
  End: () => Infinity };

function startTable() {
  Object.assign(table, { root: document.getElementById("table"), body: document.querySelector("#table tbody"), head: document.querySelector("#table thead"),
    scroller: document.getElementById("scroller") });
  let waiting = false;
  table.scroller.addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; showRows(); });
  });
  table.head.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-sort]");
    if (button) sortBy(button.dataset.sort);
  });
  table.body.addEventListener("click", (event) => {
    const row = event.target.closest("tr[data-index]");
    if (!row || event.target.closest("a, .copy")) return;
    table.active = Number(row.dataset.index);
    markActive();
    openDetails(table.lines[table.active], row.querySelector("th button"));
  });
  table.scroller.addEventListener("keydown", (event) => {
    const move = MOVES[event.key];
    if (!move || event.target.closest("thead") || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const inRow = event.target.closest("tbody");
    goToRow(inRow ? move(table.active, Math.floor(table.scroller.clientHeight / ROW_HEIGHT) - 2) : table.active);
  });
  table.body.addEventListener("focusin", (event) => {
    const row = event.target.closest("tr[data-index]");
    if (row) { table.active = Number(row.dataset.index); markActive(); }
  });
  table.body.addEventListener("focusout", () => requestAnimationFrame(markActive));
  addEventListener("beforeprint", () => showRows(true));
  addEventListener("afterprint", () => showRows());
  addEventListener("resize", () => { buildHead(); table.first = -1; showRows(); });
}

/** Sort by a column, best or A to Z first; a second call reverses the order. */
function sortBy(name) {
  const { quantity } = COLUMNS.find((column) => column.name === name);
  state.descending = state.sort === name ? !state.descending : Boolean(quantity) && quantity.better === "higher";
  state.sort = name;
  update();
}
