// The members of the cluster and how they are.

import { byId, element, many, say, span } from "/ui/elements.js";

/** Offsets of clocks that are worth a word, in milliseconds. */
const OFF = 500;

/** How bad it is, and in a word why. */
function health(member) {
  if (member.state === "dead") return ["bad", "not heard of"];
  if (member.state === "joining") return ["warn", "joining: fetches the bans"];
  if (member.state === "leaving") return ["warn", "leaving"];
  if (member.agrees === false) return ["warn", "its table differs"];
  if (Math.abs(member.clock_offset_ms ?? 0) >= OFF) return ["warn", "its clock is off"];
  return ["good", member.this_node ? "this node" : "agrees"];
}

const order = ["bad", "warn", "good"];

function facts(member) {
  const told = [member.address];
  const silent = member.heartbeat_age_ms;
  if (member.state === "dead") {
    if (typeof silent === "number") told.push(`silent for ${span(silent / 1000)}`);
    return told;
  }
  if (member.version) told.push(member.version);
  if (member.entries !== null && member.entries !== undefined) told.push(many(member.entries, "entry", "entries"));
  if (!member.this_node) {
    const offset = member.clock_offset_ms;
    if (typeof offset === "number" && Math.abs(offset) >= 50) told.push(`clock ${offset > 0 ? "+" : "−"}${Math.abs(offset)} ms`);
    if (typeof member.lag_ms === "number") told.push(`${member.lag_ms} ms behind`);
    if (typeof silent === "number" && silent > 5000) told.push(`silent for ${span(silent / 1000)}`);
  }
  return told;
}

/** Shows `/api/v1/cluster`, what is wrong first; `{kind, said}` of the worst, or null. */
export function showCluster(cluster) {
  const note = byId("cluster-note");
  const list = byId("members");
  if (cluster.state === "standalone") {
    say(note, "This node is alone (cluster.enabled: false).");
    list.replaceChildren();
    return null;
  }
  const rank = (member) => order.indexOf(health(member)[0]);
  const members = [...cluster.members].sort((a, b) => rank(a) - rank(b) || a.id.localeCompare(b.id, "en", { numeric: true }));
  const dead = members.filter((member) => member.state === "dead").length;
  const alive = members.length - dead;
  const name = cluster.name ? `${cluster.name}: ` : "";
  say(note, `${name}${many(alive, "node")}${dead ? `, ${dead} not heard of` : ""}${cluster.sealed ? ", sealed" : ", not sealed"}`);
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
  const others = wrong.length > 1 ? `, and ${wrong.length - 1} more` : "";
  return { kind, said: `${wrong[0].id}: ${text}${others}` };
}
