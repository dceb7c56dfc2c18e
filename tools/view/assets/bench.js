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
        stamp.threads && format.plural(stamp.threads, "thread"), bench.runs && `${bench.runs} ${bench.peers ? "rounds" : "pairs"}`, stamp.date, stamp.commit && `commit ${stamp.commit.slice(0, 12)}`].filter(Boolean).join(" · ")));
      for (const result of bench.results) main.append(bench.peers ? this.peers(result) : this.result(result, names));
      if (bench.peers) main.append(el("ul", { class: "note" }, bench.peers.map((p) => el("li", {}, `${p.name}: ${p.absent ? `absent: ${p.absent}` : p.about}`))));
    }
  },
  update() {},
  // All contenders of one model, a chart a batch size; the floor is what nobody can be below.
  peers(result) {
    const title = `${result.name}${result.compiler ? ` · ${result.compiler}, ${result.strategy}` : ""}`;
    const absent = Object.entries(result.absent || {});
    return el("section", { class: "card pad strategy" }, el("h2", {}, title),
      el("p", { class: "note" }, "p50 of a request, host to host; at the right how many times longer than ours, and the middle half of the rounds' ratios."),
      result.batches.map((b) => {
        const rows = b.contenders.map((c) => ({
          name: c.name, value: c.latency_us.p50, colour: c.name === "ours" ? "var(--accent)" : "#8a8f98",
          end: c.name === "ours" ? `${b.floor.ours_to_floor.toFixed(2)}x the floor` : `${c.to_ours.ratio.toFixed(2)}x (${c.to_ours.p25.toFixed(2)}–${c.to_ours.p75.toFixed(2)})`,
        }));
        rows.push({ name: "floor", value: b.floor.us, colour: "var(--good)", end: b.floor.bound });
        return [el("h3", {}, `Batch ${b.batch}: ours takes ${b.ours_to_best_peer.ratio.toFixed(2)} of ${b.best_peer}, the best peer`),
          bars(rows, `${title}, batch ${b.batch}: contenders and the floor`)];
      }),
      absent.length ? el("p", { class: "note" }, absent.map(([name, why]) => `${name} is absent: ${why}. `)) : null);
  },
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
