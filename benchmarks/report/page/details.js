// The details of one line: all numbers with conditions, the row in other settings, phases, samples, history, weights, records.

const details = { dialog: null, opener: null };

function openDetails(line, opener) {
  details.opener = opener;
  hideTip();
  const close = make("button", { type: "button", class: "quiet close" }, "Close");
  close.addEventListener("click", () => details.dialog.close());
  details.dialog.querySelector(".sheet").replaceChildren(close, make("h2", { id: "details-title" }, line.row.name), make("p", { class: "help" }, line.row.title),
    make("div", { class: "badges" }, badge(line), line.flags.map((flag) => make("span", { class: "flag" }, flag))), ...chapters(line).filter(Boolean));
  details.dialog.showModal();
  details.dialog.scrollTop = 0;
}

function startDetails() {
  details.dialog = document.getElementById("details");
  details.dialog.addEventListener("click", (event) => { if (event.target === details.dialog) details.dialog.close(); });
  details.dialog.addEventListener("close", () => {
    const here = details.opener && details.opener.isConnected ? details.opener : document.getElementById("scroller");
    here.focus({ preventScroll: true });
  });
}

function chapters(line) {
  const records = (line.records || []).map((place) => DATA.records[place]);
  return [
    line.reason === undefined ? null : make("p", { class: "notice" }, DATA.texts[line.reason]),
    line.row.note ? make("p", { class: "help" }, line.row.note) : null,
    line.kind === "measured" ? measuredNumbers(records) : null, line.kind === "published" ? publishedNumbers(line) : null,
    pictures(line), classes(records), missing(line, records), elsewhere(line), phaseBar(records), traces(records), histories(records[0]), trainings(line), weightsOf(line, records[0]), circumstances(records[0]), allRecords(line),
  ].flat();
}

function chapter(title, ...inside) { return [make("h3", {}, title), ...inside]; }

function metricOf(name) { return DATA.metrics[name] || { title: name, unit: "", digits: 3 }; }

function grid(heads, rows) {
  const numbers = heads.map((head) => head.number);
  const cells = rows.map((row) => make("tr", {}, row.map((inside, place) => make(place ? "td" : "th", { scope: place ? null : "row",
    class: numbers[place] ? "number" : null, "data-head": place ? heads[place].title : null }, inside))));
  return make("div", { class: "wide" }, make("table", {}, make("thead", {}, make("tr", {}, heads.map((head) => make("th", { scope: "col", class: head.number ? "number" : null }, head.title)))),
    make("tbody", {}, cells)));
}

const HEADS = [{ title: "Metric" }, { title: "Value", number: true }, { title: "95 % interval", number: true }, { title: "n", number: true }, { title: "How" }];

function measuredNumbers(records) {
  const seen = new Map();
  for (const record of records) for (const [name, found] of Object.entries(record.values || {})) if (!seen.has(name)) seen.set(name, found);
  return chapter("Measured", grid(HEADS, [...seen].map(([name, found]) => {
    const { title, digits } = metricOf(name);
    const spread = found.percentiles ? Object.entries(found.percentiles).map(([percent, at]) => `${percent} ${written(at, digits)}`).join(", ") : "";
    const how = [found.extrapolated ? "extrapolated" : "", found.statistic === "value" ? "" : found.statistic, DATA.texts[found.covers], DATA.texts[found.note], spread].filter(Boolean).join("; ");
    return [title, `${written(found.value, digits)} ${found.unit}`, found.interval ? interval(found.interval, digits) : "–", String(found.n || 1), make("span", { class: "how" }, how)];
  })));
}

function publishedNumbers(line) {
  return line.published.map((record) => {
    const where = DATA.texts[record.where];
    const rows = Object.entries(record.values).map(([name, at]) => [metricOf(name).title, `${at} ${metricOf(name).unit}`]);
    return chapter(`Published in ${where.source}`, facts(where), grid([{ title: "Metric" }, { title: "Value", number: true }], rows));
  }).flat();
}

/** Pictures with detections, if there are any next to the records. */
function pictures(line) {
  const found = DATA.pictures[line.row.name] || [];
  if (!found.length) return null;
  return chapter("Detections", make("div", { class: "pictures" }, found.map(([name, address]) =>
    make("figure", {}, make("img", { src: address, alt: `Detections of ${line.row.name} in ${name}`, loading: "lazy" }), make("figcaption", {}, name)))));
}

/** AP per class, best first. */
function classes(records) {
  const record = records.find((each) => each.classes);
  if (!record) return null;
  const rows = Object.entries(record.classes).map(([name, ap]) => [name, ap.toFixed(1), make("meter", { min: 0, max: 100, value: ap, "aria-label": `${ap.toFixed(1)} %` })]);
  const table = make("details", { class: "classes" }, make("summary", {}, `${rows.length} classes`), grid([{ title: "Class" }, { title: "AP (%)", number: true }, { title: "" }], rows));
  return chapter("AP by class", table);
}

/** A list of names and values. */
function facts(pairs) {
  const known = Object.entries(pairs).filter(([, inside]) => inside !== undefined && inside !== null && inside !== "");
  const plain = (inside) => (inside instanceof Node ? inside : typeof inside === "object" ? Object.entries(inside).map(([name, at]) => `${name} ${at}`).join(", ") : String(inside));
  return make("dl", {}, known.map(([name, inside]) => [make("dt", {}, name.replaceAll("_", " ")), make("dd", {}, plain(inside))]));
}

function missing(line, records) {
  const reasons = new Map();
  for (const record of records) for (const [name, place] of Object.entries(record.absent || {})) if (!records.some((each) => (each.values || {})[name])) reasons.set(metricOf(name).title, DATA.texts[place]);
  if (line.kind === "not measured") return null;
  const shown = DATA.quantities.filter((quantity) => !line.values[quantity.name]);
  for (const quantity of shown) if (!reasons.has(quantity.title)) reasons.set(quantity.title, whyNot(line, quantity.name));
  const byReason = new Map();
  for (const [title, why] of reasons) byReason.set(why, [...(byReason.get(why) || []), title]);
  return byReason.size ? chapter("Missing numbers", make("ul", {}, [...byReason].map(([why, titles]) => make("li", {}, `${titles.join(", ")}: ${why}`)))) : null;
}

function elsewhere(line) {
  const others = LINES.filter((each) => each.row === line.row && each.kind !== "not measured");
  if (others.length < 2) return null;
  const shown = DATA.quantities.filter((quantity) => others.some((each) => each.values[quantity.name]));
  const heads = [{ title: "Line" }, ...shown.map((quantity) => ({ title: `${quantity.title} (${quantity.unit})`, number: true }))];
  const rows = others.map((each) => [
    make("span", {}, badge(each), each === line ? " this line" : "", make("span", { class: "how" }, ` ${[each.setting.title, ...each.flags].join(", ")}`)),
    ...shown.map((quantity) => (each.values[quantity.name] ? written(each.values[quantity.name][0], quantity.digits) : "–")),
  ]);
  return chapter("The same row in every setting", grid(heads, rows), make("p", { class: "help" }, "Times and memory of different settings are not comparable; accuracy is, on the same data."));
}

function phaseBar(records) {
  const record = records.find((each) => each.values && each.values.forward_ms);
  if (!record) return null;
  const parts = shareBar(record, DATA.parts);
  return chapter("Phases, median of each", ...shareBar(record, DATA.phases),
    ...(parts.length ? [make("h4", {}, "The forward phase, in separate passes"), ...parts] : []));
}

/** A bar of named times with a legend; empty without times. */
function shareBar(record, titles) {
  const shares = Object.entries(titles).filter(([name]) => record.values[name]).map(([name, title]) => [title, record.values[name].value]);
  if (!shares.length) return [];
  const total = shares.reduce((sum, [, at]) => sum + at, 0);
  const svg = draw("svg", { viewBox: "0 0 700 30", role: "img", "aria-label": shares.map(([title, at]) => `${title} ${at.toFixed(2)} ms`).join(", ") });
  let start = 0;
  const list = shares.map(([title, at], place) => {
    svg.append(draw("rect", { class: `c${place}`, fill: "currentColor", x: start, y: 2, width: Math.max(0, at / total * 700 - 1), height: 26 }));
    start += at / total * 700;
    const swatch = draw("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, draw("rect", { class: `c${place}`, fill: "currentColor", width: 14, height: 14, y: 1 }));
    return make("li", {}, swatch, `${title} ${at.toFixed(2)} ms`);
  });
  return [svg, make("ul", { class: "legend" }, list)];
}

/** A curve over equal steps, with labels. */
function curve(points, labels, title, digits) {
  const low = Math.min(...points), high = Math.max(...points), room = (high - low || Math.abs(high) || 1) * 0.15;
  const toX = scale(0, Math.max(1, points.length - 1), 56, 690, false), toY = scale(low - room, high + room, 84, 6, false);
  const svg = draw("svg", { viewBox: "0 0 700 104", role: "img", "aria-label": title });
  for (const at of [low, high]) svg.append(draw("line", { class: "guide", x1: 56, x2: 690, y1: toY(at), y2: toY(at) }), draw("text", { x: 50, y: toY(at) + 4, "text-anchor": "end" }, at.toFixed(digits)));
  svg.append(draw("polyline", { class: "trace", points: points.map((at, place) => `${toX(place).toFixed(1)},${toY(at).toFixed(1)}`).join(" ") }));
  if (points.length <= 40) svg.append(...points.map((at, place) => draw("circle", { class: "dot", cx: toX(place), cy: toY(at), r: 2.5 })));
  labels.forEach((label, place) => { if (label) svg.append(draw("text", { x: toX(place), y: 101, "text-anchor": place === 0 ? "start" : place === labels.length - 1 ? "end" : "middle" }, label)); });
  return svg;
}

function traces(records) {
  const record = records.find((each) => each.values && each.values.model_ms && each.values.model_ms.samples);
  if (!record) return null;
  const { samples, n } = record.values.model_ms, labels = samples.map((_, place) => (place === 0 ? "first sample" : place === samples.length - 1 ? "last" : ""));
  return chapter(`Model time, raw samples (ms, ${n} samples)`, curve(samples, labels, `Model time, ${n} samples in measurement order`, metricOf("model_ms").digits));
}

function histories(record) {
  if (!record) return null;
  const series = DATA.records.filter((each) => each.series === record.series);
  return DATA.followed.flatMap((name) => {
    const found = series.filter((each) => each.values && each.values[name]);
    if (found.length < 2) return [];
    const { title, unit, digits } = metricOf(name), every = Math.ceil(found.length / 8);
    const labels = found.map((each, place) => (place % every ? "" : `${(each.commit || "?").slice(0, 7)}${each.dirty ? "+" : ""}`));
    return chapter(`${title} (${unit}) by commit`, curve(found.map((each) => each.values[name].value), labels, `${title} over ${found.length} records`, digits));
  });
}

/** Loss, learning rate and accuracy of training runs of the row. */
function trainings(line) {
  return (DATA.trainings[line.row.name] || []).flatMap(({ name, updates, losses, rates, accuracy }) => {
    const ends = (points) => points.map((at, place) => (place === 0 || place === points.length - 1 ? `update ${at}` : ""));
    const drawn = [make("h4", {}, "Loss"), curve(losses, ends(updates), `Loss of ${name}, from ${losses[0]} to ${losses.at(-1)}`, 2),
      make("h4", {}, "Learning rate"), curve(rates, ends(updates), `Learning rate of ${name}`, 5)];
    if (accuracy) {
      const { title, unit, digits } = metricOf(accuracy.metric);
      drawn.push(make("h4", {}, `${title} (${unit})`), curve(accuracy.values, ends(accuracy.at), `${title} of ${name}`, digits));
    }
    return chapter(`Training ${name}, ${updates.at(-1)} updates`, make("div", { class: "training" }, drawn));
  });
}

function weightsOf(line, record) {
  const used = record && record.weights ? [make("p", { class: "help" }, `Measured with ${record.weights.kind} weights, ${record.weights.file || ""} ${record.weights.digest}${record.weights.note ? `; ${record.weights.note}` : ""}`)] : [];
  const published = (line.row.weights || []).map((spec) => {
    const links = (spec.urls || []).map((url) => make("dd", {}, spec.wrong || !/^https?:\/\//.test(url) ? make("code", {}, url) : make("a", { href: url, rel: "noopener noreferrer" }, url)));
    const list = facts({ wrong: spec.wrong, manual_download: spec.manual, sha256: spec.sha256 || "unknown (not pinned)", bytes: spec.bytes, licence: spec.licence || "not stated", format: spec.format, holds: spec.holds, note: spec.note });
    if (links.length) list.prepend(make("dt", {}, spec.wrong ? "wrong link" : "address"), ...links);
    return list;
  });
  return chapter("Weights", ...used, ...(published.length ? published : [make("p", { class: "help" }, "The source publishes no weights.")]),
    make("p", { class: "help" }, make("code", {}, `python download_weights.py get ${line.row.name}`)));
}

function circumstances(record) {
  if (!record) return null;
  const spec = DATA.specs[record.spec], data = record.data === undefined ? {} : DATA.data[record.data];
  const environment = record.environment === undefined ? { machine: "not recorded" } : DATA.environments[record.environment];
  const watched = Object.entries(record.telemetry || {}).map(([group, one]) => [`telemetry, ${group}`, [one.verdict, one.absent, one.note].filter(Boolean).join("; ")]);
  return chapter("Environment", facts({ commit: record.commit ? `${record.commit}${record.dirty ? ", with changes" : ""}` : "unknown", ...environment }), make("h3", {}, "Protocol and data"),
    facts({ ...spec, groups: spec.groups.join(", ") || "default of the row", data: data.name, images: data.images && `${data.images} of ${data.images_of_split}`, data_digest: data.digest,
      synthetic_data: data.made_up ? "yes" : "", ...Object.fromEntries(watched), notes: (record.notes || []).map((place) => DATA.texts[place]).join("; ") }));
}

function allRecords(line) {
  const found = DATA.records.filter((record) => record.series.startsWith(`${line.row.name}|`));
  if (!found.length) return null;
  return chapter("Records of this row", make("ul", {}, found.map((record) => make("li", {}, make("a", { href: `runs/${record.id}.json` }, record.id),
    `: ${record.status}${record.reason ? ` while ${record.stage || "starting"}: ${record.reason}` : ""}, ${record.started.slice(0, 10)}${(line.records || []).includes(DATA.records.indexOf(record)) ? ", shown above" : ""}`))));
}
