// The bars and arrows of a plan: data only, drawn by the timeline and by the comparison.

// A wait is "data" if the step reads what it waits for, and "order" otherwise. Steps that follow
// each other on a stream without reading from each other are ordered by the stream alone.
function segmentLanes(view, timing) {
  const reads = new Set(view.edges.map(([a, b]) => `${a},${b}`));
  const position = new Map(view.steps.map((s) => [s.name, s.step]));
  const critical = new Set(timing.critical);
  const bars = view.steps.map((s, i) => ({
    index: i, name: s.name, stream: s.stream, start: timing.starts_us[i],
    duration: timing.durations_us[i], critical: critical.has(i),
    text: `${s.name} ${s.operators.join(" ")}`.toLowerCase(), step: s,
  }));
  const waits = view.steps.flatMap((s, to) => s.waits.map((name) => [position.get(name), to]));
  return finishLanes(bars, waits, reads, timing);
}

function operatorLanes(graph, strategy) {
  const plan = planOf(graph, strategy);
  const operators = operatorsOf(graph);
  const position = new Array(operators.length);
  plan.order.forEach((op, at) => (position[op] = at));
  const reads = new Set(graph.edges.map(([a, b]) => `${position[a]},${position[b]}`));
  const critical = new Set(plan.critical);
  const bars = plan.order.map((op, i) => {
    const o = operators[op];
    return {
      index: i, name: o.name, stream: plan.streams[i], start: plan.starts_us[i],
      duration: o.modelled_us, critical: critical.has(i), operator: o,
      text: `${o.name} ${o.target} ${o.module} ${o.branch || "trunk"}`.toLowerCase(),
    };
  });
  const waits = plan.waits.flatMap((list, to) => list.map((from) => [from, to]));
  return finishLanes(bars, waits, reads, plan);
}

function finishLanes(bars, pairs, reads, timing) {
  const waits = pairs.map(([from, to]) => ({ from, to, kind: reads.has(`${from},${to}`) ? "data" : "order" }));
  const lanes = [];
  for (const bar of bars) {
    const lane = (lanes[bar.stream] ||= []);
    const before = lane[lane.length - 1];
    bar.streamOrderOnly = before !== undefined && !reads.has(`${before.index},${bar.index}`);
    lane.push(bar);
  }
  return { bars, waits, lanes, total: timing.total_us, serial: timing.serial_us, timing };
}

// Draws lanes into a rectangle. `at` maps microseconds to pixels; `focus` dims what is not in it.
function drawLanes(context, layout, options) {
  const { at, top, left, right, laneHeight, gap, focus, selected, labels } = options;
  layout.lanes.forEach((lane, stream) => {
    const y = top + stream * (laneHeight + gap);
    const from = Math.max(left, at(0)), to = Math.min(right, at(layout.total));
    context.fillStyle = theme.track;
    if (to > from) context.fillRect(from, y, to - from, laneHeight);
    if (options.hatch && to > from) hatch(context, from, y, to - from, laneHeight);
    const colour = streamColour(stream), ink = inkOn(colour);
    let drawn = -1;
    for (let i = firstVisible(lane, options.from); i < lane.length; i++) {
      const bar = lane[i];
      const x = Math.max(at(bar.start), left - 1);
      if (x > right) break;
      const end = Math.min(at(bar.start + bar.duration), right + 1);
      if (end <= drawn && !(selected === bar)) continue; // less than a pixel, and that is painted
      const width = Math.max(end - x - (end - x > 3 ? 1 : 0), 1);
      context.globalAlpha = focus && !focus.has(bar) ? 0.22 : 1;
      context.fillStyle = theme.card; // idle hatching must not show through a dimmed bar
      context.fillRect(x, y, width, laneHeight);
      context.fillStyle = colour;
      context.fillRect(x, y, width, laneHeight);
      if (options.marks && width > 4) { // light colours need an edge to stand out from the page
        context.strokeStyle = edgeOf(colour);
        context.lineWidth = 1;
        context.strokeRect(x + 0.5, y + 0.5, width - 1, laneHeight - 1);
      }
      if (labels && width > 22) {
        context.fillStyle = ink;
        context.fillText(fitText(context, bar.name, width - 8), x + 4, y + laneHeight / 2 + 0.5);
      }
      if (bar.critical && options.marks) {
        context.fillStyle = theme.ink;
        context.fillRect(x, y + laneHeight - 3, width, 3);
        context.fillRect(x, y, width, 1);
      }
      if (bar.streamOrderOnly && options.marks && width > 5 && Math.abs(x - at(bar.start)) < 0.5) {
        context.fillStyle = theme.card;
        for (let dot = y + 3; dot < y + laneHeight - 4; dot += 5) context.fillRect(x - 1.5, dot, 2, 2.5);
      }
      context.globalAlpha = 1;
      if (selected === bar) {
        context.strokeStyle = theme.card;
        context.lineWidth = 4;
        context.strokeRect(x, y, width, laneHeight);
        context.strokeStyle = theme.accent;
        context.lineWidth = 2.5;
        context.strokeRect(x - 0.5, y - 0.5, width + 1, laneHeight + 1);
      }
      drawn = Math.ceil(end);
    }
  });
}

function firstVisible(lane, from) {
  let low = 0, high = lane.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (lane[middle].start + lane[middle].duration < from) low = middle + 1;
    else high = middle;
  }
  return low;
}

function hatch(context, x, y, width, height) {
  context.save();
  context.beginPath();
  context.rect(x, y, width, height);
  context.clip();
  context.strokeStyle = theme.line;
  context.lineWidth = 1;
  context.beginPath();
  for (let i = x - ((x + y) % 8) - height; i < x + width; i += 8) {
    context.moveTo(i, y + height);
    context.lineTo(i + height, y);
  }
  context.stroke();
  context.restore();
}
