// Whether and why the address in the search field is banned, with what can be done about it.

import { get } from "/ui/api.js";
import { openAllow, openBan, openUnban } from "/ui/dialogs.js";
import { byId, element } from "/ui/elements.js";
import { parse } from "/ui/targets.js";
import { sentence } from "/ui/why.js";

/** Shows the answer about an address, or nothing for any other text. */
export async function showVerdict(search, mayChange, signal) {
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
  if (!why.banned) {
    if (why.allowlisted_by) return [];
    return [element("span", { className: "offers" }, action("Ban…", () => openBan(why.address)), action("Allow…", () => openAllow(why.address, "", false)))];
  }
  if (!decides) return [];
  const itself = decides.target === why.address;
  const buttons = [
    action(itself ? "Unban…" : "Unban the network…", () => openUnban(decides)),
    action("Unban and allow…", () => openAllow(why.address, itself ? "" : decides.target)),
  ];
  return [element("span", { className: "offers" }, ...buttons)];
}
