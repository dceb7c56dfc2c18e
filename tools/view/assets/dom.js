// Elements from data. Names are only ever text nodes, never markup.

function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "class") made.className = value;
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null) made.setAttribute(key, value);
  }
  made.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined).map(textual));
  return made;
}

const textual = (child) => (child instanceof Node ? child : document.createTextNode(String(child)));

function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.map(textual));
  return made;
}

function choice(label, options, chosen, pick) {
  const select = el("select", { onchange: () => pick(select.value), "data-name": label.toLowerCase() });
  for (const [value, text] of options) {
    select.append(el("option", { value, selected: String(value) === String(chosen) }, text));
  }
  return el("label", {}, label, select);
}

function toggle(label, options, chosen, pick) {
  const buttons = options.map(([value, text]) =>
    el("button", {
      class: "button", type: "button", "data-value": value,
      "aria-pressed": String(value === chosen),
      onclick: () => {
        for (const b of buttons) b.setAttribute("aria-pressed", String(b.dataset.value === value));
        pick(value);
      },
    }, text));
  return el("div", { class: "group", role: "group", "aria-label": label }, buttons);
}

function bucketChoice() {
  return choice("Bucket", data.buckets.map((b, i) => [i, b.size]), state.bucket, (value) =>
    change({ bucket: Number(value), selected: null }));
}

function facts(pairs) {
  return el("dl", { class: "facts" }, pairs.filter((p) => p).map(([k, v]) => [el("dt", {}, k), el("dd", {}, v)]));
}

function stats(pairs) {
  return pairs.map(([k, v, name]) =>
    el("div", { class: "stat" }, el("dt", {}, k), el("dd", name ? { "data-stat": name } : {}, v)));
}

function table(columns, rows) {
  const numeric = columns.map((c) => c.endsWith(">"));
  const cell = (tag, value, i) => el(tag, numeric[i] ? { class: "num" } : {}, value);
  return el("div", { class: "wide", tabindex: "0" }, el("table", {},
    el("thead", {}, el("tr", {}, columns.map((c, i) => cell("th", c.replace(/>$/, ""), i)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, row.map((v, i) => cell("td", v, i)))))));
}
