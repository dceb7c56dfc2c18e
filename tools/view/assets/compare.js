// Strategies side by side, on one axis of time.

views.compare = {
  title: "Compare",
  show(main) {
    main.classList.add("scroll");
    const body = el("div");
    main.append(el("div", { class: "bar" }, bucketChoice()), body);
    this.body = body;
    this.build();
  },
  update(changed) {
    if ("bucket" in changed || !Object.keys(changed).length) this.build();
  },
  build() {
    const view = bucketData();
    this.body.replaceChildren();
    if (!view.graph) {
      this.body.append(el("p", { class: "empty" }, "This artifact holds no operator graph, so nothing can be compared. Capture the model again."));
      return;
    }
    const plans = view.graph.plans;
    const longest = Math.max(...plans.map((p) => p.total_us));
    const best = Math.min(...plans.map((p) => p.total_us));
    const order = ["single", "feature", "matching", "greedy"];
    const sorted = [...plans].sort((a, b) => order.indexOf(a.strategy) - order.indexOf(b.strategy));
    const serial = data.artifact.device === "cpu" ? " On the CPU replay is serial, and streams gain nothing: this is what they would do on a GPU." : "";
    const modelled = view.timings.find((t) => t.kind === "modelled");
    if (view.candidates.length) this.body.append(this.candidates(view));
    const none = view.candidates.length ? "" : "No candidates were measured for this artifact. ";
    this.body.append(el("p", { class: "note" }, el("b", {}, none),
      `The times below are ${modelled ? modelled.note : "modelled"}.${serial}`));
    for (const plan of sorted) this.body.append(this.row(view, plan, longest, best));
    this.body.append(this.overview());
  },
  candidates(view) {
    const measured = view.candidates.filter((c) => c.us !== null);
    const fastest = Math.min(...measured.map((c) => c.us));
    const sorted = [...measured].sort((a, b) => a.us - b.us).concat(view.candidates.filter((c) => c.us === null));
    const rows = sorted.map((c) => [
      c.us === null ? "–" : format.us(c.us), c.us === null ? "–" : `${(c.us / fastest).toFixed(2)}x`,
      c.chosen ? "kept" : "", c.compiler, c.precision, c.strategy, c.streams, c.rewrites.join(", ") || "none", c.note]);
    return el("section", { class: "card pad candidates" },
      el("h2", {}, `Candidates that the tuner measured for bucket ${view.size}`),
      el("p", { class: "note" }, "Medians of a request on the device that captured, filling included, in turns on the same requests."),
      table(["time>", "against best>", "", "compiler", "products", "strategy", "streams>", "rewrites", "why not measured"], rows));
  },
  row(view, plan, longest, best) {
    const canvas = el("canvas", { role: "img", "aria-label": `${plan.strategy}: ${format.us(plan.total_us)} on ${plan.stream_count} streams` });
    const captured = plan.strategy === view.strategy;
    const layout = operatorLanes(view.graph, plan.strategy);
    const height = 12, gap = 3, tall = layout.lanes.length * (height + gap);
    canvas.style.height = `${tall}px`;
    const paint = () => {
      const ratio = window.devicePixelRatio || 1, width = canvas.getBoundingClientRect().width;
      if (!width) return;
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(tall * ratio);
      const context = canvas.getContext("2d");
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      drawLanes(context, layout, {
        at: (t) => (t / longest) * (width - 2), top: 0, left: 0, right: width, laneHeight: height, gap, from: 0, marks: false, labels: false, hatch: true,
      });
    };
    new ResizeObserver(paint).observe(canvas);
    return el("section", { class: "card strategy", "data-strategy": plan.strategy },
      el("div", { class: "head" },
        el("h2", {}, plan.strategy), el("span", { class: "total" }, format.us(plan.total_us)),
        captured ? el("span", { class: "tag" }, "captured") : null,
        plan.total_us === best ? el("span", { class: "tag" }, "shortest, modelled") : null,
        el("span", { class: "more" }, `${format.plural(plan.stream_count, "stream")} · ${format.plural(plan.wait_count, "wait")} · idle ${format.share(plan.idle_share)} · ${(plan.serial_us / plan.total_us).toFixed(2)}x one stream`),
        el("span", { class: "grow" }),
        el("button", { class: "button", type: "button", onclick: () => change({ view: "timeline", level: "operators", strategy: captured ? "" : plan.strategy, selected: null }) }, "Open in timeline")),
      canvas);
  },
  overview() {
    const names = ["single", "feature", "matching", "greedy"];
    const rows = data.buckets.filter((b) => b.graph).map((b) => {
      const totals = names.map((n) => b.graph.plans.find((p) => p.strategy === n).total_us);
      return [b.size, b.strategy, ...totals.map(format.us), names[totals.indexOf(Math.min(...totals))]];
    });
    return el("section", { class: "card pad strategy" }, el("h2", {}, "All buckets, modelled"),
      table(["bucket>", "captured", ...names.map((n) => `${n}>`), "shortest"], rows));
  },
};
