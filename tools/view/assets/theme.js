// Colours of the canvas: the style sheet's variables, and one colour for each stream.

// Okabe and Ito's palette, which people with any common colour blindness can tell apart. Lanes are
// numbered as well, so that no meaning hangs on colour alone.
const STREAMS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#8a8f98"];

const streamColour = (stream) => STREAMS[stream % STREAMS.length];

const edges = new Map();
function edgeOf(colour) {
  if (!edges.has(colour)) {
    const dark = [1, 3, 5].map((i) => Math.round(parseInt(colour.slice(i, i + 2), 16) * 0.58));
    edges.set(colour, `rgb(${dark.join(", ")})`);
  }
  return edges.get(colour);
}

function inkOn(colour) {
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16) / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  const luminance = 0.2126 * r + 0.7152 * g + 0.0722 * b;
  return luminance > 0.179 ? "#000000" : "#ffffff"; // whichever has the larger contrast
}

let theme = readTheme();

function readTheme() {
  const style = getComputedStyle(document.documentElement);
  const names = ["page", "card", "ink", "soft", "line", "track", "accent", "warn", "wait"];
  return Object.fromEntries(names.map((n) => [n, style.getPropertyValue(`--${n}`).trim()]));
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  theme = readTheme();
  change({});
});

const FONT = '12px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif';

// Text is cut by its number of characters before it is measured: names may be very long.
function fitText(context, text, width) {
  const most = Math.floor(width / 5);
  if (most < 2) return "";
  if (width < 44) { // no room for an ellipsis
    let cut = text.slice(0, most);
    while (cut.length > 1 && context.measureText(cut).width > width) cut = cut.slice(0, -1);
    return cut;
  }
  let shown = text.length > most ? `${text.slice(0, most - 1)}…` : text;
  while (shown.length > 1 && context.measureText(shown).width > width) shown = `${shown.slice(0, -2)}…`;
  return shown.length > 1 ? shown : "";
}
