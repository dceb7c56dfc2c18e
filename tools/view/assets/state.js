// What is looked at. It lives in the address, so that a view can be sent to somebody.

const data = JSON.parse(document.getElementById("data").textContent);

const state = {
  view: "timeline",
  bucket: 0, // position in data.buckets
  strategy: "", // empty: as captured
  level: "segments",
  timing: 0,
  graph: "captured", // or "before"
  selected: null, // name of a segment or operator
  search: "",
  folded: true,
};

const listeners = new Set();

function remember() {
  const keep = new URLSearchParams({ bucket: data.buckets[state.bucket].size, level: state.level });
  if (state.strategy) keep.set("strategy", state.strategy);
  if (state.selected) keep.set("select", state.selected);
  history.replaceState(null, "", `#${state.view}?${keep}`);
}

function change(update) {
  Object.assign(state, update);
  remember();
  for (const listener of listeners) listener(update);
}

function readAddress() {
  const [view, query] = location.hash.slice(1).split("?");
  const kept = new URLSearchParams(query || "");
  const at = data.buckets.findIndex((b) => String(b.size) === kept.get("bucket"));
  if (views[view]) state.view = view;
  state.bucket = at >= 0 ? at : data.buckets.length - 1;
  const known = bucketData().graph ? bucketData().graph.plans.map((p) => p.strategy) : [];
  if (known.includes(kept.get("strategy"))) state.strategy = kept.get("strategy");
  const single = bucketData().steps.length === 1 && bucketData().graph;
  state.selected = kept.get("select");
  state.level = kept.get("level") || (single ? "operators" : "segments");
}

const views = {}; // filled by the files of each view: name -> { title, show(main), update(change) }

const bucketData = () => data.buckets[state.bucket];

// Operators as objects, made once for each graph.
const rowsOf = new Map();
function operatorsOf(graph) {
  if (!rowsOf.has(graph)) {
    const rows = graph.operators.map((row, index) => {
      const item = { index };
      graph.columns.forEach((column, i) => (item[column] = row[i]));
      return item;
    });
    rowsOf.set(graph, rows);
  }
  return rowsOf.get(graph);
}

function planOf(graph, strategy) {
  return graph.plans.find((p) => p.strategy === strategy) || graph.plans[0];
}
