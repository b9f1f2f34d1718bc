// Charts of the last hour, day or week. A label says the same in words, and the pointer or the arrow keys read single values.

import { count, drawn, element, many, say, zoned } from "/ui/elements.js";

const [WIDTH, HEIGHT] = [240, 56];
/** For each range: its name in sentences, the seconds and the number of its bars, and how a bar is named. */
const RANGES = {
  "1h": { name: "hour", seconds: 60, bars: 60, unit: "min" },
  "24h": { name: "24 hours", seconds: 900, bars: 96, unit: "15 min" },
  "7d": { name: "7 days", seconds: 7200, bars: 84, unit: "2 h" },
};

/** A round number that is at least `most`, for the top of the axis. */
function top(most) {
  if (most <= 4) return 4;
  const scale = 10 ** Math.floor(Math.log10(most));
  return [1, 1.5, 2, 3, 4, 5, 8, 10].map((step) => step * scale).find((step) => step >= most);
}

/** A tile with a figure and a chart. */
export class Curve {
  constructor(tile, { title, kind, one, more, what }) {
    Object.assign(this, { title, one, more, what, values: [], at: null });
    this.figure = element("p", { className: "figure" }, "–");
    this.note = element("p", { className: "note" });
    this.path = drawn("path", { class: "bars" });
    this.marked = drawn("path", { class: "marked" });
    this.most = element("span", { className: "most", "aria-hidden": "true" });
    this.axis = element("p", { className: "axis", "aria-hidden": "true" }, ...Array.from({ length: 3 }, () => element("span")));
    this.drawing = drawn(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", class: "curve", tabindex: 0 },
      drawn("path", { class: "ground", d: `M0 0.5H${WIDTH}M0 ${HEIGHT / 2}H${WIDTH}M0 ${HEIGHT - 0.5}H${WIDTH}` }),
      this.path,
      this.marked,
    );
    tile.classList.add(kind);
    tile.append(element("h3", {}, title), this.figure, element("div", { className: "plot" }, this.most, this.drawing), this.axis, this.note);
    this.drawing.setAttribute("aria-label", `${title} in the last hour: no data yet`);
    say(this.note, what);
    this.drawing.addEventListener("pointermove", (event) => {
      const { left, width } = this.drawing.getBoundingClientRect();
      this.mark(Math.floor(((event.clientX - left) / width) * this.values.length));
    });
    for (const leaves of ["pointerleave", "blur"]) this.drawing.addEventListener(leaves, () => this.mark(null));
    this.drawing.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      this.mark((this.at ?? this.values.length) + step);
    });
  }

  /** Draws steps of `seconds` each, the oldest first. The last one ended at `end`. */
  show(steps, seconds, range = "1h", end = new Date()) {
    const { name, bars, unit, seconds: width } = RANGES[range];
    Object.assign(this, { width, end: new Date(end) });
    const perBar = Math.max(1, Math.round(width / seconds));
    const values = [];
    for (let last = steps.length; last > 0 && values.length < bars; last -= perBar) {
      values.unshift(steps.slice(Math.max(0, last - perBar), last).reduce((sum, step) => sum + step, 0));
    }
    const sum = values.reduce((all, value) => all + value, 0);
    const peak = Math.max(0, ...values);
    // Before the start of the node there are no values.
    this.values = [...Array(bars - values.length).fill(null), ...values];
    this.highest = top(peak);
    this.path.setAttribute("d", this.values.map((_, index) => this.bar(index)).join(""));
    say(this.figure, count(sum));
    say(this.most, `${count(this.highest)} per ${unit}`);
    const first = new Date(this.end - bars * width * 1000);
    const middle = new Date((Number(first) + Number(this.end)) / 2);
    [first, middle, this.end].forEach((at, index) => say(this.axis.children[index], index === 2 ? "now" : zoned(at, range === "7d" ? "day" : "minute")));
    this.mark(this.at);
    const average = unit === "min" ? "per minute" : `per ${unit}`;
    this.drawing.setAttribute(
      "aria-label",
      `${this.title} in the last ${name}: ${many(sum, this.one, this.more)}, at most ${count(peak)} ${average}, ` +
        `${count(values.at(-1) ?? 0)} in the last ${unit === "min" ? "minute" : unit}`,
    );
  }

  /** The path of one bar. */
  bar(index) {
    const value = this.values[index];
    if (!value) return "";
    const wide = WIDTH / this.values.length;
    // A small count is still visible.
    const height = Math.max(2, (value / this.highest) * (HEIGHT - 1));
    return `M${(index * wide).toFixed(2)} ${HEIGHT}v${(-height).toFixed(1)}h${(wide * 0.78).toFixed(2)}V${HEIGHT}z`;
  }

  /** Shows the value of one bar, or what the chart shows as a whole. */
  mark(index) {
    this.at = index === null ? null : Math.max(0, Math.min(this.values.length - 1, index));
    if (this.at === null || this.values.length === 0) {
      this.marked.setAttribute("d", "");
      return say(this.note, this.what);
    }
    const wide = WIDTH / this.values.length;
    this.marked.setAttribute("d", `M${(this.at * wide).toFixed(2)} 0h${(wide * 0.78).toFixed(2)}V${HEIGHT}h${(-wide * 0.78).toFixed(2)}z`);
    const began = new Date(this.end - (this.values.length - this.at) * this.width * 1000);
    const value = this.values[this.at];
    say(this.note, `${zoned(began, this.width > 900 ? "day" : "minute")}: ${value === null ? "not running" : many(value, this.one, this.more)}`);
  }
}
