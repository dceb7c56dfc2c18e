// A canvas that is panned and zoomed by mouse, touch and keyboard, and redrawn at most once a frame.

class Surface {
  // `lockY`: only the horizontal axis zooms. `draw(context, view)` paints, `pick(x, y)` finds what
  // is under a point, `press(key)` may take a key first.
  constructor(options) {
    this.options = options;
    this.scale = 1;
    this.x = 0; // world coordinate at the left edge
    this.y = 0;
    this.frames = [];
    this.canvas = el("canvas", { tabindex: "0", role: "application", "aria-label": options.label });
    this.canvas.style.touchAction = options.lockY ? "pan-y" : "none";
    this.tip = el("div", { class: "tip", "aria-hidden": "true" });
    this.element = el("div", { class: "stage card" }, this.canvas, this.tip);
    this.context = this.canvas.getContext("2d");
    this.pointers = new Map();
    this.listen();
    new ResizeObserver(() => this.resize()).observe(this.element);
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    const { width, height } = this.element.getBoundingClientRect();
    if (!width || !height) return;
    const first = !this.width;
    this.width = width;
    this.height = height;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    this.ratio = ratio;
    if (first || !this.moved) this.options.fit(this);
    this.paint(); // at once: a resized canvas is blank
  }

  redraw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => this.paint());
  }

  paint() {
    this.waiting = false;
    if (!this.width || !this.element.isConnected) return;
    this.context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    this.context.clearRect(0, 0, this.width, this.height);
    this.context.font = FONT;
    this.context.textBaseline = "middle";
    this.options.draw(this.context, this);
    this.frames.push(performance.now());
    if (this.frames.length > 600) this.frames.shift();
  }

  pan(dx, dy) {
    this.moved = true;
    this.x -= dx / this.scale;
    this.y -= this.options.lockY ? dy : dy / this.scale;
    this.options.limit(this);
    this.redraw();
  }

  zoom(factor, px = this.width / 2, py = this.height / 2) {
    this.moved = true;
    const before = this.scale;
    this.scale = Math.min(Math.max(before * factor, this.options.least(this)), this.options.most);
    const inset = this.options.inset || 0;
    this.x += (px - inset) / before - (px - inset) / this.scale;
    if (!this.options.lockY) this.y += py / before - py / this.scale;
    this.options.limit(this);
    this.redraw();
  }

  fit() {
    this.moved = false;
    this.options.fit(this);
    this.redraw();
  }

  listen() {
    const place = (event) => {
      const box = this.canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    this.canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const [x, y] = place(event);
      if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) this.pan(-(event.deltaX || event.deltaY), 0);
      else this.zoom(Math.exp(-event.deltaY * 0.0016), x, y);
    }, { passive: false });
    this.canvas.addEventListener("pointerdown", (event) => {
      this.canvas.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, place(event));
      this.dragged = 0;
    });
    this.canvas.addEventListener("pointermove", (event) => {
      const now = place(event), before = this.pointers.get(event.pointerId);
      if (!before) return this.hover(now);
      if (this.pointers.size === 2) this.pinch(event.pointerId, now);
      else if (this.dragged > 3 || Math.hypot(now[0] - before[0], now[1] - before[1]) > 3) {
        this.pan(now[0] - before[0], now[1] - before[1]);
        this.dragged = 9;
      } else return;
      this.pointers.set(event.pointerId, now);
    });
    const lift = (event) => {
      const known = this.pointers.delete(event.pointerId);
      if (known && event.type === "pointerup" && this.dragged <= 3) this.options.choose(this.options.pick(...place(event)));
    };
    this.canvas.addEventListener("pointerup", lift);
    this.canvas.addEventListener("pointercancel", lift);
    this.canvas.addEventListener("pointerleave", () => this.hover(null));
    this.canvas.addEventListener("dblclick", (event) => this.zoom(2, ...place(event)));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
  }

  pinch(id, now) {
    const [other] = [...this.pointers].filter(([key]) => key !== id).map(([, p]) => p);
    const before = this.pointers.get(id);
    const apart = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]) || 1;
    this.dragged = 9;
    this.zoom(apart(now) / apart(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = 60;
    const actions = {
      "+": () => this.zoom(1.5), "=": () => this.zoom(1.5), "-": () => this.zoom(1 / 1.5),
      0: () => this.fit(), a: () => this.pan(step, 0), d: () => this.pan(-step, 0),
      w: () => this.pan(0, step), s: () => this.pan(0, -step),
    };
    if (this.options.press(event.key) || actions[event.key]) {
      event.preventDefault();
      actions[event.key]?.();
    }
  }

  hover(point) {
    const found = point && this.options.pick(...point);
    const text = found && this.options.tip(found);
    this.tip.style.visibility = text ? "visible" : "hidden";
    if (!text) return;
    this.tip.textContent = format.short(text, 120);
    const x = Math.min(point[0] + 12, this.width - Math.min(this.tip.offsetWidth, 320) - 6);
    const below = point[1] + 18 + this.tip.offsetHeight < this.height;
    this.tip.style.transform = `translate(${Math.max(x, 4)}px, ${below ? point[1] + 16 : point[1] - 30}px)`;
  }
}

function zoomButtons(surface) {
  const button = (text, label, act) => el("button", { class: "button", type: "button", "aria-label": label, title: label, onclick: act }, text);
  return el("div", { class: "group" },
    button("−", "Zoom out", () => surface.zoom(1 / 1.6)),
    button("+", "Zoom in", () => surface.zoom(1.6)),
    button("Fit", "Fit to window", () => surface.fit()));
}
