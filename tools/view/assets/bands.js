// The operator graph in bands: the trunk, then a band for each feature. Features whose operators are
// alike share one band until it is unfolded, so that 400 of them stay readable.

const BOX = { width: 104, height: 32, across: 24, down: 10, band: 18 };
const FOLD_FROM = 2; // so many features alike are folded

function bandsOf(graph, strategy, unfolded) {
  const operators = operatorsOf(graph), plan = planOf(graph, strategy);
  const stream = new Array(operators.length);
  plan.order.forEach((op, at) => (stream[op] = plan.streams[at]));
  const columns = columnsOf(operators, graph.edges);
  const features = branchesOf(graph);
  const groups = alike(features);
  const trunk = operators.filter((op) => op.branch === null);
  for (const [key, list] of modulesAlike(trunk, graph.edges)) {
    groups.set(`module ${key}`, list);
    for (const [, ops] of list) for (const op of ops) trunk.splice(trunk.indexOf(op), 1);
  }
  const bands = [];
  if (trunk.length) bands.push({ title: "trunk", note: format.plural(trunk.length, "operator"), nodes: trunk.map((o) => node([o])) });
  for (const [key, list] of groups) {
    const foldable = list.length >= FOLD_FROM;
    const span = spanOf(list[0][0], list[list.length - 1][0]);
    if (foldable && !unfolded.has(key)) {
      const nodes = list[0][1].map((_, i) => node(list.map(([, ops]) => ops[i])));
      bands.push({ key, folded: true, title: span, note: `${list.length} ${key.startsWith("module ") ? "modules" : "features"} alike`, nodes, features: list.length });
    } else {
      list.forEach(([name, ops], i) => bands.push({ key: foldable ? key : null, first: i === 0, title: name, note: "", nodes: ops.map((o) => node([o])) }));
    }
  }
  place(bands);
  const nodeOf = new Array(operators.length);
  for (const band of bands) for (const n of band.nodes) for (const o of n.members) nodeOf[o.index] = n;
  const pairs = new Map();
  for (const [a, b] of graph.edges) {
    const from = nodeOf[a], to = nodeOf[b];
    if (from !== to) pairs.set(`${from.id},${to.id}`, { from, to });
  }
  const last = bands[bands.length - 1];
  return {
    bands, edges: [...pairs.values()], nodeOf, features: features.size, foldable: [...groups].filter(([, l]) => l.length >= FOLD_FROM).map(([k]) => k),
    width: (Math.max(...columns) + 1) * (BOX.width + BOX.across), height: last.y + last.height,
  };

  function node(members) {
    const counts = new Map();
    for (const o of members) counts.set(stream[o.index], (counts.get(stream[o.index]) || 0) + 1);
    return {
      members, op: members[0], column: Math.min(...members.map((o) => columns[o.index])),
      streams: [...counts].sort((a, b) => a[0] - b[0]),
    };
  }
}

const branchesOf = (graph) => collect(operatorsOf(graph), (op) => op.branch);

// `ids_0` and `ids_39` are `ids_0 … 39`.
function spanOf(first, last) {
  if (first === last) return first;
  let common = 0;
  while (common < last.length && first[common] === last[common]) common++;
  while (common > 0 && /[\p{L}\p{N}]/u.test(last[common - 1])) common--;
  return `${first} … ${last.slice(common)}`;
}

function collect(operators, nameOf) {
  const found = new Map();
  for (const op of operators) {
    const name = nameOf(op);
    if (name === null) continue;
    if (found.has(name)) found.get(name).push(op);
    else found.set(name, [op]);
  }
  return found;
}

// Those that do the same to tensors of the same shapes, under what they do.
function alike(named) {
  const groups = new Map();
  for (const [name, list] of named) {
    const key = list.map((o) => `${o.target}|${o.outputs.map(format.shape)}`).join(">");
    if (groups.has(key)) groups.get(key).push([name, list]);
    else groups.set(key, [[name, list]]);
  }
  return groups;
}

// A rewrite that joins the lookups of all features leaves what follows without a feature of its own.
// Numbered modules that are alike and read nothing from each other are still shown side by side.
function modulesAlike(trunk, edges) {
  const numbered = /^(.*?\.\d+)(\.|$)/;
  const modules = collect(trunk, (op) => (numbered.exec(op.module) || [null, null])[1]);
  const moduleOf = new Map();
  for (const [name, ops] of modules) for (const op of ops) moduleOf.set(op.index, name);
  const found = new Map();
  for (const [key, list] of alike(modules)) {
    const names = new Set(list.map(([name]) => name));
    const linked = edges.some(([a, b]) => {
      const from = moduleOf.get(a), to = moduleOf.get(b);
      return from !== to && names.has(from) && names.has(to);
    });
    if (list.length >= FOLD_FROM && !linked) found.set(key, list);
  }
  return found;
}

// The column of an operator is the length of the longest path to it.
function columnsOf(operators, edges) {
  const depth = new Array(operators.length).fill(0);
  const above = operators.map(() => []);
  for (const [a, b] of edges) above[b].push(a);
  operators.forEach((_, i) => { for (const a of above[i]) depth[i] = Math.max(depth[i], depth[a] + 1); });
  const used = [...new Set(depth)].sort((a, b) => a - b);
  const rank = new Map(used.map((d, i) => [d, i]));
  return depth.map((d) => rank.get(d));
}

function place(bands) {
  let y = 10, id = 0;
  for (const band of bands) {
    const filled = new Map();
    let rows = 0;
    for (const n of band.nodes) {
      const row = filled.get(n.column) || 0;
      filled.set(n.column, row + 1);
      rows = Math.max(rows, row + 1);
      n.id = id++;
      n.band = band;
      n.x = n.column * (BOX.width + BOX.across);
      n.y = y + row * (BOX.height + BOX.down);
    }
    band.y = y;
    band.height = rows * (BOX.height + BOX.down) - BOX.down;
    y += band.height + (band.folded || !band.key ? BOX.band : BOX.down);
  }
}
