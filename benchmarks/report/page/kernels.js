// Operators compared with a peer's: a table per device, with a bar of the ratio on a logarithmic scale.

const KERNEL_HEADS = [{ title: "Operator" }, { title: "Ours", number: true }, { title: "Peer", number: true }, { title: "Times as fast", number: true }, { title: "" }, { title: "Notes" }];

function ratioBar(ratio, most) {
  const reach = Math.log(Math.max(most, 2)), middle = 50, at = middle + Math.max(-1, Math.min(1, Math.log(ratio) / reach)) * middle;
  return draw("svg", { class: "ratio", viewBox: "0 0 100 12", "aria-hidden": "true" }, draw("rect", { class: ratio >= 1 ? "c2" : "c1", fill: "currentColor", x: Math.min(middle, at), y: 2,
    width: Math.max(1, Math.abs(at - middle)), height: 8 }), draw("line", { class: "axis", x1: middle, x2: middle, y1: 0, y2: 12 }));
}

function showKernels() {
  const section = document.getElementById("kernels");
  section.hidden = !DATA.kernels.length;
  const most = Math.max(1, ...DATA.kernels.flatMap((timings) => timings.cases.filter((each) => each.ratio).map((each) => Math.max(each.ratio, 1 / each.ratio))));
  for (const timings of DATA.kernels) {
    const rows = timings.cases.map((each) => [each.name, each.ours, each.peer || "–", each.ratio ? `${written(each.ratio, 2)}${each.interval ? ` (${interval(each.interval, 2)})` : ""}` : "–",
      each.ratio ? ratioBar(each.ratio, most) : "", make("span", { class: "how" }, each.correct ? "" : make("span", { class: "flag" }, "differs from the reference"), ` ${each.note || ""}`)]);
    section.append(...chapter(`${timings.device}: ${timings.backend} compared with ${timings.peer}`, grid(KERNEL_HEADS, rows), ...timings.about.map((text) => make("p", { class: "help" }, text))));
  }
}
