// The entry point of the page.

import { Refused, follow, signOut, get, signedIn, onUnauthenticated } from "/ui/api.js";
import { range, showActivity } from "/ui/activity.js";
import { Bans } from "/ui/bans.js";
import { showCluster } from "/ui/cluster.js";
import { ORDERS, columns, ordered } from "/ui/columns.js";
import { isOpen, logIn, setMayForce, openBan, openDetails, openUnban, openUnbanMany, setUp } from "/ui/dialogs.js";
import { announce, byId, count, element, many, say, span, time, timeZone } from "/ui/elements.js";
import { Grid } from "/ui/grid.js";
import { ofList, ofTarget, read, write } from "/ui/links.js";
import { showPanels, showTop } from "/ui/panels.js";
import { Selection, saveCsv } from "/ui/selection.js";
import { pollTables } from "/ui/tables.js";
import { parse } from "/ui/targets.js";
import { showVerdict } from "/ui/verdict.js";
import { author } from "/ui/why.js";

/** The interval between status requests, in milliseconds. */
const POLL_INTERVAL = 15_000;
/** The same while the node does not answer. */
const RETRY_INTERVAL = 3_000;
/** How long a hidden tab keeps its event stream, in milliseconds. */
const HIDDEN_LIMIT = 30_000;
/** The interval between requests for the lists of the most frequent, in milliseconds. */
const TOP_INTERVAL = 60_000;
const KEYS_STORAGE = "banmesh-single-keys";

let mayChange = false;
let activeBans = null;
/** Attempts that this node saw in the last hour; null until the first answer. */
let attempts = null;
/** What the node receives; null until the first answer. */
let inputs = null;
let searching = new AbortController();

// The list.

const grid = new Grid(byId("grid"), {
  label: "bans-title",
  columns: columns(
    (entry) => mayChange && entry.state === "active",
    (target) => selection.has(target),
  ),
  sortable: Object.keys(ORDERS),
  act: {
    open: (entry) => entry && show(entry),
    toggle: (entry, range) => entry && selection.toggle(entry.target, range, shown),
    find,
    sort,
    remove: (entry) => entry && mayChange && entry.state === "active" && openUnban(entry),
    more: () => bans.more(),
  },
});

const bans = new Bans(showBans, showProblem);
/** The entries in the order in which they are shown. */
let shown = [];
let order = { column: "since", descending: true };
grid.sorted(order.column, order.descending);

const selection = new Selection({
  entryOf: (target) => bans.known.get(target),
  unban: openUnbanMany,
  changed: () => grid.later(),
  fileName,
});

/** Sorts by a column, or turns the order around. All entries are loaded for it. */
function sort(column) {
  order = { column, descending: order.column === column ? !order.descending : ORDERS[column][1] };
  grid.sorted(order.column, order.descending);
  bans.all = !isNewestFirst();
  if (bans.all) bans.everything();
  showBans(true);
}

const isNewestFirst = () => order.column === "since" && order.descending;

/** Searches the list for a text. */
function find(text) {
  byId("search").value = text;
  look();
}

/** Opens the details of an entry, under an address of their own. `anew`: so that the browser's back button returns. */
function show(entry, anew = true) {
  write(ofTarget(entry.target), anew);
  openDetails(entry, mayChange, () => read()?.target === entry.target && write(ofList(bans.query)));
}

/** The name of a file with the entries of the list. */
function fileName() {
  const { state, search } = bans.query;
  const named = search.trim().replace(/[^\w.-]+/g, "-");
  return ["banmesh", state, named].filter(Boolean).join("-");
}

function showBans(top = false) {
  const { state, search } = bans.query;
  const here = bans.entries.length;
  const total = bans.complete ? here : state === "active" && !search.trim() ? Math.max(activeBans ?? 0, here) : -1;
  const [one, more] = state === "active" ? ["ban", "bans"] : ["entry", "entries"];
  const found = total < 0 ? `more than ${many(here, one, more)}` : many(total, one, more);
  const loading = bans.all && !bans.complete && !bans.full ? `; ${count(here)} loaded` : "";
  say(byId("count"), bans.full ? `${found}; search to narrow the list` : `${found}${loading}`);
  const none = state === "active" && !search.trim() ? "No bans." : "No entries found.";
  shown = isNewestFirst() ? bans.entries : ordered(bans.entries, order);
  selection.keep();
  if (here === 0 && bans.complete) grid.explain(none, ...advice(state, search.trim()));
  else grid.explain();
  grid.show(shown, total, top);
  // Announced after a search only, not after every change.
  if (top) say(byId("found"), here === 0 ? none : `${found} found`);
}

/** Suggestions for an empty list. */
function advice(state, search) {
  const parts = [];
  if (state === "active" && !search) {
    parts.push(element("p", { className: "note" }, "Bans from all nodes appear here as they happen."));
    if (attempts === 0) {
      const age = inputs?.last_age_seconds;
      const lines = age === undefined ? "and no log line since its start. Send it the logs of your servers (docs/inputs.md)." : `but log lines: the last one ${span(age)} ago.`;
      parts.push(element("p", { className: "note" }, `This node has seen no attempts in the last hour, ${lines}`));
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
  if (!error) return;
  const said = `${error.hint ? `${error.message}: ${error.hint}` : error.message}.`;
  say(problem, said.charAt(0).toUpperCase() + said.slice(1));
}

// The search. For an address, the page also shows whether and why it is banned.

/** Shows whether the address in the search field is banned. */
function updateVerdict(search) {
  showVerdict(search, mayChange, searching.signal).catch((error) => {
    if (error instanceof Refused) showProblem(error);
    else if (error.name !== "AbortError") throw error;
  });
}

function look() {
  searching.abort();
  searching = new AbortController();
  const search = byId("search").value;
  const query = { state: byId("state").value, search };
  write(ofList(query));
  selection.clear();
  bans.list(query);
  updateVerdict(search);
}

/** Shows what the address of the page names. */
function visit() {
  const wanted = read();
  if (!wanted) return;
  const details = byId("details");
  if (wanted.target !== undefined && parse(wanted.target)) return visitTarget(wanted.target);
  if (details.open) details.close();
  if (wanted.target === undefined) {
    const { state, search } = bans.query;
    if (wanted.search.trim() === search.trim() && wanted.state === state) return;
    byId("search").value = wanted.search;
    byId("state").value = wanted.state;
    // A state that does not exist.
    if (byId("state").value === "") byId("state").value = "active";
    return look();
  }
  find(wanted.target);
}

/** Shows the details of a target, whether there is an entry or not. */
async function visitTarget(target) {
  let entry = { target, state: "" };
  try {
    entry = await get(`/bans/${target}`);
  } catch (error) {
    // The details say what is wrong.
    if (!(error instanceof Refused)) throw error;
  }
  // The user may have gone on before the answer.
  if (read()?.target === target && (!isOpen() || byId("details").open)) show(entry, false);
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

let topAsked = 0;

/** Requests the lists of the most frequent, at most once a minute. */
async function pollTop() {
  if (Date.now() - topAsked < TOP_INTERVAL) return;
  topAsked = Date.now();
  try {
    showTop(await get("/top?limit=6"), find);
  } catch (error) {
    // An older node has none.
    if (!(error instanceof Refused)) throw error;
  }
}

function showStatus(status) {
  inputs = status.inputs ?? null;
  activeBans = status.active_bans;
  say(byId("node"), status.node);
  document.title = `${status.node} · banmesh`;
  const { ready, waiting_for: waiting } = status.readiness;
  showReadiness(ready ? "good" : "warn", ready ? "ready" : `waiting for ${waiting.join(", ")}`);
  byId("dry-run").hidden = !status.dry_run;
  say(byId("active-bans"), count(status.active_bans));
  const others = Math.max(0, status.entries - status.active_bans);
  say(byId("table-note"), others ? `plus ${many(others, "other entry", "other entries")}` : "");
  showPanels(status, find);
  say(byId("about"), `banmesh ${status.version} · up ${span(status.uptime_seconds)} · digest ${status.digest} · times in ${timeZone()}`);
}

const READINESS = {
  good: "The node has the bans of the other nodes, and answers",
  warn: "The node answers with the bans that it has",
  bad: "The page shows what the node last said",
};

function showReadiness(kind, said) {
  const pill = byId("readiness");
  pill.hidden = false;
  pill.className = `pill ${kind}`;
  pill.title = READINESS[kind];
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
/** How often the node was asked. Only the last answer counts, because answers can overtake each other. */
let polls = 0;
/** Whether the event stream is open. */
let streaming = false;

/** Requests the state of the node, and schedules the next request. A hidden tab sends none. */
async function poll() {
  clearTimeout(polling);
  const asked = ++polls;
  let wait = POLL_INTERVAL;
  if (!document.hidden) {
    try {
      const [status, cluster, activity] = await Promise.all([get("/status"), get("/cluster"), get(`/activity?range=${range()}`)]);
      if (asked !== polls) return;
      answered = new Date();
      showStale(false);
      showStatus(status);
      showClusterState(showCluster(cluster));
      showProblem(null, "node");
      const seen = showActivity(activity);
      attempts = seen ?? attempts;
      pollTop();
      pollTables(find);
      if (streaming) showBans();
      else bans.list();
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      if (asked !== polls) return;
      wait = Math.max(wait, error.wait * 1000);
      // Retry soon: the node may be restarting.
      if (error.status === 0) {
        wait = RETRY_INTERVAL;
        showStale(true);
      }
      showProblem(error, "node");
    }
  }
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
  byId("user").title = me.role === "read" && !signedIn() ? how : me.name ? `Signed in with the role ${me.role}` : "";
  byId("open-ban").hidden = !mayChange;
  byId("sign-out").hidden = !signedIn();
  document.querySelectorAll(".may-change").forEach((row) => (row.hidden = !mayChange));
}

setUp((entry) => {
  if (entry) bans.take(entry);
  else selection.clear();
  updateVerdict(byId("search").value);
});
setUpSearch();
setUpKeys();
byId("csv").addEventListener("click", async () => {
  await bans.everything();
  bans.all = !isNewestFirst();
  saveCsv(shown, fileName());
});
for (const choice of document.querySelectorAll("[name=range]")) choice.addEventListener("change", poll);
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
addEventListener("hashchange", visit);
await whoAmI();
live();
visit();
