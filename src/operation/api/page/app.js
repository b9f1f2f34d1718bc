// The page, put together.

import { Refused, follow, forget, get, signedIn, whenUnknown } from "/ui/api.js";
import { Bans } from "/ui/bans.js";
import { Curve } from "/ui/charts.js";
import { showCluster } from "/ui/cluster.js";
import { isOpen, logIn, mayInsist, openAllow, openBan, openDetails, openLift, setUp } from "/ui/dialogs.js";
import { announce, bytes, byId, count, element, many, moment, say, span, time } from "/ui/elements.js";
import { Grid } from "/ui/grid.js";
import { parse } from "/ui/targets.js";
import { author, end, sentence } from "/ui/why.js";

/** How often the node is asked how it is, in milliseconds. */
const EVERY = 15_000;
/** The same while it does not answer. */
const AGAIN = 3_000;
/** How long changes are followed while nobody looks, in milliseconds. */
const UNSEEN = 30_000;
const KEYS_KEPT = "banmesh-single-keys";

let mayChange = false;
let activeBans = null;
/** Attempts that this node has seen in the last hour, once that is known. */
let attempts = null;
let asked = new AbortController();

// The list.

/** What may not fit into its cell is told in full to who points at it. */
const text = (of) => (cell, entry) => {
  const said = of(entry);
  say(cell, said);
  hint(cell, said);
};

function hint(cell, said) {
  if (cell.title !== said) cell.title = said;
}

/** It may break after a colon, for one of IPv6 is long. */
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
  if (!button) cell.append((button = element("button", { type: "button", tabIndex: -1, className: "plain" }, "Lift")));
  button.setAttribute("aria-label", `Lift the ban of ${entry.target}`);
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
    remove: (entry) => entry && mayChange && entry.state === "active" && openLift(entry),
    more: () => bans.more(),
  },
});

const bans = new Bans(showBans, showProblem);

function showBans(top = false) {
  const { state, search } = bans.query;
  const here = bans.entries.length;
  const total = bans.complete ? here : state === "active" && !search.trim() ? Math.max(activeBans ?? 0, here) : -1;
  const found = total < 0 ? `${count(here)} and more` : total > here ? `${count(here)} of ${count(total)}` : count(here);
  say(byId("count"), bans.full ? `${found}: search for the others` : found);
  const none = state === "active" && !search.trim() ? "Nobody is banned." : "Nothing is found.";
  if (here === 0 && bans.complete) grid.explain(none, ...advice(state, search.trim()));
  else grid.explain();
  grid.show(bans.entries, total, top);
  // Read out when somebody has searched, not whenever a ban comes or goes.
  if (top) say(byId("found"), here === 0 ? none : `${found} found`);
}

/** What to do where there is nothing to show. */
function advice(state, search) {
  const parts = [];
  if (state === "active" && !search) {
    parts.push(element("p", { className: "note" }, "Bans of all nodes appear here as they happen."));
    if (attempts === 0) {
      parts.push(element("p", { className: "note" }, "This node has seen no attempts in the last hour: do its logs arrive? banmesh_syslog_lines_total counts their lines."));
    }
    return parts;
  }
  const offer = (said, act) => {
    const button = element("button", { type: "button", className: "plain" }, said);
    button.addEventListener("click", act);
    parts.push(button);
  };
  if (state !== "all") {
    offer("Look among all that is known", () => {
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

/** What is wrong, by what was tried: the list, or asking how the node is. */
const problems = new Map();

function showProblem(error, of = "list") {
  const problem = byId("problem");
  if (error) problems.set(of, error);
  else problems.delete(of);
  [error = null] = problems.values();
  problem.hidden = error === null;
  if (error) say(problem, error.hint ? `${error.message}: ${error.hint}` : error.message);
}

// The search. An address is answered at once: is it banned, and why.

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

/** What may be done about an address. */
function actions(why) {
  const action = (said, act) => {
    const button = element("button", { type: "button", className: "plain" }, said);
    button.addEventListener("click", act);
    return button;
  };
  const decides = why.entries.find((entry) => entry.target === why.by_target);
  if (!why.banned) return why.allowlisted_by ? [] : [action("Ban it…", () => openBan(why.address))];
  if (!decides) return [];
  if (decides.target === why.address) return [action("Lift the ban…", () => openLift(decides))];
  const buttons = [action("Unban the network…", () => openLift(decides)), action("Unban and allow…", () => openAllow(why.address, decides.target))];
  return [element("span", { className: "offers" }, ...buttons)];
}

/** Says of the address that is searched for whether it is banned. */
function tellVerdict(search) {
  showVerdict(search, asked.signal).catch((error) => {
    if (error instanceof Refused) showProblem(error);
    else if (error.name !== "AbortError") throw error;
  });
}

function look() {
  asked.abort();
  asked = new AbortController();
  const search = byId("search").value;
  bans.list({ state: byId("state").value, search });
  tellVerdict(search);
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

// How the node is.

const curves = [
  ["offences", { title: "Attempts", kind: "attempts", one: "attempt", what: "in the last hour, seen by this node" }],
  ["bans", { title: "New bans", kind: "new-bans", one: "new ban", what: "in the last hour, on all nodes" }],
  ["checks", { title: "Checks", kind: "checks", one: "check", what: "in the last hour, asked by HAProxy" }],
].map(([name, of]) => [name, new Curve(byId(`tile-${name}`), of)]);

function showStatus(status) {
  activeBans = status.active_bans;
  say(byId("node"), status.node);
  document.title = `${status.node} · banmesh`;
  const { ready, waiting_for: waiting } = status.readiness;
  showReadiness(ready ? "good" : "warn", ready ? "ready" : `waits for ${waiting.join(", ")}`);
  byId("dry-run").hidden = !status.dry_run;
  say(byId("active-bans"), count(status.active_bans));
  const remembered = status.entries - status.active_bans;
  say(byId("table-note"), `and ${many(Math.max(0, remembered), "entry", "entries")} remembered · ${bytes(status.table_bytes)}`);
  say(byId("about"), `banmesh ${status.version} · up ${span(status.uptime_seconds)} · digest ${status.digest}`);
}

function showReadiness(kind, said) {
  const pill = byId("readiness");
  pill.hidden = false;
  pill.className = `pill ${kind}`;
  say(pill, said);
}

/** When the node last answered. */
let answered = null;

/** What is shown is what the node knows now, or what it knew when it was last heard of. */
function showStale(stale) {
  document.body.classList.toggle("stale", stale);
  if (stale) showReadiness("bad", answered ? `no answer since ${time(answered)}` : "no answer");
}

/** Says at the top what is wrong with the cluster, which may be out of sight. */
function showClusterState(wrong) {
  const pill = byId("cluster-state");
  pill.hidden = wrong === null;
  if (wrong) {
    pill.className = `pill ${wrong.kind}`;
    say(pill, wrong.said);
  }
}

let polling = null;
/** Whether changes are heard as they happen. */
let listening = false;

/** Asks how the node is, and again after a while; not while nobody looks. */
async function poll() {
  clearTimeout(polling);
  let wait = EVERY;
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
      if (listening) showBans();
      else bans.list();
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      wait = Math.max(wait, error.wait * 1000);
      // Soon again: it may be restarted.
      if (error.status === 0) {
        wait = AGAIN;
        showStale(true);
      }
      showProblem(error, "node");
    }
  }
  clearTimeout(polling);
  polling = setTimeout(poll, wait);
}

// Changes as they happen.

function showLive(kind, said) {
  const pill = byId("live");
  pill.className = `pill ${kind}`;
  say(pill, said);
}

let relisting = null;

function heard({ event, entry }) {
  if (event === "lost") {
    // Where much is lost, much more will be.
    relisting ??= setTimeout(() => {
      relisting = null;
      bans.list();
    }, 1000);
    return;
  }
  const before = bans.known.get(entry.target)?.state;
  bans.take(entry);
  if (event === "remembered" || activeBans === null) return;
  // A guess until the node is asked again: what is not in the list may have been banned or not.
  if (event === "banned") activeBans += before === "active" ? 0 : 1;
  else if (before === "active" || (before === undefined && event === "unbanned")) activeBans = Math.max(0, activeBans - 1);
  say(byId("active-bans"), count(activeBans));
  announce(`${entry.target} ${event}${event === "banned" ? ` by ${author(entry)}` : ""}`);
}

/** Resolves when somebody looks. */
const looked = () =>
  new Promise((resolve) => {
    const check = () => document.hidden || (document.removeEventListener("visibilitychange", check), resolve());
    document.addEventListener("visibilitychange", check);
    check();
  });

/** Follows the changes as long as somebody looks: a browser has few connections for one host, and other tabs need some. */
async function live() {
  let following = null;
  let leaving = null;
  document.addEventListener("visibilitychange", () => {
    clearTimeout(leaving);
    if (document.hidden) leaving = setTimeout(() => following?.abort(), UNSEEN);
  });
  const read = () => {
    clearTimeout(late);
    if (listening) bans.list();
    poll();
  };
  // A proxy may hold the changes back; then there is the list all the same.
  let late = setTimeout(read, 1500);
  for (let wait = 1000; ; wait = Math.min(wait * 2, 30_000)) {
    await looked();
    const began = Date.now();
    following = new AbortController();
    try {
      await follow(() => {
        listening = true;
        showLive("good", "live");
        // What happened while nobody listened is in the list only.
        read();
      }, heard, following.signal);
    } catch (error) {
      if (error.name === "AbortError") {
        showLive("quiet", "paused");
        wait = 500;
        listening = false;
        continue;
      }
      if (!(error instanceof Refused)) throw error;
      wait = Math.max(wait, (error.wait ?? 0) * 1000);
    }
    listening = false;
    showLive("warn", "no changes are heard, trying again");
    // Is it only the changes, or the node?
    poll();
    if (Date.now() - began > 60_000) wait = 1000;
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}

// Keys.

function setUpKeys() {
  const allowed = byId("single-keys");
  allowed.checked = localStorage.getItem(KEYS_KEPT) !== "off";
  allowed.addEventListener("change", () => localStorage.setItem(KEYS_KEPT, allowed.checked ? "on" : "off"));
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

/** What was searched for, if it can be banned. */
const suggested = () => (parse(byId("search").value) ? byId("search").value.trim() : "");

async function whoAmI() {
  let me = { name: "", role: "admin" };
  try {
    me = await get("/me");
  } catch (error) {
    // A node that has no roles lets everybody do all.
    if (!(error instanceof Refused)) throw error;
    if (error.status === 403) me.role = "read";
  }
  mayChange = me.role !== "read";
  mayInsist(me.role === "admin");
  say(byId("user"), me.name ? `${me.name}${me.role === "read" ? ", may look only" : ""}` : "");
  byId("open-ban").hidden = !mayChange;
  byId("sign-out").hidden = !signedIn();
  document.querySelectorAll(".may-change").forEach((row) => (row.hidden = !mayChange));
}

setUp((entry) => {
  bans.take(entry);
  tellVerdict(byId("search").value);
});
setUpSearch();
setUpKeys();
byId("sign-out").addEventListener("click", () => {
  forget();
  location.reload();
});
whenUnknown(async () => {
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
