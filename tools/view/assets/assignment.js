// Which operator runs in which stream: the graph by feature, branch and trunk.

views.assignment = (() => {
  const unfolded = new Set();
  let graph, layout, surface, selected, side, controls, search, count, found, strategy, key, summary;

  function show(main) {
    surface = new Surface({
      label: "Operator graph. Arrow keys move between operators, Enter unfolds features alike, plus and minus zoom, 0 fits.",
      lockY: false, most: 3, least: () => 0.05, fit, limit, draw, pick, choose, press, tip: describe,
    });
    side = el("aside", { class: "card side", "aria-live": "polite", "aria-label": "Details", tabindex: "0" });
    controls = el("div", { class: "bar" });
    summary = el("p", { class: "note" });
    count = el("span", { class: "count", role: "status" });
    key = el("ul", { class: "legend", "aria-label": "Streams" });
    search = el("input", {
      type: "search", placeholder: "Find by name or module", "aria-label": "Find", value: state.search,
      oninput: () => { state.search = search.value; find(); },
      onkeydown: (event) => { if (event.key === "Enter" && found && found.length) { event.preventDefault(); next(); } },
    });
    main.append(controls, summary, el("div", { class: "split" }, surface.element, side), key);
    build();
  }

  function build(keepPlace = false) {
    const view = bucketData();
    if (!view.graph) {
      controls.replaceChildren(bucketChoice());
      summary.textContent = "This artifact holds no operator graph. Capture the model again to see it.";
      layout = null;
      surface.redraw();
      return;
    }
    const which = state.graph === "before" && view.before ? "before" : "captured";
    graph = which === "before" ? view.before : view.graph;
    strategy = planOf(graph, state.strategy || view.strategy).strategy;
    layout = bandsOf(graph, strategy, unfolded);
    const open = layout.foldable.length && layout.foldable.every((k) => unfolded.has(k));
    controls.replaceChildren(
      bucketChoice(),
      which === "captured" ? choice("Strategy", graph.plans.map((p) => [p.strategy, p.strategy === view.strategy ? `${p.strategy} (captured)` : p.strategy]),
        strategy, (value) => change({ strategy: value === view.strategy ? "" : value, selected: null })) : "",
      view.before ? toggle("Rewrites", [["before", "Before rewrites"], ["captured", "After"]], which,
        (value) => change({ graph: value, selected: null })) : "",
      layout.foldable.length ? el("button", { class: "button", type: "button", "data-name": "fold", onclick: () => {
        if (open) unfolded.clear(); else layout.foldable.forEach((k) => unfolded.add(k));
        build();
      } }, open ? "Fold features alike" : "Unfold all") : "",
      el("span", { class: "grow" }), el("span", { class: "find bar" }, count, search), zoomButtons(surface));
    const before = view.before ? `${view.before.operators.length} operators before rewrites, ${view.graph.operators.length} after. ` : "Rewrites changed nothing here. ";
    const joined = graph === view.graph && view.before && layout.features < branchesOf(view.before).size;
    const shared = joined ? " Rewrites that join features move their operators to the trunk; modules alike are still shown in bands." : "";
    summary.textContent = `${before}${format.plural(layout.features, "feature")} with operators of their own.${shared} Colours are streams under ${strategy}${which === "before" ? ", had nothing been rewritten" : ""}.`;
    const lanes = planOf(graph, strategy).stream_count;
    key.replaceChildren(...Array.from({ length: lanes }, (_, s) => {
      const swatch = el("span", { class: "swatch" });
      swatch.style.background = streamColour(s);
      return el("li", {}, swatch, s === 0 ? "stream 0, main" : `stream ${s}`);
    }));
    const op = operatorsOf(graph).find((o) => o.name === state.selected);
    selected = op ? layout.nodeOf[op.index] : null;
    if (!keepPlace) surface.fit();
    find();
    details();
  }

  function update(changed) {
    if ("bucket" in changed || "strategy" in changed || "graph" in changed) build();
    else surface.redraw();
  }

  const gutter = () => (surface.width < 520 ? 96 : 168);

  function fit(s) {
    if (!layout) return;
    const wide = (s.width - gutter() - 16) / layout.width, tall = (s.height - 16) / layout.height;
    s.scale = Math.min(1.25, Math.max(Math.min(wide, tall), 0.62)); // smaller could not be read
    s.x = -gutter() / s.scale;
    s.y = -16 / s.scale;
  }

  function limit(s) {
    s.x = Math.min(Math.max(s.x, -gutter() / s.scale), Math.max(layout.width - s.width / 2 / s.scale, -gutter() / s.scale));
    s.y = Math.min(Math.max(s.y, -16 / s.scale), Math.max(layout.height - s.height / 2 / s.scale, 0));
  }

  function draw(context, s) {
    if (!layout) return;
    const bottom = s.y + s.height / s.scale, right = s.x + s.width / s.scale;
    const focus = found ? new Set(found) : null;
    context.save();
    context.scale(s.scale, s.scale);
    context.translate(-s.x, -s.y);
    context.lineWidth = 1.2 / Math.max(s.scale, 0.5);
    for (const { from, to } of layout.edges) edge(context, from, to, bottom, right);
    for (const band of layout.bands) {
      if (band.y > bottom || band.y + band.height < s.y) continue;
      for (const n of band.nodes) if (n.x < right && n.x + BOX.width > s.x) box(context, n, focus);
    }
    context.restore();
    titles(context, s);
  }

  function edge(context, from, to, bottom, right) {
    const x0 = from.x + BOX.width, y0 = from.y + BOX.height / 2, x1 = to.x, y1 = to.y + BOX.height / 2;
    if (Math.min(y0, y1) > bottom || Math.max(y0, y1) < surface.y || x0 > right || x1 < surface.x) return;
    const mine = selected && (selected === from || selected === to);
    const crosses = from.band !== to.band;
    context.globalAlpha = mine ? 1 : selected ? 0.15 : crosses ? 0.35 : 0.8;
    context.strokeStyle = mine ? theme.accent : theme.soft;
    context.beginPath();
    context.moveTo(x0, y0);
    if (y0 === y1) context.lineTo(x1, y1);
    else context.bezierCurveTo(x0 + 40, y0, x1 - 40, y1, x1, y1);
    context.stroke();
    context.globalAlpha = 1;
  }

  function box(context, n, focus) {
    context.globalAlpha = focus && !focus.has(n) ? 0.22 : 1;
    let x = n.x;
    for (const [stream, share] of n.streams) {
      const width = (BOX.width * share) / n.members.length;
      context.fillStyle = streamColour(stream);
      context.fillRect(x, n.y, width, BOX.height);
      x += width;
    }
    if (surface.scale > 0.42) {
      context.font = FONT.replace("12px", `${11.5 / Math.min(surface.scale, 1)}px`); // as large on screen at any zoom
      const plain = n.streams.length === 1;
      if (!plain) { // text over several colours needs a ground of its own
        context.fillStyle = theme.card;
        context.fillRect(n.x + 3, n.y + 4, BOX.width - 6, BOX.height - 8);
      }
      context.fillStyle = plain ? inkOn(streamColour(n.streams[0][0])) : theme.ink;
      const label = `${n.op.target.replace(/^aten\./, "").replace(/\.(default|Tensor|int|dim_IntList)$/, "")}`;
      context.fillText(fitText(context, label, BOX.width - 12), n.x + 6, n.y + BOX.height / 2 + 0.5);
    }
    context.globalAlpha = 1;
    if (n === selected) {
      context.strokeStyle = theme.accent;
      context.lineWidth = 3;
      context.strokeRect(n.x - 2, n.y - 2, BOX.width + 4, BOX.height + 4);
      context.lineWidth = 1.2;
    }
  }

  // Names stay at the left edge, in letters of one size, whatever the zoom.
  function titles(context, s) {
    const width = gutter() - 6;
    context.fillStyle = theme.card;
    context.fillRect(0, 0, width, s.height);
    context.fillStyle = theme.line;
    context.fillRect(width, 0, 1, s.height);
    let free = -Infinity;
    for (const band of layout.bands) {
      const y = (band.y - s.y) * s.scale, tall = band.height * s.scale;
      if (y > s.height) break;
      if (y + tall < 0) continue;
      const middle = Math.max(y + Math.min(tall / 2, BOX.height * s.scale), 10);
      if (middle - free < 15) continue; // titles that would overlap are left out
      const fold = band.folded ? "▸ " : band.key && band.first ? "▾ " : "";
      const two = band.note && tall + 10 > 30;
      const times = band.folded ? `×${band.features}` : "";
      const room = width - 16 - (times ? context.measureText(times).width + 6 : 0);
      context.fillStyle = theme.ink;
      context.fillText(fitText(context, fold + band.title, room), 10, two ? middle - 8 : middle);
      if (times) {
        context.fillStyle = theme.soft;
        context.textAlign = "right";
        context.fillText(times, width - 8, two ? middle - 8 : middle);
        context.textAlign = "left";
      }
      if (two) {
        context.fillStyle = theme.soft;
        context.fillText(fitText(context, band.note, width - 16), 10, middle + 8);
      }
      free = middle + (two ? 8 : 0);
    }
  }

  function pick(px, py) {
    if (!layout) return null;
    const x = surface.x + px / surface.scale, y = surface.y + py / surface.scale;
    const band = layout.bands.find((b) => y >= b.y - 4 && y <= b.y + b.height + 4);
    if (!band) return null;
    if (px < gutter() - 6) return { band };
    const n = band.nodes.find((m) => x >= m.x && x <= m.x + BOX.width && y >= m.y && y <= m.y + BOX.height);
    return n || null;
  }

  function choose(hit) {
    if (hit && hit.band && !hit.op) {
      if (hit.band.key) flip(hit.band.key);
      return;
    }
    selected = hit;
    state.selected = hit ? hit.op.name : null;
    remember();
    details();
    surface.redraw();
  }

  function flip(key) {
    if (!unfolded.delete(key)) unfolded.add(key);
    build(true);
  }

  const describe = (hit) => (hit.op
    ? `${hit.op.target} · ${hit.members.length > 1 ? `${hit.members.length} alike` : hit.op.name} · stream ${hit.streams.map(([s]) => s).join(", ")}`
    : hit.band.key ? `${hit.band.title}: click to ${hit.band.folded ? "unfold" : "fold"}` : hit.band.title);

  function press(key) {
    if (!layout) return false;
    if (key === "Escape") return choose(null), true;
    if (key === "Enter" && selected && selected.band.key) return flip(selected.band.key), true;
    const move = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[key];
    if (!move) return false;
    if (!selected) return reveal(layout.bands[0].nodes[0]), true;
    const at = layout.bands.indexOf(selected.band);
    const band = layout.bands[Math.min(Math.max(at + move[1], 0), layout.bands.length - 1)];
    const near = band.nodes.reduce((a, b) => (Math.abs(b.column - selected.column) < Math.abs(a.column - selected.column) ? b : a));
    const along = band.nodes[Math.min(Math.max(band.nodes.indexOf(selected) + move[0], 0), band.nodes.length - 1)];
    reveal(move[1] ? near : along);
    return true;
  }

  function reveal(n) {
    choose(n);
    const x = (n.x - surface.x) * surface.scale, y = (n.y - surface.y) * surface.scale;
    if (x < gutter() || x + BOX.width * surface.scale > surface.width) surface.pan((surface.width + gutter()) / 2 - x, 0);
    if (y < 0 || y + BOX.height * surface.scale > surface.height) surface.pan(0, surface.height / 2 - y);
  }

  function find() {
    const wanted = state.search.trim().toLowerCase();
    const hits = (o) => `${o.name} ${o.target} ${o.module} ${o.branch || "trunk"}`.toLowerCase().includes(wanted);
    found = wanted && layout ? layout.bands.flatMap((b) => b.nodes.filter((n) => n.members.some(hits))) : null;
    const total = found ? found.reduce((sum, n) => sum + n.members.filter(hits).length, 0) : 0;
    count.textContent = found ? `${format.count(total)} ${total === 1 ? "match" : "matches"}` : "";
    surface.redraw();
  }

  const next = () => reveal(found[(found.indexOf(selected) + 1) % found.length]);

  function details() {
    if (!selected) {
      side.replaceChildren(el("h2", {}, "Nothing selected"),
        el("p", {}, "Click an operator for its module, shape, cost and stream; click the name of features alike to unfold them."));
      return;
    }
    const alike = selected.members.length > 1;
    side.replaceChildren(...(alike ? [
      el("h2", {}, `${selected.op.target} ×${selected.members.length}`),
      facts([
        ["Features", `${selected.band.title}`], ["Streams", selected.streams.map(([s, n]) => `${s}: ${n}`).join(", ")],
        ["Bytes", format.bytes(selected.members.reduce((sum, o) => sum + o.bytes, 0))],
        ["Time", `${format.us(selected.members.reduce((sum, o) => sum + o.modelled_us, 0))} in all, modelled`],
      ]),
      el("ul", { class: "ops" }, selected.members.slice(0, 60).map((o) => el("li", {}, el("button", {
        type: "button", onclick: () => { unfolded.add(selected.band.key); state.selected = o.name; build(true); if (selected) reveal(selected); },
      }, el("span", {}, format.short(o.branch || o.name, 80)), el("span", { class: "num" }, format.shape(o.outputs[0])))))),
      selected.members.length > 60 ? el("p", {}, `and ${selected.members.length - 60} more; search finds them`) : null,
    ].filter(Boolean) : operatorDetails(graph, selected.op, strategy)));
    side.scrollTop = 0;
  }

  return { title: "Assignment", show, update, layout: () => layout, surface: () => surface, gutter, chosen: () => selected };
})();
