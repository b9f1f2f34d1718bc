// What the node receives, who asks it, what its filters find, and what needs attention.

import { byId, count, element, many, moment, say, span } from "/ui/elements.js";

const ago = (seconds) => (typeof seconds === "number" ? `${span(seconds)} ago` : "never");

/** Shows a card, with these children, or hides it. */
function fill(name, children) {
  byId(name).hidden = children === null;
  if (children !== null) byId(`${name}-body`).replaceChildren(...children.filter(Boolean));
}

/** A row: a name, a value at the end, and a line below. */
const row = (name, value, below = "", kind = "") =>
  element(
    "li",
    { className: `item ${kind}` },
    element("span", { className: "name" }, name),
    element("span", { className: "value" }, value),
    below ? element("span", { className: "facts" }, below) : null,
  );

const list = (rows) => element("ul", { className: "items" }, ...rows);

const NAMES = { udp: "UDP", tcp: "TCP", tls: "TLS", file: "files", journal: "journal", haproxy: "HAProxy", verdict: "other proxies" };
const named = (name) => NAMES[name] ?? name;

function showInputs(inputs) {
  if (!inputs?.transports) return fill("inputs", null);
  if (inputs.transports.length === 0) return fill("inputs", [element("p", { className: "note" }, "No input is enabled, so this node recognises no attacks itself.")]);
  const lines = inputs.transports.map((input) =>
    row(named(input.transport), count(input.lines), input.last_age_seconds === undefined ? "no line yet" : `last ${ago(input.last_age_seconds)}`),
  );
  const dropped = inputs.transports.flatMap((input) => input.dropped.filter((drop) => drop.count > 0).map((drop) => [input, drop]));
  const senders = inputs.senders.slice(0, 5).map((sender) => {
    const shown = row(sender.sender, count(sender.lines), `${named(sender.transport)}, last ${ago(sender.last_age_seconds)}`);
    shown.querySelector(".name").classList.add("address");
    return shown;
  });
  const more = inputs.senders_known - senders.length;
  fill("inputs", [
    element("p", { className: "note" }, inputs.lines === 0 ? "None received since the start. Is a sender configured, and allowed by syslog.allowed_senders?" : `${many(inputs.lines, "line")} since the start, ${count(inputs.matched)} recognised`),
    list(lines),
    dropped.length ? element("h3", {}, "Dropped") : null,
    dropped.length ? list(dropped.map(([input, drop]) => row(`${named(input.transport)}: ${drop.reason}`, count(drop.count), drop.meaning, "warn"))) : null,
    inputs.offences_dropped || inputs.offences_late ? element("p", { className: "note warn" }, `Not counted: ${many(inputs.offences_dropped, "offence")} because too many waited, ${count(inputs.offences_late)} because their lines came too late`) : null,
    senders.length ? element("h3", {}, "Senders") : null,
    senders.length ? list(senders) : null,
    more > 0 ? element("p", { className: "note" }, `and ${count(more)} more`) : null,
  ]);
}

function showProxies(proxies) {
  if (!proxies?.length) return fill("proxies", null);
  const rows = proxies.map((proxy) => {
    const rate = proxy.checks_per_second >= 10 ? count(Math.round(proxy.checks_per_second)) : proxy.checks_per_second.toFixed(1);
    if (proxy.checks === 0) {
      return row(named(proxy.name), "asks nothing", proxy.connections ? many(proxy.connections, "connection") : "not connected since the start", "warn");
    }
    const facts = [many(proxy.connections, "connection"), many(proxy.checks, "check"), `${count(proxy.refused)} refused`, `last ${ago(proxy.last_age_seconds)}`];
    if (proxy.unanswered) facts.push(`${count(proxy.unanswered)} unanswered`);
    if (proxy.without_address) facts.push(`${count(proxy.without_address)} without an address`);
    return row(named(proxy.name), `${rate} checks/s`, facts.join(" · "), proxy.without_address ? "warn" : "");
  });
  fill("proxies", [list(rows)]);
}

/** `find` searches the list for a filter. */
function showFilters(filters, find) {
  if (!filters?.length) return fill("filters", null);
  const rows = [...filters]
    .sort((a, b) => b.offences - a.offences || a.name.localeCompare(b.name))
    .map((filter) => {
      const button = element("button", { type: "button", className: "link", title: `Search for the bans of ${filter.name}` }, filter.name);
      button.addEventListener("click", () => find(filter.name));
      const last = filter.last_offence ? `, last ${ago((Date.now() - new Date(filter.last_offence)) / 1000)}` : "";
      return row(button, many(filter.bans, "ban"), `${many(filter.offences, "offence")} here since the start${last}`);
    });
  fill("filters", [list(rows)]);
}

/** A message as a sentence, with what is in backticks as code. Names of nodes keep their case. */
function asSentence(text) {
  const said = /^[a-z]+ /.test(text) ? text.charAt(0).toUpperCase() + text.slice(1) : text;
  return `${said}.`.split("`").map((part, index) => (index % 2 ? element("code", {}, part) : part));
}

/** The warnings that are in force, each with what to do. Problems come first. */
export function showWarnings(warnings = []) {
  const place = byId("warnings");
  place.hidden = warnings.length === 0;
  const said = JSON.stringify(warnings.map(({ name, message }) => [name, message]));
  if (place.dataset.said === said) return;
  place.dataset.said = said;
  place.replaceChildren(
    ...warnings.map(({ severity, message, fix, since }) =>
      element(
        "p",
        { className: `warning ${severity === "problem" ? "bad" : "warn"}`, title: since ? `since ${moment(since)}` : "" },
        element("strong", {}, ...asSentence(message)),
        " ",
        ...(fix ? asSentence(fix) : []),
      ),
    ),
  );
}

const TITLES = { sources: "Sources", networks: "Networks", filters: "Filters", accounts: "Accounts", authors: "Authors", nodes: "Nodes" };

/** The answer of `/api/v1/top`. `find` searches the list for a row. */
export function showTop(top, find) {
  const lists = top.lists.filter(({ rows }) => rows.length > 0);
  byId("top").hidden = lists.length === 0;
  byId("top-body").replaceChildren(
    ...lists.map(({ name, counts, rows, of }) => {
      const most = Math.max(...rows.map((row) => row.count));
      const items = rows.map((row) => {
        const address = name === "sources" || name === "networks";
        const origin = [row.country, row.as_name].filter(Boolean).join(", ");
        const title = [`Search for ${row.key}`, origin].filter(Boolean).join(": ");
        const button = element("button", { type: "button", className: `link ${address ? "address" : ""}`, title }, row.key);
        button.addEventListener("click", () => find(row.key));
        const state = row.banned ? "banned" : row.attacked ? "under attack" : "";
        const item = element(
          "li",
          {},
          // No ban has the name of an account.
          name === "accounts" ? element("span", {}, row.key) : button,
          state ? element("span", { className: "badge", title: state }, element("span", { className: "unseen" }, state)) : null,
          element("span", { className: "value" }, count(row.count)),
        );
        item.style.setProperty("--share", `${((row.count / most) * 100).toFixed(1)}%`);
        return item;
      });
      const more = of > rows.length ? `, ${count(rows.length)} of ${count(of)}` : "";
      return element("div", {}, element("h3", {}, TITLES[name] ?? name, element("small", {}, ` by ${counts}${more}`)), element("ol", { className: "shares" }, ...items));
    }),
  );
}

/** Everything that `/api/v1/status` says about the node's work. */
export function showPanels(status, find) {
  showWarnings(status.warnings);
  showInputs(status.inputs);
  showProxies(status.proxies);
  showFilters(status.filters, find);
  const { unsaved = 0, error = "" } = status.disk ?? {};
  const note = byId("table-note");
  if (unsaved) say(note, `${many(unsaved, "change")} not on disk: ${error}`);
}
