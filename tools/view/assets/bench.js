// Result files of `recreplay bench --out`, drawn.

views.bench = {
  title: "Bench",
  show(main) {
    main.classList.add("scroll");
    if (!data.benches.length) {
      main.append(el("p", { class: "empty" }, "No result file was given. ", el("code", {}, "recreplay bench … --out result.json"), " writes one, and ",
        el("code", {}, "recreplay view … --bench result.json"), " shows it here."));
      return;
    }
    const names = [{ text: "eager", colour: "#8a8f98" }, { text: "replay", colour: "var(--accent)" }];
    for (const bench of data.benches) {
      const stamp = bench.stamp || {};
      main.append(el("h2", {}, bench.file), el("p", { class: "note" }, [stamp.cpu, stamp.torch && `torch ${stamp.torch}`,
        stamp.threads && format.plural(stamp.threads, "thread"), bench.runs && `${bench.runs} pairs`, stamp.date, stamp.commit && `commit ${stamp.commit.slice(0, 12)}`].filter(Boolean).join(" · ")));
      for (const result of bench.results) main.append(this.result(result, names));
    }
  },
  update() {},
  result(result, names) {
    const batches = (result.batches || []).filter((b) => b.eager_us && b.replay_us);
    const title = `${result.name}${result.compiler ? ` · ${result.compiler}, ${result.strategy}` : ""}`;
    if (!batches.length) return el("section", { class: "card pad strategy" }, el("h2", {}, title), el("p", { class: "note" }, "No batch of eager against replay in it."));
    return el("section", { class: "card pad strategy" }, el("h2", {}, title),
      el("ul", { class: "legend" }, names.map((n) => {
        const swatch = el("span", { class: "swatch" });
        swatch.style.background = n.colour;
        return el("li", {}, swatch, `${n.text}, p50`);
      }), el("li", {}, "at the right: how many times faster, ratio of medians")),
      barPairs(batches.map((b) => ({ name: b.batch, values: [b.eager_us.p50, b.replay_us.p50], end: `${b.speedup.toFixed(2)}x` })), names,
        `${title}: eager against replay by batch size`),
      table(["batch>", "bucket>", "eager p50>", "p99>", "replay p50>", "p99>", "speed-up>", "graph alone>", "run to graph>", "max error>"],
        batches.map((b) => {
          const graph = b.host && b.host.graph_us ? b.host.graph_us.p50 : null;
          return [b.batch, b.bucket, format.us(b.eager_us.p50), format.us(b.eager_us.p99), format.us(b.replay_us.p50), format.us(b.replay_us.p99), `${b.speedup.toFixed(2)}x`,
            format.us(graph), graph ? `${(b.host.run_us.p50 / graph).toFixed(2)}x` : "–", format.small(b.max_abs_error)];
        })));
  },
};
