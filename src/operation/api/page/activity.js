// The charts of the page, and the range that they show.

import { Curve } from "/ui/charts.js";
import { byId, many, say } from "/ui/elements.js";

const curves = [
  ["offences", { title: "Attempts", kind: "attempts", one: "attempt", what: "seen by this node" }],
  ["bans", { title: "New bans", kind: "new-bans", one: "new ban", what: "on all nodes" }],
  ["checks", { title: "Checks", kind: "checks", one: "check", what: "queries to this node" }],
].map(([name, of]) => [name, new Curve(byId(`tile-${name}`), of)]);

const total = (steps = []) => steps.reduce((sum, step) => sum + step, 0);

/** The range that the user has chosen: `1h`, `24h` or `7d`. */
export const range = () => document.querySelector("[name=range]:checked").value;

/** Shows the answer of `/api/v1/activity`. Returns the attempts of the last hour, or null if it shows another range. */
export function showActivity(activity) {
  const shown = activity.range || "1h";
  curves.forEach(([name, curve]) => curve.show(activity[name], activity.step_seconds, shown, activity.until ?? new Date()));
  const name = { "1h": "hour", "24h": "24 hours", "7d": "7 days" }[shown];
  say(byId("refused-note"), `${many(total(activity.refused), "query", "queries")} refused here in the last ${name}`);
  return shown === "1h" ? total(activity.offences) : null;
}
