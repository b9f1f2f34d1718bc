// Selected entries, and what can be done with several: unban, copy, save as CSV.

import { byId, many, say, toast } from "/ui/elements.js";

/** The fields of a line of CSV, which are also its head. */
const FIELDS = ["target", "state", "by_kind", "by", "reason", "node", "since", "until", "bans"];

/** One field. Spreadsheets run texts that begin like a formula, and attackers write some of them. */
function quoted(value) {
  const text = String(value ?? "");
  const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

/** Entries as CSV (RFC 4180), with a head. */
export const asCsv = (entries) => [FIELDS, ...entries.map((entry) => FIELDS.map((field) => entry[field]))].map((line) => line.map(quoted).join(",")).join("\r\n") + "\r\n";

/** Lets the user save entries as a file. */
export function saveCsv(entries, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([asCsv(entries)], { type: "text/csv" }));
  link.download = `${name}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  toast(`${many(entries.length, "entry", "entries")} saved as ${name}.csv`);
}

/** Selected targets. */
export class Selection {
  /** `entryOf(target)` gives an entry of the list; `unban(entries)` asks; `changed` is called after each change. */
  constructor({ entryOf, unban, changed, fileName }) {
    Object.assign(this, { entryOf, changed });
    this.targets = new Set();
    this.last = null;
    byId("selected-unban").addEventListener("click", () => unban(this.entries().filter((entry) => entry.state === "active")));
    byId("selected-csv").addEventListener("click", () => saveCsv(this.entries(), fileName()));
    byId("selected-none").addEventListener("click", () => this.clear());
    byId("selected-copy").addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText([...this.targets].join("\n"));
        toast(`${many(this.targets.size, "target")} copied`);
      } catch {
        // Browsers allow it on HTTPS and on this host only.
        toast("The browser does not allow copying here. Use CSV.");
      }
    });
  }

  entries() {
    return [...this.targets].map(this.entryOf).filter(Boolean);
  }

  has(target) {
    return this.targets.has(target);
  }

  /** Selects an entry or not; with `range` all from the last one to it, in the order of `entries`. */
  toggle(target, range, entries) {
    const [from, to] = [this.last, target].map((one) => entries.findIndex((entry) => entry.target === one));
    if (range && from >= 0 && to >= 0) {
      for (const entry of entries.slice(Math.min(from, to), Math.max(from, to) + 1)) this.targets.add(entry.target);
    } else if (!this.targets.delete(target)) {
      this.targets.add(target);
    }
    this.last = target;
    this.show();
  }

  clear() {
    this.targets.clear();
    this.last = null;
    this.show();
  }

  /** Drops targets that are no longer in the list. */
  keep() {
    const before = this.targets.size;
    for (const target of this.targets) if (!this.entryOf(target)) this.targets.delete(target);
    if (this.targets.size !== before) this.show();
  }

  show() {
    byId("selection").hidden = this.targets.size === 0;
    say(byId("selected"), `${this.targets.size} selected`);
    this.changed();
  }
}
