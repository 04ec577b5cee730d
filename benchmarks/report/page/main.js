// Connects the controls with the state, and starts the page.

/** Update table and plot after a change of the state. */
function update() {
  const lines = filtered();
  layTable(lines);
  layPlot(lines);
  writeAddress();
}

function fillSelect(id, name, every) {
  const select = document.getElementById(id);
  const values = [...new Set(LINES.map((line) => line.row[name]).filter(Boolean))].sort(byText);
  select.replaceChildren(make("option", { value: "" }, every), ...values.map((each) => make("option", { value: each }, each)));
  select.addEventListener("change", () => { state[id] = select.value; update(); });
}

function fillKinds() {
  const box = document.getElementById("kinds");
  for (const kind of KINDS) {
    const input = make("input", { type: "checkbox", value: kind });
    input.addEventListener("change", () => {
      if (input.checked) state.kinds.add(kind);
      else state.kinds.delete(kind);
      update();
    });
    box.append(make("label", {}, input, make("span", {}, `${kind} (${LINES.filter((line) => line.kind === kind).length})`)));
  }
}

function fillAxes() {
  for (const axis of ["x", "y"]) {
    const select = document.getElementById(`plot-${axis}`);
    const known = DATA.quantities.filter((quantity) => LINES.some((line) => line.values[quantity.name]));
    select.append(...known.map((quantity) => make("option", { value: quantity.name }, `${quantity.title} (${quantity.unit})`)));
    select.addEventListener("change", () => { state[axis] = select.value; update(); });
  }
  document.getElementById("plot-log").addEventListener("change", (event) => { state.log = event.target.checked; update(); });
  document.getElementById("plot-setting").addEventListener("change", (event) => { state.setting = event.target.value; update(); });
}

function fillColumns() {
  state.hidden = emptyColumns();
  document.getElementById("column-list").append(...COLUMNS.filter((column) => column.name !== "row").map((column) => {
    const input = make("input", { type: "checkbox", value: column.name });
    input.checked = !state.hidden.has(column.name);
    input.addEventListener("change", () => {
      if (input.checked) state.hidden.delete(column.name);
      else state.hidden.add(column.name);
      buildHead();
      update();
    });
    return make("label", { class: "check" }, input, make("span", {}, column.title));
  }));
}

/** Set the controls from the state. */
function showChosen() {
  for (const name of ["search", "source", "family", "backbone", "dataset"]) document.getElementById(name).value = state[name];
  for (const input of document.querySelectorAll("#kinds input")) input.checked = state.kinds.has(input.value);
  document.getElementById("trusted").checked = state.trusted;
  document.getElementById("plot-log").checked = state.log;
  document.getElementById("plot-x").value = state.x;
  document.getElementById("plot-y").value = state.y;
  showTheme();
}

const DARK = matchMedia("(prefers-color-scheme: dark)");

function isDark() { return state.theme ? state.theme === "dark" : DARK.matches; }

function showTheme() {
  document.documentElement.style.colorScheme = state.theme || "light dark";
  const button = document.getElementById("theme");
  button.textContent = isDark() ? "Light" : "Dark";
  button.setAttribute("aria-label", `Change to ${isDark() ? "light" : "dark"} colours`);
  button.setAttribute("aria-pressed", String(Boolean(state.theme)));
}

function showTiles() {
  const count = (holds) => LINES.filter(holds).length;
  const rows = new Set(LINES.filter((line) => line.kind === "measured").map((line) => line.row.name));
  const failed = DATA.records.filter((record) => record.status !== "finished").length;
  const tiles = { rows: DATA.rows.length, "rows measured": rows.size, "published lines": count((line) => line.kind === "published"), records: DATA.records.length,
    ...(failed ? { "of them failed": failed } : {}) };
  document.getElementById("tiles").append(...Object.entries(tiles).map(([title, number]) => make("div", {}, make("dt", {}, title), make("dd", {}, String(number)))));
  document.getElementById("nothing").hidden = DATA.records.length > 0;
}

function showProblems() {
  const section = document.getElementById("problems");
  section.hidden = !DATA.problems.length;
  section.querySelector("ul").append(...DATA.problems.map((problem) => make("li", {}, problem)));
}

function startControls() {
  const search = document.getElementById("search");
  search.addEventListener("input", () => { state.search = search.value; update(); });
  document.getElementById("limit-names").append(...[...QUANTITIES.keys()].flatMap((name) => [make("code", {}, name), ", "]).slice(0, -1));
  document.getElementById("trusted").addEventListener("change", (event) => { state.trusted = event.target.checked; update(); });
  document.getElementById("clear").addEventListener("click", () => {
    Object.assign(state, { search: "", source: "", family: "", backbone: "", dataset: "", trusted: false, kinds: new Set(["measured", "published"]) });
    showChosen();
    update();
  });
  document.getElementById("csv").addEventListener("click", downloadCsv);
  document.getElementById("theme").addEventListener("click", () => { state.theme = isDark() ? "light" : "dark"; showTheme(); writeAddress(); });
  DARK.addEventListener("change", showTheme);
  addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, select, dialog");
    if (event.key === "/" && !typing) { event.preventDefault(); search.focus(); }
  });
  addEventListener("hashchange", () => { readAddress(); showChosen(); update(); });
}

fillSelect("source", "source", "all sources");
fillSelect("family", "family", "all detectors");
fillSelect("backbone", "backbone", "all backbones");
fillSelect("dataset", "dataset", "all data");
fillKinds();
fillAxes();
fillColumns();
readAddress();
startTable();
startPlot();
startDetails();
startControls();
showTiles();
showComparisons();
showKernels();
showProblems();
showChosen();
buildHead();
update();
