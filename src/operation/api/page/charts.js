// Charts of the last hour: one bar per minute. A label says the same in words.

import { count, drawn, element, many, say } from "/ui/elements.js";

const MINUTES = 60;
const [WIDTH, HEIGHT] = [180, 40];

/** A tile with a figure and a chart. */
export class Curve {
  constructor(tile, { title, kind, one, more, what }) {
    Object.assign(this, { one, more });
    this.peak = element("span", { className: "peak" });
    this.figure = element("p", { className: "figure" }, "–");
    this.note = element("p", { className: "note" }, what);
    this.path = drawn("path", { class: "bars" });
    this.drawing = drawn(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", class: "curve" },
      drawn("path", { class: "ground", d: `M0 ${HEIGHT - 0.5}H${WIDTH}` }),
      this.path,
    );
    tile.classList.add(kind);
    tile.append(element("h2", {}, title, this.peak), this.figure, this.drawing, this.note);
    this.drawing.setAttribute("aria-label", `${title} in the last hour: no data yet`);
    this.title = title;
  }

  /** Draws steps of `seconds` each, the oldest first. */
  show(steps, seconds) {
    const perMinute = Math.max(1, Math.round(60 / seconds));
    const minutes = [];
    for (let end = steps.length; end > 0 && minutes.length < MINUTES; end -= perMinute) {
      minutes.unshift(steps.slice(Math.max(0, end - perMinute), end).reduce((sum, step) => sum + step, 0));
    }
    const sum = minutes.reduce((all, minute) => all + minute, 0);
    const most = Math.max(1, ...minutes);
    const bar = WIDTH / MINUTES;
    const first = MINUTES - minutes.length;
    const bars = minutes.map((minute, index) => {
      // A small count is still visible.
      const height = minute === 0 ? 0 : Math.max(2, (minute / most) * (HEIGHT - 2));
      const left = (first + index) * bar;
      return height === 0 ? "" : `M${left.toFixed(1)} ${HEIGHT}v${(-height).toFixed(1)}h${(bar - 0.8).toFixed(1)}V${HEIGHT}z`;
    });
    this.path.setAttribute("d", bars.join(""));
    this.figure.textContent = count(sum);
    const peak = Math.max(0, ...minutes);
    say(this.peak, peak > 0 ? `peak ${count(peak)}/min` : "");
    this.drawing.setAttribute(
      "aria-label",
      `${this.title} in the last hour: ${many(sum, this.one, this.more)}, at most ${count(peak)} per minute, ` +
        `${count(minutes.at(-1) ?? 0)} in the last minute`,
    );
  }
}
