// The Pareto plot: points of one setting with error bars and the front, as SVG elements for keyboard and pointer.

const MARGIN = { left: 58, right: 18, top: 22, bottom: 46 };
const EVERY = "every";  // all settings at once: no common front
const NAME_GAP = 17;
const FEW_POINTS = 12, NAME_LETTER = 6.2;

const plot = { points: [], active: 0, root: null };

/** Indices of the points that no other point dominates. */
function paretoFront(points, betterX, betterY) {
  const cost = points.map((point) => [betterX === "lower" ? point.x : -point.x, betterY === "lower" ? point.y : -point.y]);
  const front = [];
  for (const place of cost.map((_, index) => index).sort((a, b) => cost[a][0] - cost[b][0] || cost[a][1] - cost[b][1] || a - b)) {
    const last = front.length ? cost[front[front.length - 1]] : null;
    if (!last || cost[place][1] < last[1] || (cost[place][0] === last[0] && cost[place][1] === last[1])) front.push(place);
  }
  return front;
}

function hasBoth(line) { return line.values[state.x] && line.values[state.y] && (!state.log || value(line, state.x) > 0); }

/** Settings with points: measured before published, most points first. */
function plotSettings(lines) {
  const counts = new Map();
  for (const line of lines) if (line.setting && hasBoth(line)) counts.set(line.settingPlace, (counts.get(line.settingPlace) || [0, 0]).map((count, place) => count + (place ? Number(line.trusted) : 1)));
  const rank = ([place, [count, trusted]]) => [DATA.settings[place].kind === "measured" ? 0 : 1, -Math.min(trusted, 2), -count];
  return [...counts].sort((a, b) => {
    const [first, second] = [rank(a), rank(b)];
    const differs = first.findIndex((each, index) => each !== second[index]);
    return differs < 0 ? a[0] - b[0] : first[differs] - second[differs];
  });
}

function fillSettings(lines) {
  const found = plotSettings(lines), select = document.getElementById("plot-setting");
  const options = found.map(([place, [count]]) => make("option", { value: String(place) }, `${DATA.settings[place].kind}: ${DATA.settings[place].title} (${count})`));
  const total = found.reduce((sum, [, [count]]) => sum + count, 0);
  select.replaceChildren(...options, ...(found.length > 1 ? [make("option", { value: EVERY }, `all settings, no common front (${total})`)] : []));
  select.disabled = !found.length;
  const known = [...select.options].some((option) => option.value === state.setting);
  select.value = known ? state.setting : found.length ? String(found[0][0]) : "";
  return select.value;
}

function scale(low, high, from, to, log) {
  const [a, b] = log ? [Math.log(low), Math.log(high)] : [low, high];
  return (number) => from + ((log ? Math.log(number) : number) - a) / (b - a || 1) * (to - from);
}

function niceTicks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough)), step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough);
  const ticks = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step * 1e-9; tick += step) ticks.push(Number(tick.toPrecision(12)));
  return ticks;
}

function logTicks(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) for (const each of [1, 2, 5]) ticks.push(each * 10 ** power);
  const inside = ticks.filter((tick) => tick >= low && tick <= high);
  return inside.length > 1 ? inside : niceTicks(low, high, 4);
}

function range(points, axis, log) {
  const ends = points.flatMap((point) => [point[axis], ...(point[`${axis}Edges`] || [])]).filter((each) => !log || each > 0);
  const low = Math.min(...ends), high = Math.max(...ends);
  if (log) return [low / 1.12, high * 1.12];
  const room = (high - low || Math.abs(high) || 1) * 0.07;
  return [low >= 0 && low - room < 0 ? 0 : low - room, high + room];
}

/** Draw the points of the filtered lines in the selected setting. */
function layPlot(lines) {
  const setting = fillSettings(lines), x = QUANTITIES.get(state.x), y = QUANTITIES.get(state.y);
  const chosen = lines.filter((line) => hasBoth(line) && line.setting && (setting === EVERY || String(line.settingPlace) === setting));
  plot.points = chosen.map((line) => ({ line, x: value(line, state.x), y: value(line, state.y), xEdges: line.values[state.x].slice(1), yEdges: line.values[state.y].slice(1) }))
    .sort((a, b) => a.x - b.x || a.y - b.y);
  plot.active = Math.min(plot.active, Math.max(0, plot.points.length - 1));
  hideTip();
  const trusted = plot.points.filter((point) => point.line.trusted);
  const front = setting === EVERY ? [] : paretoFront(trusted, x.better, y.better).map((place) => trusted[place]);
  plot.root.replaceChildren(plot.points.length ? picture(x, y, front) : make("p", { class: "help" }, `No line that matches the filters has both ${x.title} and ${y.title}.`));
  layLegend(front);
  const notes = [`${plot.points.length} point${plot.points.length === 1 ? "" : "s"}`];
  if (setting === EVERY) notes.push("lines of several settings, which must not be compared: choose one for its front");
  if (trusted.length < plot.points.length) notes.push(`${plot.points.length - trusted.length} with untrained weights or synthetic data are not part of the front: their accuracy is meaningless`);
  if (plot.points.length && DATA.settings[chosen[0].settingPlace].kind === "published" && setting !== EVERY) notes.push("published by the source, not measured here");
  document.getElementById("plot-note").textContent = plot.points.length ? `${notes.join("; ")}.` : "";
}

function picture(x, y, front) {
  const width = Math.max(280, plot.root.clientWidth), height = plot.root.clientHeight;
  const [x0, x1] = range(plot.points, "x", state.log), [y0, y1] = range(plot.points, "y", false);
  const toX = scale(x0, x1, MARGIN.left, width - MARGIN.right, state.log), toY = scale(y0, y1, height - MARGIN.bottom, MARGIN.top, false);
  const ticksX = state.log ? logTicks(x0, x1) : niceTicks(x0, x1, width / 95), ticksY = niceTicks(y0, y1, height / 60);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `${y.title} against ${x.title}`, "aria-describedby": "plot-help" });
  for (const tick of ticksX) svg.append(draw("line", { class: "grid", x1: toX(tick), x2: toX(tick), y1: MARGIN.top, y2: height - MARGIN.bottom }),
    draw("text", { x: toX(tick), y: height - MARGIN.bottom + 18, "text-anchor": "middle" }, String(tick)));
  for (const tick of ticksY) svg.append(draw("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: toY(tick), y2: toY(tick) }),
    draw("text", { x: MARGIN.left - 8, y: toY(tick) + 4, "text-anchor": "end" }, String(tick)));
  svg.append(draw("line", { class: "axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: height - MARGIN.bottom, y2: height - MARGIN.bottom }),
    draw("line", { class: "axis", x1: MARGIN.left, x2: MARGIN.left, y1: MARGIN.top, y2: height - MARGIN.bottom }),
    draw("text", { x: width - MARGIN.right, y: height - 8, "text-anchor": "end" }, `${x.title} (${x.unit}), ${x.better} is better`),
    draw("text", { x: 4, y: 12 }, `${y.title} (${y.unit}), ${y.better} is better`));
  if (front.length) svg.append(draw("path", { class: "front", d: steps(front.map((point) => [toX(point.x), toY(point.y)])) }));
  plot.points.forEach((point, index) => svg.append(pointMark(point, index, toX, toY, x, y)));
  svg.append(...names(plot.points.length > FEW_POINTS ? front : plot.points, toX, toY, width));
  return svg;
}

function steps(corners) { return corners.map(([px, py], index) => (index ? `H${px.toFixed(1)}V${py.toFixed(1)}` : `M${px.toFixed(1)} ${py.toFixed(1)}`)).join(""); }

/** Names of rows, at the upper left of the points (all points if few, otherwise the front); overlapping names are omitted. */
function names(points, toX, toY, width) {
  const found = [], heights = [];
  for (const point of points) {
    const px = toX(point.x), py = toY(point.y), name = point.line.row.name, room = NAME_LETTER * name.length, left = px - room > MARGIN.left;
    if (heights.some((height) => Math.abs(height - py) < NAME_GAP)) continue;
    heights.push(py);
    found.push(draw("text", { class: "name", x: left ? px - 8 : Math.max(MARGIN.left + 4, Math.min(px, width - room - MARGIN.right)), y: left ? py - 5 : py - 10, "text-anchor": left ? "end" : "start" }, name));
  }
  return found;
}

function markShape(line, px, py) {
  if (line.kind === "published") return draw("path", { class: "mark", d: `M${px} ${py - 6}L${px + 6} ${py}L${px} ${py + 6}L${px - 6} ${py}Z` });
  return draw("circle", { class: "mark", cx: px, cy: py, r: 5.5 });
}

function pointMark(point, index, toX, toY, x, y) {
  const px = toX(point.x), py = toY(point.y), { line } = point;
  const group = draw("g", { class: `point ${line.kind} ${line.trusted ? "" : "untrusted"} ${colourOf(line.row.family)}`, tabindex: index === plot.active ? "0" : "-1", role: "button",
    "data-index": index, "aria-label": pointText(point, x, y).replaceAll("\n", "; ") });
  if (point.xEdges.length) group.append(draw("line", { class: "bar-error", x1: toX(Math.max(point.xEdges[0], Number.MIN_VALUE)), x2: toX(point.xEdges[1]), y1: py, y2: py }));
  if (point.yEdges.length) group.append(draw("line", { class: "bar-error", x1: px, x2: px, y1: toY(point.yEdges[0]), y2: toY(point.yEdges[1]) }));
  group.append(markShape(line, px, py), draw("circle", { class: "ring", cx: px, cy: py, r: 12 }));
  return group;
}

/** The text of a point, for tooltip and screen reader. */
function pointText(point, x, y) {
  const number = (quantity, at, edges) => `${quantity.title} ${written(at, quantity.digits)} ${quantity.unit}${edges.length ? ` (${interval(edges, quantity.digits)})` : ""}`;
  const head = [point.line.row.name, [point.line.kind, ...point.line.flags].join(", ")];
  return [...head, number(x, point.x, point.xEdges), number(y, point.y, point.yEdges)].join("\n");
}

function layLegend(front) {
  const families = [...new Set(plot.points.map((point) => point.line.row.family))].sort(byText);
  const swatch = (kind, trusted, colour) => draw("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, draw("g", { class: `${kind} ${trusted ? "" : "untrusted"} ${colour}` }, markShape({ kind }, 8, 8)));
  const items = families.map((family) => make("li", {}, swatch("measured", true, colourOf(family)), family));
  if (plot.points.some((point) => point.line.kind === "published")) items.push(make("li", {}, swatch("published", true, "plain"), "published"));
  if (plot.points.some((point) => !point.line.trusted)) items.push(make("li", {}, swatch("measured", false, "plain"), "untrained or synthetic"));
  if (front.length) items.push(make("li", {}, draw("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, draw("path", { class: "front", d: "M0 13H8V4H16" })), "Pareto front"));
  document.getElementById("legend").replaceChildren(...items);
}

function showTip(target) {
  const tip = document.getElementById("tip"), point = plot.points[Number(target.dataset.index)];
  tip.textContent = pointText(point, QUANTITIES.get(state.x), QUANTITIES.get(state.y));
  tip.hidden = false;
  for (const lit of plot.root.querySelectorAll(".lit")) lit.classList.remove("lit");
  target.classList.add("lit");
  const at = target.querySelector(".ring").getBoundingClientRect();
  const left = at.right + 6 + tip.offsetWidth > innerWidth ? at.left - 6 - tip.offsetWidth : at.right + 6;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, Math.min(at.top - 8, innerHeight - tip.offsetHeight - 4))}px`;
}

function hideTip() {
  document.getElementById("tip").hidden = true;
  for (const lit of plot.root.querySelectorAll(".lit")) lit.classList.remove("lit");
}

function goToPoint(index) {
  plot.active = Math.max(0, Math.min(plot.points.length - 1, index));
  for (const mark of plot.root.querySelectorAll(".point")) mark.setAttribute("tabindex", Number(mark.dataset.index) === plot.active ? "0" : "-1");
  plot.root.querySelector(`.point[data-index="${plot.active}"]`).focus();
}

const STEPS = { ArrowRight: (now) => now + 1, ArrowUp: (now) => now + 1, ArrowLeft: (now) => now - 1, ArrowDown: (now) => now - 1, Home: () => 0, End: () => Infinity };

function startPlot() {
  plot.root = document.getElementById("plot");
  const pointed = (event) => event.target.closest && event.target.closest(".point");
  plot.root.addEventListener("pointerover", (event) => { if (pointed(event)) showTip(pointed(event)); });
  plot.root.addEventListener("pointerout", (event) => { if (pointed(event)) hideTip(); });
  plot.root.addEventListener("focusin", (event) => { if (pointed(event)) showTip(pointed(event)); });
  plot.root.addEventListener("focusout", hideTip);
  plot.root.addEventListener("click", (event) => {
    const point = pointed(event);
    if (point) { goToPoint(Number(point.dataset.index)); openDetails(plot.points[plot.active].line, point); }
  });
  plot.root.addEventListener("keydown", (event) => {
    const point = pointed(event);
    if (!point || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "Enter" || event.key === " ") openDetails(plot.points[Number(point.dataset.index)].line, point);
    else if (event.key === "Escape") hideTip();
    else if (STEPS[event.key]) goToPoint(STEPS[event.key](plot.active));
    else return;
    event.preventDefault();
  });
  addEventListener("scroll", hideTip, { passive: true });
  new ResizeObserver(() => layPlot(filtered())).observe(plot.root);
}
