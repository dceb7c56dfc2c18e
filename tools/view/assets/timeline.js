// Streams as lanes, segments or operators as bars, waits as arrows.

views.timeline = (() => {
  const GUTTER = 78, AXIS = 26, GAP = 12;
  let layout, surface, selected, side, strip, note, found, count, controls, search;

  function show(main) {
    surface = new Surface({
      label: "Timeline. Left and right arrows step along a lane, up and down change lane, plus and minus zoom, 0 fits.",
      lockY: true, inset: GUTTER, most: 400,
      least: (s) => (s.width - GUTTER - 24) / Math.max(layout.total, 0.001) / 1.02,
      fit: (s) => { s.scale = (s.width - GUTTER - 24) / Math.max(layout.total, 0.001); s.x = 0; s.y = 0; },
      limit, draw, pick, choose: (bar) => select(bar), press, tip: describe,
    });
    side = el("aside", { class: "card side", "aria-live": "polite", "aria-label": "Details", tabindex: "0" });
    strip = el("dl", { class: "stats" });
    note = el("p", { class: "note" });
    controls = el("div", { class: "bar" });
    count = el("span", { class: "count", role: "status" });
    search = el("input", {
      type: "search", placeholder: "Find by name or module", "aria-label": "Find", value: state.search,
      oninput: () => { state.search = search.value; find(); },
      onkeydown: (event) => { if (event.key === "Enter") { event.preventDefault(); next(event.shiftKey ? -1 : 1); } },
    });
    main.append(controls, strip, el("div", { class: "split" }, surface.element, side), legend(), note);
    build();
  }

  function update(changed) {
    if ("bucket" in changed || "strategy" in changed || "level" in changed || "timing" in changed) build();
    else surface.redraw();
  }

  function build() {
    const view = bucketData();
    const strategies = view.graph ? view.graph.plans.map((p) => p.strategy) : [];
    const captured = view.strategy;
    const strategy = strategies.includes(state.strategy) ? state.strategy : captured;
    const other = strategy !== captured;
    const level = !view.graph || !view.timings.length ? "segments" : other ? "operators" : state.level;
    const timing = view.timings[Math.min(state.timing, view.timings.length - 1)];
    layout = level === "operators" ? operatorLanes(view.graph, strategy) : segmentLanes(view, timing || untimed(view));
    layout.level = level;
    layout.strategy = strategy;
    controls.replaceChildren(
      bucketChoice(),
      strategies.length ? choice("Strategy", strategies.map((s) => [s, s === captured ? `${s} (captured)` : s]), strategy,
        (value) => change({ strategy: value === captured ? "" : value, selected: null })) : "",
      strategies.length ? toggle("Bars", [["segments", "Segments"], ["operators", "Operators"]], level,
        (value) => change({ level: value, selected: null, ...(value === "segments" ? { strategy: "" } : {}) })) : "",
      level === "segments" && view.timings.length > 1 ? toggle("Times", view.timings.map((t, i) => [String(i), t.kind]),
        String(state.timing), (value) => change({ timing: Number(value) })) : "",
      el("span", { class: "grow" }),
      el("span", { class: "find bar" }, count, search), zoomButtons(surface));
    const kind = level === "operators" ? "modelled" : timing ? timing.kind : "no times";
    const measured = view.timings.find((t) => t.kind === "measured");
    strip.replaceChildren(...stats([
      [layout.timing.serial_replay ? "Serial replay, measured" : `Start to join, ${kind}`, format.us(layout.total), "total"],
      ["Serial sum", format.us(layout.serial), "serial"],
      ["Longest data path", format.us(layout.timing.longest_path_us)],
      ["Replay p50, measured", measured ? format.us(measured.replay_us.p50) : "not measured", "replay"],
      ["Streams", layout.lanes.length, "streams"],
      ["Idle in streams", format.share(layout.timing.idle_share ?? 0)],
      [level === "operators" ? "Operators" : "Segments", format.count(layout.bars.length), "bars"],
      ["Waits", format.count(layout.waits.length), "waits"],
    ]));
    const said = level === "operators" ? (view.timings.find((t) => t.kind === "modelled") || { note: "" }).note : timing ? timing.note : "";
    const serial = data.artifact.device === "cpu" && kind === "modelled"
      ? " On the CPU, replay is serial: lanes show the plan, not what ran beside each other." : "";
    note.replaceChildren(el("b", {}, "Times are "), said ? `${said}.` : "not known: the artifact holds no operator graph.", serial);
    selected = layout.bars.find((b) => b.name === state.selected) || null;
    surface.fit();
    find();
    details();
  }

  // Without times every segment takes as long as any other.
  function untimed(view) {
    const ones = view.steps.map(() => 1);
    return { kind: "none", starts_us: view.steps.map((_, i) => i), durations_us: ones, critical: [], total_us: ones.length, serial_us: ones.length };
  }

  function limit(s) {
    const shown = (s.width - GUTTER) / s.scale;
    s.x = Math.min(Math.max(s.x, -shown * 0.05), Math.max(layout.total - shown * 0.5, 0));
    const { laneHeight } = geometry();
    const tall = AXIS + layout.lanes.length * (laneHeight + GAP) + 8;
    s.y = Math.min(Math.max(s.y, 0), Math.max(tall - s.height, 0));
  }

  function geometry() {
    const room = (surface.height - AXIS - 16) / layout.lanes.length - GAP;
    return { laneHeight: Math.round(Math.min(Math.max(room, 18), 84)), at: (t) => GUTTER + (t - surface.x) * surface.scale };
  }

  const laneTop = (stream, laneHeight) => AXIS + 8 + stream * (laneHeight + GAP) - surface.y;

  function draw(context, s) {
    const { laneHeight, at } = geometry();
    const focus = found && found.length ? new Set(found) : null;
    axis(context, s, at);
    context.save();
    context.beginPath();
    context.rect(GUTTER - 8, AXIS, s.width, s.height);
    context.clip();
    drawLanes(context, layout, {
      at, top: laneTop(0, laneHeight), left: GUTTER - 8, right: s.width, laneHeight, gap: GAP, from: s.x - 10 / s.scale,
      focus, selected, labels: true, marks: true, hatch: true,
    });
    if (layout.lanes.length > 1) forkAndJoin(context, at, laneHeight);
    waits(context, at, laneHeight);
    context.restore();
    context.textAlign = "left";
    layout.lanes.forEach((_, stream) => {
      const y = laneTop(stream, laneHeight) + laneHeight / 2;
      context.fillStyle = streamColour(stream);
      context.fillRect(12, y - 6, 5, 12);
      context.fillStyle = theme.ink;
      context.fillText(stream === 0 ? "0 main" : String(stream), 23, y);
    });
  }

  function axis(context, s, at) {
    const step = niceStep(90 / s.scale);
    context.fillStyle = theme.soft;
    context.strokeStyle = theme.line;
    context.lineWidth = 1;
    context.textAlign = "left";
    for (let t = Math.max(0, Math.ceil(s.x / step) * step); at(t) < s.width; t += step) {
      const x = Math.round(at(t)) + 0.5;
      context.beginPath();
      context.moveTo(x, AXIS - 8);
      context.lineTo(x, s.height);
      context.stroke();
      if (layout.timing.kind !== "none" && x < s.width - 34) context.fillText(`${Number(t.toPrecision(6))}`, x + 4, 12);
    }
    context.fillText("µs", 12, 12);
  }

  function forkAndJoin(context, at, laneHeight) {
    const top = laneTop(0, laneHeight);
    const last = laneTop(layout.lanes.length - 1, laneHeight) + laneHeight;
    context.strokeStyle = theme.soft;
    context.fillStyle = theme.soft;
    context.lineWidth = 1.5;
    for (const [time, name, shift] of [[0, "fork", -5], [layout.total, "join", 5]]) {
      const x = at(time) + shift;
      context.setLineDash([2, 3]);
      context.beginPath();
      context.moveTo(x, top);
      context.lineTo(x, last);
      context.stroke();
      context.setLineDash([]);
      diamond(context, x, top + laneHeight / 2);
      if (name === "join") context.fillText(name, x - 28, last + 8);
      else context.fillText(name, x - 4, last + 8);
    }
  }

  function diamond(context, x, y) {
    context.beginPath();
    context.moveTo(x, y - 5);
    context.lineTo(x + 5, y);
    context.lineTo(x, y + 5);
    context.lineTo(x - 5, y);
    context.fill();
  }

  function waits(context, at, laneHeight) {
    for (const wait of layout.waits) {
      const from = layout.bars[wait.from], to = layout.bars[wait.to];
      const mine = selected && (selected === from || selected === to);
      const x0 = at(from.start + from.duration), x1 = at(to.start);
      if (Math.max(x0, x1) < 0 || Math.min(x0, x1) > surface.width) continue;
      const y0 = laneTop(from.stream, laneHeight) + laneHeight / 2;
      const down = to.stream > from.stream;
      const y1 = laneTop(to.stream, laneHeight) + (down ? -1 : laneHeight + 1);
      context.globalAlpha = selected && !mine ? 0.25 : 0.9;
      context.strokeStyle = context.fillStyle = wait.kind === "data" ? theme.wait : theme.warn;
      context.lineWidth = mine ? 2.4 : 1.4;
      context.setLineDash(wait.kind === "data" ? [] : [5, 4]);
      const bend = Math.max(14, Math.min(Math.abs(x1 - x0) / 2, 60));
      context.beginPath();
      context.moveTo(x0, y0);
      context.bezierCurveTo(x0 + bend, y0, x1 - 2, y1 + (down ? -24 : 24), x1 + 2, y1 + (down ? -6 : 6));
      context.stroke();
      context.setLineDash([]);
      context.beginPath();
      context.moveTo(x1 + 2, y1);
      context.lineTo(x1 - 2.5, y1 + (down ? -7 : 7));
      context.lineTo(x1 + 6.5, y1 + (down ? -7 : 7));
      context.fill();
    }
    context.globalAlpha = 1;
  }

  function pick(x, y) {
    const { laneHeight } = geometry();
    if (x < GUTTER - 8 || y < AXIS) return null;
    const stream = Math.floor((y - laneTop(0, laneHeight)) / (laneHeight + GAP));
    const lane = layout.lanes[stream];
    if (!lane || y > laneTop(stream, laneHeight) + laneHeight) return null;
    const time = surface.x + (x - GUTTER) / surface.scale, slack = 2 / surface.scale;
    const bar = lane[firstVisible(lane, time - slack)];
    return bar && bar.start - slack <= time ? bar : null;
  }

  const describe = (bar) => `${bar.name} · ${format.us(bar.duration)} · stream ${bar.stream}`;

  function press(key) {
    const moves = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1], Home: "first", End: "last", Escape: "none" };
    const move = moves[key];
    if (!move) return false;
    if (move === "none") select(null);
    else if (move === "last") select(layout.bars[layout.bars.length - 1], true);
    else if (move === "first" || !selected) select(layout.bars[0], true);
    else if (move[0]) {
      const lane = layout.lanes[selected.stream];
      select(lane[Math.min(Math.max(lane.indexOf(selected) + move[0], 0), lane.length - 1)], true);
    } else {
      const lane = layout.lanes[Math.min(Math.max(selected.stream + move[1], 0), layout.lanes.length - 1)];
      select(lane[Math.min(firstVisible(lane, selected.start + selected.duration / 2), lane.length - 1)], true);
    }
    return true;
  }

  function select(bar, reveal = false) {
    selected = bar;
    state.selected = bar ? bar.name : null;
    if (bar && reveal) bring(bar);
    remember();
    details();
    surface.redraw();
  }

  function bring(bar) {
    const { at, laneHeight } = geometry();
    const middle = at(bar.start + bar.duration / 2);
    if (bar.duration * surface.scale < 12) surface.zoom(Math.min(24 / Math.max(bar.duration * surface.scale, 0.05), 60), middle);
    const x = geometry().at(bar.start);
    if (x < GUTTER || geometry().at(bar.start + bar.duration) > surface.width) surface.pan(surface.width / 2 - x, 0);
    const y = laneTop(bar.stream, laneHeight);
    if (y < AXIS || y + laneHeight > surface.height) surface.pan(0, surface.height / 2 - y);
  }

  function find() {
    const wanted = state.search.trim().toLowerCase();
    found = wanted ? layout.bars.filter((b) => b.text.includes(wanted)) : null;
    count.textContent = found ? format.plural(found.length, "match").replace("matchs", "matches") : "";
    surface.redraw();
  }

  function next(step) {
    if (!found || !found.length) return;
    const at = found.indexOf(selected);
    select(found[(at < 0 ? (step > 0 ? 0 : -1) : at + step + found.length) % found.length] || found[found.length - 1], true);
  }

  function details() {
    if (!selected) side.replaceChildren(el("h2", {}, "Nothing selected"),
      el("p", {}, "Click a bar, or focus the timeline and use the arrow keys."),
      el("p", { class: "keys" }, "+ and − zoom, 0 fits, a and d pan, Home and End jump, Escape clears."));
    else side.replaceChildren(...(selected.step ? segmentDetails(selected, layout) : operatorDetails(bucketData().graph, selected.operator, layout.strategy)));
    side.scrollTop = 0;
  }

  function legend() {
    const mark = (children, text) => el("li", {}, svg("svg", { viewBox: "0 0 26 12", "aria-hidden": "true" }, ...children), text);
    const line = (extra) => svg("path", { d: "M1 6H20", "stroke-width": "1.6", fill: "none", ...extra });
    const tip = (colour) => svg("path", { d: "M19 2.5L25 6L19 9.5Z", fill: colour });
    return el("ul", { class: "legend", "aria-label": "Legend" },
      mark([line({ stroke: "var(--wait)" }), tip("var(--wait)")], "wait on data"),
      mark([line({ stroke: "var(--warn)", "stroke-dasharray": "5 3" }), tip("var(--warn)")], "wait for order alone"),
      mark([svg("rect", { x: 1, y: 1, width: 11, height: 10, fill: "#8a8f98" }), svg("rect", { x: 14, y: 1, width: 11, height: 10, fill: "#8a8f98" }),
        svg("path", { d: "M13 0V12", stroke: "var(--ink)", "stroke-dasharray": "2 2" })], "follows in stream order, reads nothing from it"),
      mark([svg("rect", { x: 1, y: 1, width: 24, height: 10, fill: "#8a8f98" }), svg("rect", { x: 1, y: 8, width: 24, height: 3, fill: "var(--ink)" })], "critical path"),
      mark([svg("rect", { x: 1, y: 1, width: 24, height: 10, fill: "var(--track)", stroke: "var(--line)" }), svg("path", { d: "M4 11L13 1M12 11L21 1", stroke: "var(--line)" })], "idle"));
  }

  return { title: "Timeline", show, update, layout: () => layout, surface: () => surface, geometry: () => ({ ...geometry(), laneTop, GUTTER }), chosen: () => selected };
})();

function niceStep(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].find((m) => m * power >= rough) * power;
}
