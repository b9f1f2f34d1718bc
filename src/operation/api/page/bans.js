// The list: pages from the node, newest first, merged with live changes.

import { Refused, get } from "/ui/api.js";
import { search as wants } from "/ui/targets.js";

/** Page sizes: small at first to show something soon, then larger, because the node walks its table for every page. */
const PAGES = [250, 1000, 2500, 5000];
/** The most entries in the list. */
const MAX_ENTRIES = 200_000;
/** How long changes are collected before they are shown, in milliseconds. */
const COLLECT_TIME = 250;

/** Adds times by the browser's clock, computed from the ages that the node reports: the two clocks may differ. */
function withLocalTimes(entry) {
  const now = Date.now();
  entry.began = now - entry.age_seconds * 1000;
  entry.ends = entry.permanent ? Infinity : entry.remaining_seconds === null || entry.remaining_seconds === undefined ? 0 : now + entry.remaining_seconds * 1000;
  return entry;
}

export class Bans {
  /** `changed` is called when the list changes; `failed` with the last error, or null. */
  constructor(changed, failed) {
    Object.assign(this, { changed, failed });
    this.query = { state: "active", search: "" };
    /** Whether all pages are wanted: to sort them, or to save them. */
    this.all = false;
    this.pending = new Map();
    /** What changed while a page is loading, which the page may be too old to have. */
    this.meanwhile = new Map();
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

  /** Whether the last page is loaded. */
  get complete() {
    return this.next === null;
  }

  /** Whether the list has reached its limit. */
  get full() {
    return this.entries.length >= MAX_ENTRIES;
  }

  /** Loads the first page of `query`, or of the current query. The old list stays until the answer arrives. */
  async list(query) {
    this.other = query !== undefined;
    this.query = query ?? this.query;
    this.loading?.abort();
    await this.load(true);
  }

  /** Loads all pages. Resolves when they are here, or a request has failed. */
  async everything() {
    this.all = true;
    for (let before = -1; !this.complete && !this.full && before !== this.entries.length; ) {
      before = this.entries.length;
      await (this.loading ? new Promise((later) => setTimeout(later, 100)) : this.more());
      if (this.loading) before = -1;
    }
  }

  /** Loads the next page, unless there is none or a page is being loaded. */
  async more() {
    if (this.loading || this.complete || this.full) return;
    await this.load(false);
  }

  async load(anew) {
    const loading = new AbortController();
    this.loading = loading;
    this.meanwhile.clear();
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
        this.known.set(entry.target, withLocalTimes(entry));
        this.entries.push(entry);
      }
      this.next = page.next ?? null;
      this.pages += 1;
      for (const [target, entry] of this.meanwhile) this.pending.set(target, entry);
      this.settle();
      this.failed(null);
      this.changed(anew && this.other);
      if (this.all) this.more();
    } catch (error) {
      if (this.loading !== loading) return;
      this.loading = null;
      if (error.name === "AbortError") return;
      if (!(error instanceof Refused)) throw error;
      this.failed(error);
      // Rate limit: retry when the node allows it.
      if (error.status === 429) setTimeout(() => this.loading ?? this.load(anew), (error.wait + 1) * 1000);
    }
  }

  /** Merges a changed entry into the list. */
  take(entry) {
    this.pending.set(entry.target, withLocalTimes(entry));
    if (this.loading) this.meanwhile.set(entry.target, entry);
    this.timer ??= setTimeout(() => this.settle(), COLLECT_TIME);
  }

  settle() {
    clearTimeout(this.timer);
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
      // Drop the oldest entries; a search still finds them.
      for (const entry of this.entries.splice(MAX_ENTRIES)) this.known.delete(entry.target);
      this.next ??= "";
    }
    this.changed(false);
  }

  /** Removes expired bans. */
  expire() {
    if (this.query.state !== "active") return;
    const now = Date.now();
    if (!this.entries.some((entry) => entry.ends <= now)) return;
    this.entries = this.entries.filter((entry) => {
      const inForce = entry.ends > now;
      if (!inForce) this.known.delete(entry.target);
      return inForce;
    });
    this.changed(false);
  }
}
