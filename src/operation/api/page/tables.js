// What all HAProxies count in the stick-tables that they share with the nodes: the heaviest keys of one table.

import { Refused, get } from "/ui/api.js";
import { byId, count, element, many } from "/ui/elements.js";

/** How many keys are shown. */
const LIMIT = 10;

/** The columns of a key as text, without those that are 0. */
const facts = (values) =>
  Object.entries(values)
    .filter(([, value]) => value > 0)
    .map(([column, value]) => `${column} ${count(value)}`)
    .join(" · ");

function showTable({ table, keys }, find) {
  const isAddress = table.key === "ipv6" || table.key === "ipv4";
  const items = keys.map(({ key, processes, values }) => {
    const name = isAddress ? element("button", { type: "button", className: "link address", title: `Search for ${key}` }, key) : element("span", {}, key);
    if (isAddress) name.addEventListener("click", () => find(key));
    return element("li", { className: "item" }, element("span", { className: "name" }, name), element("span", { className: "value" }, many(processes, "HAProxy", "HAProxies")), element("span", { className: "facts" }, facts(values) || "nothing now"));
  });
  const none = element("p", { className: "note" }, "Nothing is counted now.");
  byId("tables-body").replaceChildren(items.length ? element("ul", { className: "items" }, ...items) : none);
}

/** Offers the tables to choose from. Returns the chosen one. */
function choose(names) {
  const select = byId("tables-name");
  const shown = [...select.options].map((option) => option.value);
  if (names.join("\n") !== shown.join("\n")) {
    const chosen = select.value;
    select.replaceChildren(...names.map((name) => element("option", { value: name }, name)));
    if (names.includes(chosen)) select.value = chosen;
  }
  return select.value;
}

/** Requests the counters and shows them. `find` searches the list of bans for an address. */
export async function pollTables(find) {
  try {
    const { tables } = await get("/tables");
    byId("tables").hidden = tables.length === 0;
    if (tables.length === 0) return;
    const name = choose(tables.map((table) => table.name));
    byId("tables-name").onchange = () => pollTables(find);
    const answer = await get(`/tables/${encodeURIComponent(name)}?limit=${LIMIT}`);
    // Another table may have been chosen meanwhile.
    if (byId("tables-name").value === name) showTable(answer, find);
  } catch (error) {
    // An older node has no tables, and a table may have ended meanwhile.
    if (!(error instanceof Refused)) throw error;
  }
}
