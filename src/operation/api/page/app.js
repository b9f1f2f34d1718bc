// The entry point of the page.

import { Refused, follow, signOut, get, signedIn, onUnauthenticated } from "/ui/api.js";
import { Bans } from "/ui/bans.js";
import { Curve } from "/ui/charts.js";
import { showCluster } from "/ui/cluster.js";
import { isOpen, logIn, setMayForce, openAllow, openBan, openDetails, openUnban, setUp } from "/ui/dialogs.js";
import { announce, bytes, byId, count, element, many, moment, say, span, time } from "/ui/elements.js";
import { Grid } from "/ui/grid.js";
import { parse } from "/ui/targets.js";
import { author, end, sentence } from "/ui/why.js";

/** The interval between status requests, in milliseconds. */
const POLL_INTERVAL = 15_000;
/** The same while the node does not answer. */
const RETRY_INTERVAL = 3_000;
/** How long a hidden tab keeps its event stream, in milliseconds. */
const HIDDEN_LIMIT = 30_000;
const KEYS_STORAGE = "banmesh-single-keys";

let mayChange = false;
let activeBans = null;
/** Attempts that this node saw in the last hour; null until the first answer. */
let attempts = null;
let searching = new AbortController();

// The list.

/** A cell with a text, and the whole text as its tooltip. */
const text = (of) => (cell, entry) => {
  const said = of(entry);
  say(cell, said);
  hint(cell, said);
};

function hint(cell, said) {
  if (cell.title !== said) cell.title = said;
}

/** Allows a line break after each colon, because IPv6 addresses are long. */
function showAddress(cell, { target }) {
  if (cell.textContent === target) return;
  cell.replaceChildren(...target.split(/(?<=:)/).flatMap((part) => [part, element("wbr")]));
  hint(cell, target);
}

function showSince(cell, entry) {
  say(cell, `${span((Date.now() - entry.began) / 1000)} ago`);
  hint(cell, moment(entry.since));
}

function showAuthor(cell, entry) {
  cell.dataset.kind = entry.by_kind;
  say(cell, entry.by);
  hint(cell, author(entry));
}

function showEnd(cell, entry) {
  const brief = { "never ends": "never" };
  const said = end(entry);
  say(cell, brief[said] ?? said.replace(/^ends in /, ""));
  hint(cell, entry.until && entry.until !== "never" ? moment(entry.until) : "");
}

function showAction(cell, entry) {
  const wanted = mayChange && entry.state === "active";
  let button = cell.firstElementChild;
  if (!wanted) return button?.remove();
  if (!button) cell.append((button = element("button", { type: "button", tabIndex: -1, className: "plain" }, "Unban")));
  button.setAttribute("aria-label", `Unban ${entry.target}`);
}

const grid = new Grid(byId("grid"), {
  label: "bans-title",
  columns: [
    { name: "address", title: "Address or network", show: showAddress },
    { name: "by", title: "By", show: showAuthor },
    { name: "reason", title: "Reason", show: text((entry) => entry.reason) },
    { name: "node", title: "Node", show: text((entry) => entry.node) },
    { name: "since", title: "Since", sort: "descending", show: showSince },
    { name: "end", title: "Ends in", show: showEnd },
    { name: "action", title: "Action", show: showAction },
  ],
  act: {
    open: (entry) => entry && openDetails(entry, mayChange),
    remove: (entry) => entry && mayChange && entry.state === "active" && openUnban(entry),
    more: () => bans.more(),
  },
});

const bans = new Bans(showBans, showProblem);

function showBans(top = false) {
  const { state, search } = bans.query;
  const here = bans.entries.length;
  const total = bans.complete ? here : state === "active" && !search.trim() ? Math.max(activeBans ?? 0, here) : -1;
  const found = total < 0 ? `${count(here)} and more` : total > here ? `${count(here)} of ${count(total)}` : count(here);
  say(byId("count"), bans.full ? `${found}; search to narrow the list` : found);
  const none = state === "active" && !search.trim() ? "No bans." : "No entries found.";
  if (here === 0 && bans.complete) grid.explain(none, ...advice(state, search.trim()));
  else grid.explain();
  grid.show(bans.entries, total, top);
  // Announced after a search only, not after every change.
  if (top) say(byId("found"), here === 0 ? none : `${found} found`);
}

/** Suggestions for an empty list. */
function advice(state, search) {
  const parts = [];
  if (state === "active" && !search) {
    parts.push(element("p", { className: "note" }, "Bans from all nodes appear here as they happen."));
    if (attempts === 0) {
      parts.push(element("p", { className: "note" }, "This node has seen no attempts in the last hour. Check that it receives logs: banmesh_syslog_lines_total counts the lines."));
    }
    return parts;
  }
  const offer = (said, act) => {
    const button = element("button", { type: "button", className: "plain" }, said);
    button.addEventListener("click", act);
    parts.push(button);
  };
  if (state !== "all") {
    offer("Search all entries", () => {
      byId("state").value = "all";
      look();
    });
  }
  if (search) {
    offer("Clear the search", () => {
      byId("search").value = "";
      byId("search").focus();
      look();
    });
  }
  return [element("p", { className: "offers" }, ...parts)];
}

/** The last error by source: "list" or "node". */
const problems = new Map();

function showProblem(error, of = "list") {
  const problem = byId("problem");
  if (error) problems.set(of, error);
  else problems.delete(of);
  [error = null] = problems.values();
  problem.hidden = error === null;
  if (error) say(problem, error.hint ? `${error.message}: ${error.hint}` : error.message);
}

// The search. For an address, the page also shows whether and why it is banned.

async function showVerdict(search, signal) {
  const place = byId("verdict");
  if (!parse(search)?.host) {
    place.hidden = true;
    return;
  }
  const why = await get(`/why/${encodeURIComponent(search.trim())}`, signal);
  const [kind, ...said] = sentence(why);
  place.className = `verdict ${kind}`;
  place.replaceChildren(element("p", {}, ...said));
  if (mayChange) place.append(...actions(why));
  place.hidden = false;
}

/** The buttons that fit the state of an address. */
function actions(why) {
  const action = (said, act) => {
    const button = element("button", { type: "button", className: "plain" }, said);
    button.addEventListener("click", act);
    return button;
  };
  const decides = why.entries.find((entry) => entry.target === why.by_target);
  if (!why.banned) return why.allowlisted_by ? [] : [action("Ban…", () => openBan(why.address))];
  if (!decides) return [];
  if (decides.target === why.address) return [action("Unban…", () => openUnban(decides))];
  const buttons = [action("Unban the network…", () => openUnban(decides)), action("Unban and allow…", () => openAllow(why.address, decides.target))];
  return [element("span", { className: "offers" }, ...buttons)];
}

/** Shows whether the address in the search field is banned. */
function updateVerdict(search) {
  showVerdict(search, searching.signal).catch((error) => {
    if (error instanceof Refused) showProblem(error);
    else if (error.name !== "AbortError") throw error;
  });
}

function look() {
  searching.abort();
  searching = new AbortController();
  const search = byId("search").value;
  bans.list({ state: byId("state").value, search });
  updateVerdict(search);
}

let typing = null;

function setUpSearch() {
  byId("search").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(look, 300);
  });
  byId("state").addEventListener("change", look);
  byId("search-form").addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(typing);
    look();
  });
}

// The state of the node.

const curves = [
  ["offences", { title: "Attempts", kind: "attempts", one: "attempt", what: "in the last hour, seen by this node" }],
  ["bans", { title: "New bans", kind: "new-bans", one: "new ban", what: "in the last hour, on all nodes" }],
  ["checks", { title: "Checks", kind: "checks", one: "check", what: "in the last hour, HAProxy queries to this node" }],
].map(([name, of]) => [name, new Curve(byId(`tile-${name}`), of)]);

function showStatus(status) {
  activeBans = status.active_bans;
  say(byId("node"), status.node);
  document.title = `${status.node} · banmesh`;
  const { ready, waiting_for: waiting } = status.readiness;
  showReadiness(ready ? "good" : "warn", ready ? "ready" : `waiting for ${waiting.join(", ")}`);
  byId("dry-run").hidden = !status.dry_run;
  say(byId("active-bans"), count(status.active_bans));
  const others = Math.max(0, status.entries - status.active_bans);
  say(byId("table-note"), `plus ${many(others, "other entry", "other entries")} · ${bytes(status.table_bytes)}`);
  say(byId("about"), `banmesh ${status.version} · up ${span(status.uptime_seconds)} · digest ${status.digest}`);
}

function showReadiness(kind, said) {
  const pill = byId("readiness");
  pill.hidden = false;
  pill.className = `pill ${kind}`;
  say(pill, said);
}

/** When the node last answered; null before the first answer. */
let answered = null;

/** Marks what the page shows as outdated, or as current again. */
function showStale(stale) {
  document.body.classList.toggle("stale", stale);
  if (stale) showReadiness("bad", answered ? `no answer since ${time(answered)}` : "no answer");
}

/** Shows the worst problem of the cluster at the top, because the list of members may be out of sight. */
function showClusterState(wrong) {
  const pill = byId("cluster-state");
  pill.hidden = wrong === null;
  if (wrong) {
    pill.className = `pill ${wrong.kind}`;
    say(pill, wrong.said);
  }
}

let polling = null;
/** Whether the event stream is open. */
let streaming = false;

/** Requests the state of the node, and schedules the next request. A hidden tab sends none. */
async function poll() {
  clearTimeout(polling);
  let wait = POLL_INTERVAL;
  if (!document.hidden) {
    try {
      const [status, cluster, activity] = await Promise.all([get("/status"), get("/cluster"), get("/activity")]);
      answered = new Date();
      showStale(false);
      showStatus(status);
      showClusterState(showCluster(cluster));
      showProblem(null, "node");
      attempts = activity.offences.reduce((sum, step) => sum + step, 0);
      curves.forEach(([name, curve]) => curve.show(activity[name], activity.step_seconds));
      if (streaming) showBans();
      else bans.list();
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      wait = Math.max(wait, error.wait * 1000);
      // Retry soon: the node may be restarting.
      if (error.status === 0) {
        wait = RETRY_INTERVAL;
        showStale(true);
      }
      showProblem(error, "node");
    }
  }
  clearTimeout(polling);
  polling = setTimeout(poll, wait);
}

// Live updates.

function showLive(kind, said) {
  const pill = byId("live");
  pill.className = `pill ${kind}`;
  say(pill, said);
}

let relisting = null;

function onEvent({ event, entry }) {
  if (event === "lost") {
    // Losses come in groups: list once for all of them.
    relisting ??= setTimeout(() => {
      relisting = null;
      bans.list();
    }, 1000);
    return;
  }
  const before = bans.known.get(entry.target)?.state;
  bans.take(entry);
  if (event === "retained" || activeBans === null) return;
  // An estimate until the next status: the state of an entry outside the list is unknown.
  if (event === "banned") activeBans += before === "active" ? 0 : 1;
  else if (before === "active" || (before === undefined && event === "unbanned")) activeBans = Math.max(0, activeBans - 1);
  say(byId("active-bans"), count(activeBans));
  announce(`${entry.target} ${event}${event === "banned" ? ` by ${author(entry)}` : ""}`);
}

/** Resolves when the tab is visible. */
const visible = () =>
  new Promise((resolve) => {
    const check = () => document.hidden || (document.removeEventListener("visibilitychange", check), resolve());
    document.addEventListener("visibilitychange", check);
    check();
  });

/** Keeps the event stream open while the tab is visible: a browser has few connections per host, and other tabs need some. */
async function live() {
  let following = null;
  let leaving = null;
  document.addEventListener("visibilitychange", () => {
    clearTimeout(leaving);
    if (document.hidden) leaving = setTimeout(() => following?.abort(), HIDDEN_LIMIT);
  });
  const read = () => {
    clearTimeout(late);
    if (streaming) bans.list();
    poll();
  };
  // A proxy may buffer the stream. Show the list anyway.
  let late = setTimeout(read, 1500);
  for (let wait = 1000; ; wait = Math.min(wait * 2, 30_000)) {
    await visible();
    const began = Date.now();
    following = new AbortController();
    try {
      await follow(() => {
        streaming = true;
        showLive("good", "live");
        // Changes before the stream opened are only in the list.
        read();
      }, onEvent, following.signal);
    } catch (error) {
      if (error.name === "AbortError") {
        showLive("quiet", "paused");
        wait = 500;
        streaming = false;
        continue;
      }
      if (!(error instanceof Refused)) throw error;
      wait = Math.max(wait, (error.wait ?? 0) * 1000);
    }
    streaming = false;
    showLive("warn", "Live updates interrupted. Reconnecting…");
    // Find out whether the node answers at all.
    poll();
    if (Date.now() - began > 60_000) wait = 1000;
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}

// Keys.

function setUpKeys() {
  const allowed = byId("single-keys");
  allowed.checked = localStorage.getItem(KEYS_STORAGE) !== "off";
  allowed.addEventListener("change", () => localStorage.setItem(KEYS_STORAGE, allowed.checked ? "on" : "off"));
  byId("open-shortcuts").addEventListener("click", () => byId("shortcuts").showModal());
  byId("open-ban").addEventListener("click", () => openBan(suggested()));
  document.addEventListener("keydown", (event) => {
    if (isOpen() || event.ctrlKey || event.altKey || event.metaKey) return;
    const field = event.target.closest("input, select, textarea");
    if (event.key === "Escape" && field?.id === "search" && field.value !== "") {
      field.value = "";
      look();
    } else if (event.key === "ArrowDown" && field?.id === "search") {
      grid.go(0);
    } else if (field || !allowed.checked) {
      return;
    } else if (event.key === "/") {
      byId("search").select();
    } else if (event.key === "b" && mayChange) {
      openBan(suggested());
    } else if (event.key === "?") {
      byId("shortcuts").showModal();
    } else {
      return;
    }
    event.preventDefault();
  });
}

/** The text in the search field, if it is an address or network. */
const suggested = () => (parse(byId("search").value) ? byId("search").value.trim() : "");

async function whoAmI() {
  let me = { name: "", role: "admin" };
  try {
    me = await get("/me");
  } catch (error) {
    // An older node without roles lets everyone do everything.
    if (!(error instanceof Refused)) throw error;
    if (error.status === 403) me.role = "read";
  }
  mayChange = me.role !== "read" && me.role !== "report";
  setMayForce(me.role === "admin");
  say(byId("user"), me.name ? `${me.name}${mayChange ? "" : " (read-only)"}` : "");
  const how = "The API has no users or tokens, so this page only shows. Add api.users or api.tokens to change something here.";
  byId("user").title = me.role === "read" && !signedIn() ? how : "";
  byId("open-ban").hidden = !mayChange;
  byId("sign-out").hidden = !signedIn();
  document.querySelectorAll(".may-change").forEach((row) => (row.hidden = !mayChange));
}

setUp((entry) => {
  bans.take(entry);
  updateVerdict(byId("search").value);
});
setUpSearch();
setUpKeys();
byId("sign-out").addEventListener("click", () => {
  signOut();
  location.reload();
});
onUnauthenticated(async () => {
  await logIn();
  await whoAmI();
});
document.addEventListener("visibilitychange", () => document.hidden || poll());
setInterval(() => {
  bans.expire();
  if (!document.hidden) grid.later();
}, 2000);
await whoAmI();
live();
