// Export: the shown lines as CSV, and the command that measures a row.

/** A CSV cell that spreadsheets do not interpret as a formula. */
function csvCell(given) {
  const text = String(given ?? "").replace(/[\u0000-\u001f\u007f]/g, " ");
  const guarded = /^[=+\-@]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text;
  return /[",\n]/.test(guarded) ? `"${guarded.replaceAll('"', '""')}"` : guarded;
}

/** Lines as CSV: identity, then all numbers with intervals, in table order. */
function csvText(lines) {
  const heads = ["row", "source", "numbers", "flags", "setting", "licence", "weights", ...DATA.quantities.flatMap(({ name, unit }) => [`${name} (${unit})`, `${name}_low`, `${name}_high`])];
  const rows = lines.map((line) => [line.row.name, line.row.source, line.kind, line.flags.join(", "), line.setting ? line.setting.title : "", licenceOf(line.row), weightsAddress(line.row),
    ...DATA.quantities.flatMap(({ name }) => [0, 1, 2].map((place) => (line.values[name] || [])[place]))]);
  return [heads, ...rows].map((cells) => `${cells.map(csvCell).join(",")}\n`).join("");
}

function downloadCsv() {
  const address = URL.createObjectURL(new Blob([csvText(table.lines)], { type: "text/csv" }));
  make("a", { href: address, download: "detection-zoo.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

/** The licences of a row and its weights, without duplicates. */
function licenceOf(row) {
  const names = [row.licence, ...(row.weights || []).filter((each) => !each.wrong).map((each) => each.licence)];
  return [...new Set(names.map((name) => name || "not stated"))].join(" and ");
}

function weightsAddress(row) {
  const weights = (row.weights || []).find((each) => !each.wrong);
  return weights ? (weights.urls || [weights.manual])[0] : "";
}

function commandOf(row) { return `python bench.py run ${row.name} --weights ${weightsAddress(row) ? "published" : "random"}`; }

/** A button that copies the row's command to the clipboard. */
function copyButton(row) {
  const button = make("button", { type: "button", class: "quiet copy", tabindex: "-1", title: commandOf(row), "aria-label": `copy: ${commandOf(row)}` }, "copy");
  button.addEventListener("click", async () => {
    await copyText(commandOf(row));
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
  return button;
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // not allowed: copy a selected text instead
    const area = make("textarea", { class: "unseen", "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}
