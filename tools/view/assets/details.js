// The side panel: everything that is known about a segment or an operator.

function segmentDetails(bar, layout) {
  const step = bar.step, graph = bucketData().graph;
  const byName = new Map(graph ? operatorsOf(graph).map((o) => [o.name, o]) : []);
  const list = el("ul", { class: "ops" });
  const fill = (most) => {
    list.replaceChildren(...step.operators.slice(0, most).map((name) => {
      const op = byName.get(name);
      const open = () => change({ level: "operators", selected: name });
      return el("li", {}, el("button", { type: "button", onclick: open, title: "Show this operator" },
        el("span", {}, format.short(name, 80)), el("span", { class: "num" }, op ? op.target.replace("aten.", "") : "")));
    }));
    if (step.operators.length > most) {
      list.append(el("li", {}, el("button", { type: "button", onclick: () => fill(Infinity) }, `${step.operators.length - most} more …`)));
    }
  };
  fill(20);
  return [
    el("h2", {}, bar.name),
    facts([
      ["Stream", bar.stream === 0 ? "0, the main stream" : bar.stream],
      layout.timing.kind === "none" ? null : ["Time", `${format.us(bar.duration)}, ${layout.timing.kind}`],
      layout.timing.kind === "none" ? null : ["Starts", format.us(bar.start)],
      ["Critical path", bar.critical ? "yes" : "no"],
      ["Waits for", step.waits.join(", ") || "nothing"],
      ["Package", step.package],
      ["Reads", step.inputs.join(", ") || "nothing"],
      ["Writes", step.outputs.join(", ")],
      ["Operators", step.operators.length],
    ]),
    list,
    ...kernelList(layout.timing.kernels && layout.timing.kernels[bar.index]),
  ];
}

// What the profiler saw of a segment, kernel by kernel (CUDA, measured).
function kernelList(kernels) {
  if (!kernels || !kernels.length) return [];
  return [
    el("h2", {}, "Kernels"),
    el("ul", { class: "ops kernels" }, ...kernels.map((k) => el("li", {},
      el("span", { title: k.name }, format.short(k.name, 60)), el("span", { class: "num" }, format.us(k.duration_us))))),
  ];
}

function operatorDetails(graph, op, strategy) {
  const plan = planOf(graph, strategy), operators = operatorsOf(graph);
  const at = plan.order.indexOf(op.index);
  const readers = graph.edges.filter(([a]) => a === op.index).map(([, b]) => operators[b]);
  const sources = graph.edges.filter(([, b]) => b === op.index).map(([a]) => operators[a]);
  const names = (list) => (list.length > 12 ? `${list.slice(0, 12).map((o) => o.name).join(", ")} and ${list.length - 12} more` : list.map((o) => o.name).join(", ")) || "nothing";
  const segment = graph === bucketData().graph && bucketData().steps.find((s) => s.operators.includes(op.name));
  return [
    el("h2", {}, op.name),
    facts([
      ["Operator", op.target],
      ["Module", op.module || "made by a rewrite, or the model itself"],
      ["Feature", op.branch === null ? "trunk" : op.branch],
      ["Shape", op.outputs.map(format.shape).join(", ")],
      ["Bytes", format.bytes(op.bytes)],
      ["Flops", format.count(op.flops)],
      ["Time", `${format.us(op.modelled_us)}, modelled`],
      ["Starts", format.us(plan.starts_us[at])],
      ["Stream", `${plan.streams[at]} under ${plan.strategy}`],
      ["Waits for", plan.waits[at].map((w) => operators[plan.order[w]].name).join(", ") || "nothing"],
      ["Critical path", plan.critical.includes(at) ? "yes" : "no"],
      ["Reads from", sources.length ? names(sources) : "inputs and weights"],
      ["Read by", readers.length ? names(readers) : "the caller"],
      segment && strategy === bucketData().strategy ? ["Segment", segment.name] : null,
    ]),
  ];
}
