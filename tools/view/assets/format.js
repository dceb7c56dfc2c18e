// Numbers as people read them.

const format = {
  us(value) {
    if (value === null || value === undefined) return "–";
    if (value >= 10000) return `${(value / 1000).toFixed(1)} ms`;
    return `${value.toLocaleString("en", { maximumFractionDigits: value < 10 ? 2 : value < 1000 ? 1 : 0 })} µs`;
  },
  bytes(value) {
    for (const unit of ["B", "KB", "MB", "GB"]) {
      if (value < 1000 || unit === "GB") return `${unit === "B" ? value : value.toFixed(1)} ${unit}`;
      value /= 1000;
    }
  },
  count: (value) => Number(value).toLocaleString("en"),
  share: (value) => `${(100 * value).toFixed(value > 0 && value < 0.1 ? 1 : 0)} %`,
  shape: ([dtype, dims]) => `${dtype}[${dims.join(", ")}]`,
  small: (value) => (value === null ? "–" : value === 0 ? "0" : value.toExponential(1)),
  plural: (n, word) => `${Number(n).toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`,
  short: (text, most = 60) => (text.length <= most ? text : `${text.slice(0, most - 1)}…`),
};
