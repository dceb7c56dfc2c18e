// Small charts in SVG: steps over a logarithmic number of rows, and pairs of bars.

// What a request of n rows costs: the latency of the bucket that holds it. Below, how often each
// size was seen, if it was counted.
function stepChart(points, sizes, label) {
  const W = chartWidth(), H = 230, left = 56, right = 14, top = 14, floor = 150, base = 204;
  const most = points[points.length - 1].size;
  const x = (n) => left + ((W - left - right) * Math.log2(n * 2)) / Math.log2(most * 2.6); // from half a row
  const high = Math.max(...points.map((p) => p.us || 0), 0.001) * 1.12;
  const y = (us) => floor - ((floor - top) * us) / high;
  const chart = svg("svg", { class: "chart", viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": label, preserveAspectRatio: "xMidYMid meet" });
  const tick = niceStep(high / 4);
  for (let t = 0; t <= high; t += tick) {
    chart.append(svg("path", { d: `M${left} ${y(t)}H${W - right}`, stroke: "var(--line)" }),
      svg("text", { x: left - 8, y: y(t) + 4, "text-anchor": "end" }, Number(t.toPrecision(4))));
  }
  chart.append(svg("text", { x: 4, y: top - 2 }, "µs"));
  let from = 0.5;
  for (const p of points) {
    const x0 = x(from), x1 = x(p.size);
    chart.append(svg("rect", { x: x0, y: y(p.us || 0), width: Math.max(x1 - x0, 3), height: floor - y(p.us || 0), fill: "var(--accent)", opacity: 0.18 }),
      svg("path", { d: `M${x0} ${y(p.us || 0)}H${Math.max(x1, x0 + 3)}`, stroke: "var(--accent)", "stroke-width": 2.5 }),
      svg("path", { d: `M${x1} ${floor}V${base}`, stroke: "var(--line)", "stroke-dasharray": "3 3" }));
    from = p.size;
  }
  // Largest first: of buckets that lie close, the others go unlabelled, and the table has them all.
  let freeTime = W, freeSize = W;
  for (const p of [...points].reverse()) {
    const time = format.us(p.us), size = String(p.size), x1 = x(p.size);
    const begin = Math.max(x1 - 2 - time.length * LETTER, left + 2); // not over the numbers of the axis
    if (begin + time.length * LETTER < freeTime) {
      chart.append(svg("text", { class: "strong", x: begin, y: y(p.us || 0) - 6 }, time));
      freeTime = begin - 4;
    }
    if (x1 + (size.length * LETTER) / 2 < freeSize) {
      chart.append(svg("text", { x: x1, y: H - 8, "text-anchor": "middle" }, size));
      freeSize = x1 - (size.length * LETTER) / 2 - 4;
    }
  }
  const seen = Math.max(...sizes.map(([, n]) => n), 1);
  for (const [n, count] of sizes) {
    const tall = Math.max((44 * count) / seen, 1.5);
    chart.append(svg("rect", { x: x(Math.min(n, most * 1.25)) - 2, y: base - tall, width: 4, height: tall, fill: n > most ? "var(--warn)" : "var(--good)" }));
  }
  if (!sizes.length) chart.append(svg("text", { x: left + 8, y: base - 16 }, "sizes of requests: none counted"));
  chart.append(svg("path", { d: `M${left} ${base}H${W - right}`, stroke: "var(--soft)" }), svg("text", { x: left - 8, y: H - 8, "text-anchor": "end" }, "rows"));
  return chart;
}

const LETTER = 7.4; // pixels, with something to spare: of a chart's bold text

// As wide as there is room, so that letters keep their size.
const chartWidth = () => Math.max(300, Math.min(document.getElementById("main").clientWidth - 72, 1180));

function barPairs(rows, names, label) {
  const line = 44, W = chartWidth(), left = 60, right = 120, H = rows.length * line + 8;
  const high = Math.max(...rows.flatMap((r) => r.values));
  const chart = svg("svg", { class: "chart", viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": label });
  chart.style.height = "auto";
  rows.forEach((row, i) => {
    const y = i * line + 6;
    chart.append(svg("text", { class: "strong", x: left - 10, y: y + 20, "text-anchor": "end" }, row.name));
    row.values.forEach((value, j) => {
      const width = Math.max(((W - left - right) * value) / high, 1.5);
      chart.append(svg("rect", { x: left, y: y + j * 16, width, height: 13, rx: 2, fill: names[j].colour }),
        svg("text", { x: left + width + 6, y: y + j * 16 + 11 }, format.us(value)));
    });
    chart.append(svg("text", { class: "strong", x: W - 4, y: y + 20, "text-anchor": "end" }, row.end));
  });
  return chart;
}

// One bar a row, its name at the left and a remark at the right; where bars would have no room
// between them, these two stand above.
function bars(rows, label) {
  const W = chartWidth(), above = W < 560, line = above ? 38 : 19;
  const left = above ? 0 : 142, right = above ? 70 : 196, H = rows.length * line + 6;
  const high = Math.max(...rows.map((r) => r.value));
  const chart = svg("svg", { class: "chart", viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": label });
  chart.style.height = "auto";
  rows.forEach((row, i) => {
    const top = i * line + 3, y = above ? top + 17 : top, width = Math.max(((W - left - right) * row.value) / high, 1.5);
    const name = above ? { x: 0 } : { x: left - 8, "text-anchor": "end" };
    chart.append(svg("text", { class: "strong", y: top + 12, ...name }, row.name),
      svg("rect", { x: left, y, width, height: 14, rx: 2, fill: row.colour }),
      svg("text", { x: left + width + 6, y: y + 12 }, format.us(row.value)),
      svg("text", { x: W - 4, y: top + 12, "text-anchor": "end" }, row.end));
  });
  return chart;
}
