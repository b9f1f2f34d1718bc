// A list of any length that has elements only for the visible rows (ARIA Authoring Practices: grid).

import { element } from "/ui/elements.js";

/** Extra rows above and below the visible ones, so that scrolling shows no gaps. */
const OVERSCAN = 8;
/** Distance from the end at which the next page is loaded, in rows. */
const NEAR_END = 150;

export class Grid {
  /**
   * `columns` are `{name, title, show(cell, entry)}`; `sortable` has the names of those that can be sorted. `act` has `open(entry)`,
   * `remove(entry)`, `toggle(entry, range)`, `find(text)`, `sort(name)` and `more()`. The `target` identifies an entry.
   */
  constructor(place, { label, columns, sortable, act }) {
    Object.assign(this, { place, columns, act });
    this.entries = [];
    this.rows = new Map();
    this.active = null;
    place.setAttribute("role", "grid");
    place.setAttribute("aria-labelledby", label);
    place.setAttribute("aria-colcount", columns.length);
    place.setAttribute("aria-multiselectable", "true");
    const head = columns.map(({ name, title }) => {
      if (!sortable.includes(name)) return element("span", { role: "columnheader", className: `cell ${name}` }, element("span", { className: name === "select" ? "unseen" : "" }, title));
      const button = element("button", { type: "button", className: "link", title: `Sort by ${title.toLowerCase()}` }, title);
      button.addEventListener("click", () => act.sort(name));
      return element("span", { role: "columnheader", className: `cell ${name}` }, button);
    });
    this.space = element("div", { className: "space", role: "presentation" });
    this.body = element("div", { className: "body", role: "rowgroup" }, this.space);
    this.nothing = element("div", { className: "nothing", hidden: true });
    this.head = element("div", { className: "row head", role: "row", "aria-rowindex": "1" }, ...head);
    place.append(
      element("div", { className: "headings", role: "rowgroup" }, this.head),
      this.body,
    );
    place.after(this.nothing);
    this.body.addEventListener("scroll", () => this.later(), { passive: true });
    place.addEventListener("keydown", (event) => this.key(event));
    this.body.addEventListener("click", (event) => this.click(event));
    this.body.addEventListener("focusin", (event) => {
      const row = event.target.closest(".row");
      if (row && row.dataset.target !== this.active) this.activate(row.dataset.target);
    });
    new ResizeObserver(() => this.later()).observe(this.body);
  }

  /** Shows `entries`. `total` is the number of all entries, -1 if unknown; `top` scrolls to the first one. */
  show(entries, total, top) {
    this.entries = entries;
    this.place.setAttribute("aria-rowcount", total < 0 ? -1 : total + 1);
    if (top) this.body.scrollTop = 0;
    const focused = this.body.contains(document.activeElement);
    if (this.active !== null && !entries.some((entry) => entry.target === this.active)) {
      // The focused row is gone: focus the row that took its place.
      const next = entries[Math.min(this.activeIndex ?? 0, entries.length - 1)];
      this.active = next ? next.target : null;
      this.draw();
      if (focused) (this.rows.get(this.active) ?? this.place.ownerDocument.getElementById("search"))?.focus({ preventScroll: true });
      return;
    }
    this.later();
  }

  /** Marks the column by which the entries are sorted. */
  sorted(column, descending) {
    this.columns.forEach(({ name }, index) => {
      const cell = this.head.children[index];
      if (name === column) cell.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    });
  }

  /** Shows a text and suggestions instead of rows; without a text shows the rows. */
  explain(text = "", ...parts) {
    this.nothing.hidden = text === "";
    this.place.hidden = text !== "";
    // Replace it only if it differs: one of its buttons may have the focus.
    const said = [text, ...parts.map((part) => part.textContent)].join("\n");
    if (this.explained === said) return;
    this.explained = said;
    this.nothing.replaceChildren(element("p", { className: "nothing-said" }, text), ...parts);
  }

  /** Draws before the next frame. */
  later() {
    this.drawing ??= requestAnimationFrame(() => this.draw());
  }

  draw() {
    cancelAnimationFrame(this.drawing);
    this.drawing = null;
    const entries = this.entries;
    this.height = parseFloat(getComputedStyle(this.place).getPropertyValue("--row")) || 44;
    this.space.style.height = `${entries.length * this.height}px`;
    const { scrollTop, clientHeight } = this.body;
    // As wide as the rows, which the scroll bar makes narrower.
    this.head.style.width = `${this.body.clientWidth}px`;
    const first = Math.max(0, Math.floor(scrollTop / this.height) - OVERSCAN);
    const last = Math.min(entries.length, Math.ceil((scrollTop + clientHeight) / this.height) + OVERSCAN);
    if (this.active === null && entries.length > 0) this.active = entries[0].target;
    const wanted = new Map();
    for (let index = first; index < last; index += 1) wanted.set(entries[index].target, index);
    if (this.active !== null) {
      this.activeIndex = wanted.get(this.active) ?? entries.findIndex((entry) => entry.target === this.active);
      // The active row keeps its element, and so the focus, while it is out of sight.
      if (this.activeIndex >= 0) wanted.set(this.active, this.activeIndex);
    }
    const free = [];
    for (const [target, row] of this.rows) {
      if (wanted.has(target)) continue;
      this.rows.delete(target);
      free.push(row);
    }
    for (const [target, index] of wanted) {
      let row = this.rows.get(target);
      if (!row) {
        row = free.pop() ?? this.make();
        row.dataset.target = target;
        this.rows.set(target, row);
      }
      this.fill(row, entries[index], index);
    }
    free.forEach((row) => row.remove());
    if (entries.length - last < NEAR_END) this.act.more();
  }

  make() {
    const cells = this.columns.map(({ name }, index) =>
      element("span", { role: "gridcell", className: `cell ${name}`, "aria-colindex": index + 1 }),
    );
    const row = element("div", { className: "row", role: "row", tabIndex: -1 }, ...cells);
    this.space.append(row);
    return row;
  }

  fill(row, entry, index) {
    row.style.transform = `translateY(${index * this.height}px)`;
    row.setAttribute("aria-rowindex", index + 2);
    row.tabIndex = entry.target === this.active ? 0 : -1;
    row.dataset.state = entry.state;
    this.columns.forEach(({ show }, column) => show(row.children[column], entry));
  }

  entryOf(target) {
    return this.entries.find((entry) => entry.target === target);
  }

  activate(target) {
    const before = this.rows.get(this.active);
    if (before) before.tabIndex = -1;
    this.active = target;
    this.activeIndex = this.entries.findIndex((entry) => entry.target === target);
    const row = this.rows.get(target);
    if (row) row.tabIndex = 0;
  }

  /** Moves to the row with this index and scrolls it into view. */
  go(index) {
    const to = Math.max(0, Math.min(index, this.entries.length - 1));
    const entry = this.entries[to];
    if (!entry) return;
    const [above, below] = [to * this.height, (to + 1) * this.height];
    if (above < this.body.scrollTop) this.body.scrollTop = above;
    if (below > this.body.scrollTop + this.body.clientHeight) this.body.scrollTop = below - this.body.clientHeight;
    this.activate(entry.target);
    this.draw();
    this.rows.get(entry.target)?.focus({ preventScroll: true });
  }

  key(event) {
    if (event.ctrlKey || event.altKey || event.metaKey || !this.body.contains(event.target)) return;
    const page = Math.max(1, Math.floor(this.body.clientHeight / this.height) - 1);
    const at = this.activeIndex ?? 0;
    const moves = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + page, PageUp: at - page, Home: 0, End: this.entries.length - 1 };
    if (event.key in moves) this.go(moves[event.key]);
    else if (event.key === "Enter") this.act.open(this.entryOf(this.active));
    else if (event.key === "Delete") this.act.remove(this.entryOf(this.active));
    else if (event.key === " ") this.act.toggle(this.entryOf(this.active), event.shiftKey);
    else return;
    event.preventDefault();
  }

  click(event) {
    const row = event.target.closest(".row");
    const entry = row && this.entryOf(row.dataset.target);
    if (!entry) return;
    this.activate(entry.target);
    const find = event.target.closest("[data-find]");
    if (event.target.closest(".select")) this.act.toggle(entry, event.shiftKey);
    else if (find) this.act.find(find.dataset.find);
    else if (event.target.closest("button")) this.act.remove(entry);
    // Do not open details while text is selected.
    else if (!String(getSelection())) this.act.open(entry);
  }
}
