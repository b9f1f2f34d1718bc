// Why an address is banned, or not.

import { get } from "/ui/api.js";
import { element, many, span, stamp } from "/ui/elements.js";

/** The author of an entry: a filter or somebody. */
export const author = (entry) => (entry.by_kind === "filter" ? `filter ${entry.by}` : entry.by);

/** When an entry ends or ended. */
export function end(entry) {
  if (entry.state === "lifted") return "lifted";
  if (entry.permanent) return "never ends";
  if (entry.state === "expired") return "over";
  return `ends in ${span((entry.ends ?? Date.now() + (entry.remaining_seconds ?? 0) * 1000) / 1000 - Date.now() / 1000)}`;
}

const states = { active: "in force", expired: "over, remembered", lifted: "lifted" };

/** All that is known of one entry. */
export function facts(entry) {
  const fact = (name, ...value) => element("div", {}, element("dt", {}, name), element("dd", {}, ...value));
  const lifted = entry.state === "lifted";
  return element(
    "dl",
    { className: `facts ${entry.state}` },
    fact("State", states[entry.state] ?? entry.state),
    fact(lifted ? "Lifted by" : "By", author(entry)),
    fact("Reason", entry.reason || "none given"),
    fact(lifted ? "Lifted" : "Since", stamp(entry.since), ` · ${span(entry.age_seconds)} ago`),
    lifted ? null : fact(entry.state === "expired" ? "Ended" : "Until", entry.permanent ? "for ever" : stamp(entry.until)),
    fact("On node", entry.node),
    fact("Bans so far", many(entry.bans, "ban")),
    fact("Remembered until", entry.remembered_until === "never" ? "for ever" : stamp(entry.remembered_until)),
  );
}

/** What HAProxy is told of an address, in a sentence; of `/api/v1/why`. */
export function sentence(why) {
  const address = element("strong", { className: "address" }, why.address);
  if (why.allowlisted_by) return ["good", address, ` is never banned: ${why.allowlisted_by} is in the allowlist.`];
  const decides = why.entries.find((entry) => entry.target === why.by_target);
  if (why.banned && decides) {
    const through = decides.target === why.address ? " is banned " : ` is banned through ${decides.target}, `;
    const until = decides.permanent ? ["for ever"] : ["until ", stamp(why.until)];
    // Names and reasons in a `bdi`: what others wrote must not turn the sentence around.
    const reason = decides.reason ? [": ", element("bdi", {}, decides.reason)] : [];
    return ["bad", address, through, ...until, ", by ", element("bdi", {}, author(decides)), ...reason, "."];
  }
  const before = why.entries.length ? ` ${many(why.entries.length, "entry", "entries")} of it or of networks around it.` : " Nothing is known of it.";
  return ["quiet", address, " is not banned.", before];
}

/** Fetches all that is known of an entry's target; an element to show. */
export async function tell(target, isHost, signal) {
  const place = element("div", { className: "told" });
  if (!isHost) {
    place.append(facts(await get(`/bans/${target}`, signal)));
    return { place, entries: [] };
  }
  const why = await get(`/why/${encodeURIComponent(target)}`, signal);
  const [kind, ...said] = sentence(why);
  place.append(element("p", { className: `verdict ${kind}` }, ...said));
  if (why.dry_run) place.append(element("p", { className: "note" }, "Dry run: nobody is really banned (ban.dry_run)."));
  for (const entry of why.entries) place.append(element("h3", { className: "address" }, entry.target), facts(entry));
  return { place, entries: why.entries };
}
