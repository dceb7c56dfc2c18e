// What each bucket costs and wastes, how exact it is, and where the artifact belongs.

views.buckets = {
  title: "Buckets",
  show(main) {
    main.classList.add("scroll");
    const a = data.artifact;
    this.chart = el("div");
    this.counters = el("div");
    main.append(el("div", { class: "grid" },
      this.card("Latency by rows", this.latencyNote(), this.chart, "full"),
      this.card("Buckets", null, table(
        ["bucket>", "operators>", "segments>", "streams>", "waits>", "modelled>", "measured p50>", "p99>", "padding at worst>", "inputs>", "buffers>", "outputs>"],
        a.buckets.map((b, i) => {
          const before = i ? a.buckets[i - 1].size : 0, modelled = this.modelled(i);
          return [b.portion === b.size ? b.size : `${b.size} by ${b.portion}`, b.operators, b.segments, b.streams, b.waits, format.us(modelled),
            b.replay_us ? format.us(b.replay_us.p50) : "–", b.replay_us ? format.us(b.replay_us.p99) : "–",
            b.portion === b.size ? format.share((b.size - before - 1) / b.size) : "–", format.bytes(b.input_bytes), format.bytes(b.buffer_bytes), format.bytes(b.output_bytes)];
        })), "full"),
      this.card("Requests", data.live ? "Counted by the runtime that this page's server has loaded." : "Counters belong to a running runtime: recreplay view --serve --traffic 200 shows them live.", this.counters),
      this.parity(a),
      this.card("Artifact", null, facts([
        ["Model", a.model], ["Path", a.path], ["Device", a.device], ["Strategy", `${a.strategy}, at most ${format.plural(a.streams, "stream")}`],
        ["Compiler", `${a.compiler}, ${format.plural(a.packages, "package")}`], ["Rewrites", a.rewrites.join(", ") || "none"],
        ["Precision", `${a.precision}, tables ${a.table_precision}`],
        ["Captured in", `${a.capture_seconds.toFixed(1)} s`], ["On disk", format.bytes(a.disk_bytes)], ["Weights", format.bytes(a.memory.weights_bytes)],
        ["Made of others", format.bytes(a.memory.made_bytes)], ["Copies for products", format.bytes(a.memory.copied_bytes)],
        ["A lane", format.bytes(a.memory.lane_bytes)], ["Inputs", a.inputs.length], ["Outputs", a.outputs.map((o) => o.name).join(", ")],
      ])),
      this.card("Environment", "The artifact loads where these agree.", el("div", {}, facts(Object.entries(a.environment)),
        a.notices.length ? el("h3", {}, "Notices") : null, el("ul", {}, a.notices.map((n) => el("li", { class: "note" }, n))))),
      this.card("Inputs", null, table(["name", "shape", "ids below"], this.inputRows()), "full")));
    this.refresh();
  },
  update(changed) {
    if ("live" in changed) this.refresh();
  },
  card(title, note, body, more = "") {
    return el("section", { class: `card pad ${more}` }, el("h2", {}, title), note ? el("p", { class: "note" }, note) : null, body);
  },
  // Errors of a lower precision are allowed by an output's scale, and not by rtol and atol.
  parity(a) {
    const allowed = a.max_error !== null;
    const ofScale = ({ outputs }) => Math.max(...outputs.map((o) => (o.scale ? o.max_abs / o.scale : 0)));
    const rows = a.buckets.filter((b) => b.parity).map(({ size, parity: p }) => [size, p.requests, format.small(p.max_abs), format.small(p.max_rel),
      ...(allowed ? [format.small(ofScale(p))] : [p.rtol, p.atol])]);
    return this.card("Parity", allowed ? `Replay against the float32 model, at capture: at most ${a.max_error} of an output's scale.` : "Replay against the eager model, at capture.",
      table(["bucket>", "requests>", "max error>", "relative>", ...(allowed ? ["of scale>"] : ["rtol>", "atol>"])], rows));
  },
  inputRows() {
    const most = 60, all = data.artifact.inputs;
    const rows = all.slice(0, most).map((i) => [format.short(i.name, 120), i.shape,
      i.rows_of_table.map((t) => format.count(t.rows) + (t.least ? `, from ${t.least}` : "") + (t.column === null ? "" : ` in column ${t.column}`) + (t.axis > 1 ? ` of dimension ${t.axis}` : "")).join(", ") || "–"]);
    if (all.length > most) rows.push([`and ${all.length - most} more: recreplay inspect --json lists them`, "", ""]);
    return rows;
  },
  modelled(i) {
    const found = data.buckets[i].timings.find((t) => t.kind === "modelled");
    return found ? found.total_us : null;
  },
  measuredAll: () => data.artifact.buckets.every((b) => b.replay_us),
  // Of a request as large as the bucket: where the tuner found several replays of a smaller one to
  // be faster, it runs in these.
  latency(i) {
    const all = data.artifact.buckets, { size, portion } = all[i];
    const one = (rows) => {
      const at = all.findIndex((b) => b.size >= rows);
      return this.measuredAll() ? all[at].replay_us.p50 : this.modelled(at);
    };
    if (this.modelled(i) === null && !this.measuredAll()) return null;
    return Math.floor(size / portion) * one(portion) + (size % portion ? one(size % portion) : 0);
  },
  latencyNote() {
    const parts = data.artifact.buckets.some((b) => b.portion !== b.size)
      ? " Where the tuner found that faster, it runs in several replays of a smaller one, which are added up here." : "";
    return `A request runs in the smallest bucket that holds it, and pays for the whole of it.${parts} Latency is ${
      this.measuredAll() ? "the measured p50 of a replay on this machine" : "modelled, not measured (recreplay view --measure measures it)"}.`;
  },
  refresh() {
    const points = data.artifact.buckets.map((b, i) => ({ size: b.size, us: this.latency(i) }));
    const now = liveNumbers;
    this.chart.replaceChildren(stepChart(points, now ? now.sizes : [], "Latency by number of rows, and how often each number was asked for"));
    const s = now && now.stats;
    const asked = s ? s.rows + s.padded_rows : 0;
    const value = (v) => (s ? v() : "–");
    this.counters.replaceChildren(facts([
      ["Requests", value(() => format.count(s.requests))],
      ...data.artifact.buckets.map((b) => [`Bucket ${b.size}`, value(() => {
        const timed = now.latency_us[b.size];
        return `${format.count(s.replays[b.size] || 0)} replays${timed ? `, p50 ${format.us(timed.p50)}, p99 ${format.us(timed.p99)}` : ""}`;
      })]),
      ["Rows", value(() => format.count(s.rows))],
      ["Padding", value(() => `${format.count(s.padded_rows)} rows, ${format.share(asked ? s.padded_rows / asked : 0)}`)],
      ["Split", value(() => format.count(s.split_requests))],
      ["In parts", value(() => format.count(s.portioned_requests))],
      ["Clamped ids", value(() => format.count(s.clamped_ids))],
      ["For capacity", value(() => `${format.count(s.capacity_moves)} in a larger bucket, ${format.count(s.capacity_splits)} split`)],
      ["Failed", value(() => format.count(s.failed))],
      ["Fallbacks", "none exist: the runtime replays or refuses"],
    ]));
  },
};
