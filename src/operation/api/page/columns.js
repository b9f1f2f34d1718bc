// The columns of the list: what their cells show, and their order.

import { element, moment, say, span } from "/ui/elements.js";
import { parse } from "/ui/targets.js";
import { author, end } from "/ui/why.js";

function hint(cell, said) {
  if (cell.title !== said) cell.title = said;
}

/** Allows a line break after each colon, because IPv6 addresses are long. */
function showAddress(cell, { target }) {
  if (cell.textContent === target) return;
  cell.replaceChildren(...target.split(/(?<=:)/).flatMap((part) => [part, element("wbr")]));
  hint(cell, target);
}

/** A cell whose text can be searched for with a click. */
function showLink(cell, said, tip) {
  let button = cell.firstElementChild;
  if (!button) cell.append((button = element("button", { type: "button", tabIndex: -1, className: "link" })));
  button.dataset.find = said;
  say(button, said);
  if (button.title !== tip) button.title = tip;
}

function showAuthor(cell, entry) {
  cell.dataset.kind = entry.by_kind;
  showLink(cell, entry.by, `${author(entry)}: search for it`);
}

function showReason(cell, { reason }) {
  say(cell, reason);
  hint(cell, reason);
}

function showSince(cell, entry) {
  say(cell, `${span((Date.now() - entry.began) / 1000)} ago`);
  hint(cell, moment(entry.since));
}

function showEnd(cell, entry) {
  const brief = { "never ends": "never" };
  const said = end(entry);
  say(cell, brief[said] ?? said.replace(/^ends in /, ""));
  hint(cell, entry.until && entry.until !== "never" ? moment(entry.until) : "");
}

const text = (of) => (entry) => (entry[of] ?? "").toLowerCase();

/** By the bits of the address, so that 192.0.2.9 comes before 192.0.2.10. */
function address(entry) {
  if (entry.order === undefined) {
    const found = parse(entry.target);
    entry.order = found ? found.bits.toString(16).padStart(32, "0") + String(found.prefix).padStart(3, "0") : entry.target;
  }
  return entry.order;
}

/** What entries are ordered by, and the direction at the first click. */
export const ORDERS = {
  address: [address, false],
  by: [text("by"), false],
  reason: [text("reason"), false],
  node: [text("node"), false],
  since: [(entry) => entry.began, true],
  end: [(entry) => entry.ends, false],
};

/** `entries` in this order; equal ones stay as they are, the newest first. */
export function ordered(entries, { column, descending }) {
  const [key] = ORDERS[column];
  const sign = descending ? -1 : 1;
  const keyed = entries.map((entry) => [key(entry), entry]);
  keyed.sort(([a], [b]) => (a < b ? -sign : a > b ? sign : 0));
  return keyed.map(([, entry]) => entry);
}

/** The columns. `mayUnban(entry)` says whether there is a button; `isSelected(target)` whether the entry is selected. */
export function columns(mayUnban, isSelected) {
  function showSelection(cell, entry) {
    let box = cell.firstElementChild;
    if (!box) cell.append((box = element("input", { type: "checkbox", tabIndex: -1 })));
    box.setAttribute("aria-label", `Select ${entry.target}`);
    const chosen = isSelected(entry.target);
    if (box.checked !== chosen) box.checked = chosen;
    cell.parentElement.setAttribute("aria-selected", chosen);
  }
  function showAction(cell, entry) {
    let button = cell.firstElementChild;
    if (!mayUnban(entry)) return button?.remove();
    if (!button) cell.append((button = element("button", { type: "button", tabIndex: -1, className: "plain unban" }, "Unban")));
    button.setAttribute("aria-label", `Unban ${entry.target}`);
  }
  return [
    { name: "select", title: "Selected", show: showSelection },
    { name: "address", title: "Address or network", show: showAddress },
    { name: "by", title: "By", show: showAuthor },
    { name: "reason", title: "Reason", show: showReason },
    { name: "node", title: "Node", show: (cell, { node }) => showLink(cell, node, `node ${node}: search for it`) },
    { name: "since", title: "Since", show: showSince },
    { name: "end", title: "Ends in", show: showEnd },
    { name: "action", title: "Action", show: showAction },
  ];
}
