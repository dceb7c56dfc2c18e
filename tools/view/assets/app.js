// The frame: title, tabs, and which view is shown.

const main = document.getElementById("main");
const tabs = document.getElementById("tabs");
let shown = null;

function draw() {
  shown = state.view;
  main.className = "";
  main.replaceChildren();
  for (const tab of tabs.children) {
    const on = tab.dataset.view === shown;
    tab.setAttribute("aria-selected", String(on));
    tab.tabIndex = on ? 0 : -1;
  }
  main.setAttribute("aria-label", views[shown].title);
  views[shown].show(main);
}

function start() {
  readAddress();
  const a = data.artifact;
  document.getElementById("model").textContent = format.short(a.model, 200);
  document.getElementById("facts").textContent = `${a.device} · ${a.strategy} on at most ${format.plural(a.streams, "stream")} · ${a.compiler} · ${format.plural(a.buckets.length, "bucket")} · ${format.plural(a.inputs.length, "input")}`;
  for (const [name, view] of Object.entries(views)) {
    tabs.append(el("button", { role: "tab", type: "button", "data-view": name, "aria-controls": "main", onclick: () => change({ view: name }) }, view.title));
  }
  tabs.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const names = Object.keys(views);
    change({ view: names[(names.indexOf(shown) + step + names.length) % names.length] });
    tabs.querySelector('[aria-selected="true"]').focus();
  });
  listeners.add((changed) => (state.view === shown ? views[shown].update(changed) : draw()));
  draw();
  if (data.live) startLive();
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
}

// For whoever looks from the console, and for tests.
window.recreplay = { data, state, views, change, palette: STREAMS.map((c) => [c, inkOn(c)]) };
start();
