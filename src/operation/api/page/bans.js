// The list: pages from the node, the newest ban first, and the changes as they happen.

import { Refused, get } from "/ui/api.js";
import { search as wants } from "/ui/targets.js";

/** Small at first, so that there is something to see; then larger, for every page costs the node a walk over its table. */
const PAGES = [250, 1000, 2500, 5000];
/** More than this nobody looks through; then it is time to search. */
const MOST = 200_000;
/** Changes are shown together after so many milliseconds. */
const TOGETHER = 250;

/** Keeps times as the browser's clock has them, which may be wrong: by what the node says is left. */
function taken(entry) {
  const now = Date.now();
  entry.began = now - entry.age_seconds * 1000;
  entry.ends = entry.permanent ? Infinity : entry.remaining_seconds === null || entry.remaining_seconds === undefined ? 0 : now + entry.remaining_seconds * 1000;
  return entry;
}

export class Bans {
  /** `changed` is called when there is something else to show; `failed` with what the node refused, or null. */
  constructor(changed, failed) {
    Object.assign(this, { changed, failed });
    this.query = { state: "active", search: "" };
    this.pending = new Map();
    this.timer = null;
    this.clear();
  }

  clear() {
    this.entries = [];
    this.known = new Map();
    this.next = "";
    this.pages = 0;
    this.loading?.abort();
    this.loading = null;
  }

  /** Whether all that is wanted is here. */
  get complete() {
    return this.next === null;
  }

  /** Whether there are more than the page holds. */
  get full() {
    return this.entries.length >= MOST;
  }

  /** Lists something else, from its beginning, or the same anew. What is shown stays until there is something to show instead. */
  async list(query) {
    this.other = query !== undefined;
    this.query = query ?? this.query;
    this.loading?.abort();
    await this.load(true);
  }

  /** Fetches the next page, if there is one and none is on its way. */
  async more() {
    if (this.loading || this.complete || this.full) return;
    await this.load(false);
  }

  async load(anew) {
    const loading = new AbortController();
    this.loading = loading;
    const { state, search } = this.query;
    const wanted = new URLSearchParams({ state, sort: "newest", limit: PAGES[Math.min(anew ? 0 : this.pages, PAGES.length - 1)] });
    if (search.trim()) wanted.set("search", search.trim());
    if (!anew && this.next) wanted.set("cursor", this.next);
    try {
      const page = await get(`/bans?${wanted}`, loading.signal);
      if (this.loading !== loading) return;
      this.loading = null;
      if (anew) {
        this.clear();
      }
      for (const entry of page.bans) {
        if (this.known.has(entry.target)) continue;
        this.known.set(entry.target, taken(entry));
        this.entries.push(entry);
      }
      this.next = page.next ?? null;
      this.pages += 1;
      this.failed(null);
      this.changed(anew && this.other);
    } catch (error) {
      if (this.loading !== loading) return;
      this.loading = null;
      if (error.name === "AbortError") return;
      if (!(error instanceof Refused)) throw error;
      this.failed(error);
      // Asked too often: later, by itself.
      if (error.status === 429) setTimeout(() => this.loading ?? this.load(anew), (error.wait + 1) * 1000);
    }
  }

  /** Takes a change of the table in; `entry` as in an event. */
  take(entry) {
    this.pending.set(entry.target, taken(entry));
    this.timer ??= setTimeout(() => this.settle(), TOGETHER);
  }

  settle() {
    this.timer = null;
    const pending = [...this.pending.values()].reverse();
    this.pending.clear();
    const { state, search } = this.query;
    const fits = wants(search);
    const shown = (entry) => (state === "all" || entry.state === state) && fits(entry);
    const stale = new Set();
    const fresh = [];
    for (const entry of pending) {
      const before = this.known.get(entry.target);
      if (before) stale.add(before);
      if (shown(entry)) {
        fresh.push(entry);
        this.known.set(entry.target, entry);
      } else {
        this.known.delete(entry.target);
      }
    }
    if (fresh.length === 0 && stale.size === 0) return;
    this.entries = fresh.concat(stale.size ? this.entries.filter((entry) => !stale.has(entry)) : this.entries);
    if (this.full) {
      // No more than it holds, however many come; those that go can be asked for.
      for (const entry of this.entries.splice(MOST)) this.known.delete(entry.target);
      this.next ??= "";
    }
    this.changed(false);
  }

  /** Lets bans go that are over. */
  expire() {
    if (this.query.state !== "active") return;
    const now = Date.now();
    if (!this.entries.some((entry) => entry.ends <= now)) return;
    this.entries = this.entries.filter((entry) => {
      const lasts = entry.ends > now;
      if (!lasts) this.known.delete(entry.target);
      return lasts;
    });
    this.changed(false);
  }
}
