// The address of what the page shows: `#/203.0.113.9` is an address or network, `#?search=dovecot&state=all` a list.

/** What the hash names: `{target}`, `{search, state}`, or null if it is the name of an element. */
export function read(hash = location.hash) {
  if (hash.startsWith("#/")) {
    try {
      return { target: decodeURIComponent(hash.slice(2)).trim() };
    } catch {
      return { target: hash.slice(2) };
    }
  }
  if (hash !== "" && !hash.startsWith("#?")) return null;
  const wanted = new URLSearchParams(hash.slice(2));
  return { search: wanted.get("search") ?? "", state: wanted.get("state") ?? "active" };
}

/** The hash of an address or network. */
export const ofTarget = (target) => `#/${encodeURIComponent(target).replaceAll("%2F", "/").replaceAll("%3A", ":")}`;

/** The hash of a list; empty for the bans in force. */
export function ofList({ search, state }) {
  const wanted = new URLSearchParams();
  if (search.trim()) wanted.set("search", search.trim());
  if (state !== "active") wanted.set("state", state);
  return wanted.size ? `#?${wanted}` : "";
}

/** Changes the address without loading anything. `anew`: so that the browser's back button returns. */
export function write(hash, anew = false) {
  const url = hash || location.pathname + location.search;
  if (location.hash === hash) return;
  if (anew) history.pushState(null, "", url);
  else history.replaceState(null, "", url);
}
