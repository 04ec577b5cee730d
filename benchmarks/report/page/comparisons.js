// Comparisons: values of the reference; verdict, ratio and interval of the other models.

/** A name with line-break opportunities after underscores and dots. */
function breakable(name) { return name.split(/(?<=[_.])/).flatMap((part) => [part, make("wbr")]); }

function comparedCell(found) {
  if (found.why) return make("span", { title: found.why, "aria-label": found.why }, "–");
  if (!found.verdict) return make("span", { class: "own" }, found.own);
  const about = found.value === "-" ? found.note : `${found.value} (${found.interval})`;
  return [make("span", { class: `verdict ${found.tone}`, title: found.note }, found.verdict), " ", make("span", { class: "own" }, found.own), make("small", {}, about)];
}

function showComparisons() {
  const section = document.getElementById("comparisons");
  section.hidden = !DATA.comparisons.length;
  for (const one of DATA.comparisons) {
    const heads = [{ title: "Model" }, ...one.heads.map((title) => ({ title, number: true }))];
    const rows = one.rows.map((row, place) => [[breakable(row.model), make("small", {}, `${place ? "" : "reference; "}weights ${row.weights}`)], ...row.cells.map(comparedCell)]);
    section.append(...chapter(breakable(one.title), grid(heads, rows), make("p", { class: "help" }, one.circumstances),
      make("details", {}, make("summary", {}, "Method and notes"), make("ul", {}, one.notes.map((note) => make("li", {}, note))))));
  }
}
