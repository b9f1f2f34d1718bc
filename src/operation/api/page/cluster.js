// The members of the cluster and their health.

import { byId, element, many, say, span } from "/ui/elements.js";

/** Clock offsets from which a member counts as unhealthy, in milliseconds. */
const LARGE_OFFSET = 500;

/** The severity, and the reason in a few words. */
function health(member) {
  if (member.state === "dead") return ["bad", "is down"];
  if (member.state === "joining") return ["warn", "is joining"];
  if (member.state === "leaving") return ["warn", "is leaving"];
  if (member.agrees === false) return ["warn", "has a different table"];
  if (Math.abs(member.clock_offset_ms ?? 0) >= LARGE_OFFSET) return ["warn", "has a wrong clock"];
  return ["good", member.this_node ? "this node" : "in sync"];
}

const order = ["bad", "warn", "good"];

function facts(member) {
  const shown = [member.address];
  const age = member.heartbeat_age_ms;
  if (member.state === "dead") {
    if (typeof age === "number") shown.push(`last seen ${span(age / 1000)} ago`);
    return shown;
  }
  if (member.version) shown.push(member.version);
  if (member.entries !== null && member.entries !== undefined) shown.push(many(member.entries, "entry", "entries"));
  if (!member.this_node) {
    const offset = member.clock_offset_ms;
    if (typeof offset === "number" && Math.abs(offset) >= 50) shown.push(`clock ${offset > 0 ? "+" : "−"}${Math.abs(offset)} ms`);
    if (typeof member.lag_ms === "number") shown.push(`lag ${member.lag_ms} ms`);
    if (typeof age === "number" && age > 5000) shown.push(`last seen ${span(age / 1000)} ago`);
  }
  return shown;
}

/** Shows the answer of `/api/v1/cluster`, unhealthy members first. Returns `{kind, said}` for the worst one, or null. */
export function showCluster(cluster) {
  const note = byId("cluster-note");
  const list = byId("members");
  if (cluster.state === "standalone") {
    say(note, "This node runs without a cluster (cluster.enabled: false).");
    list.replaceChildren();
    return null;
  }
  const rank = (member) => order.indexOf(health(member)[0]);
  const members = [...cluster.members].sort((a, b) => rank(a) - rank(b) || a.id.localeCompare(b.id, "en", { numeric: true }));
  const dead = members.filter((member) => member.state === "dead").length;
  const alive = members.length - dead;
  const name = cluster.name ? `${cluster.name}: ` : "";
  say(note, `${name}${many(alive, "node")}${dead ? `, ${dead} down` : ""}${cluster.encrypted ? ", encrypted" : ", not encrypted"}`);
  list.replaceChildren(
    ...members.map((member) => {
      const [kind, text] = health(member);
      return element(
        "li",
        { className: `member ${kind}` },
        element("span", { className: "dot", "aria-hidden": "true" }),
        element("span", { className: "name" }, member.id),
        element("span", { className: "health" }, text),
        element("span", { className: "facts" }, facts(member).join(" · ")),
      );
    }),
  );
  const wrong = members.filter((member) => rank(member) < 2);
  if (wrong.length === 0) return null;
  const [kind, text] = health(wrong[0]);
  const age = wrong[0].heartbeat_age_ms;
  const seen = wrong[0].state === "dead" && typeof age === "number" ? ` (last seen ${span(age / 1000)} ago)` : "";
  const others = wrong.length > 1 ? `, and ${wrong.length - 1} more` : "";
  return { kind, said: `${wrong[0].id} ${text}${seen}${others}` };
}
