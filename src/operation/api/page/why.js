// Why an address is banned, or not.

import { get } from "/ui/api.js";
import { element, many, span, stamp } from "/ui/elements.js";

/** The author of an entry: a filter or somebody. */
export const author = (entry) => (entry.by_kind === "filter" ? `filter ${entry.by}` : entry.by);

/** When an entry ends or ended. */
export function end(entry) {
  if (entry.state === "unbanned") return "unbanned";
  if (entry.permanent) return "never ends";
  if (entry.state === "expired") return "over";
  return `ends in ${span((entry.ends ?? Date.now() + (entry.remaining_seconds ?? 0) * 1000) / 1000 - Date.now() / 1000)}`;
}

const states = { active: "in force", expired: "over, remembered", lifted: "unbanned", allowed: "allowed: never banned" };

/** The decision about an entry's target that does not decide. */
function also(other) {
  const by = element("bdi", {}, author(other));
  const reason = other.reason ? [": ", element("bdi", {}, other.reason)] : [];
  if (other.state === "unbanned") return ["lifted by ", by, " before, ", stamp(other.since), ...reason];
  const until = other.until === "never" ? ["for ever"] : ["until ", stamp(other.until)];
  const force = other.state === "expired" ? ", over" : other.in_force ? ", in force as well" : ", not in force";
  const what = other.by_kind === "filter" ? "banned by " : "decided by ";
  return [what, by, " ", ...until, ...reason, force];
}

/** All that is known of one entry. */
export function facts(entry) {
  const fact = (name, ...value) => element("div", {}, element("dt", {}, name), element("dd", {}, ...value));
  const lifted = entry.state === "unbanned";
  return element(
    "dl",
    { className: `facts ${entry.state}` },
    fact("State", states[entry.state] ?? entry.state),
    fact(lifted ? "Lifted by" : "By", author(entry)),
    fact("Reason", entry.reason || "none given"),
    fact(lifted ? "Lifted" : "Since", stamp(entry.since), ` · ${span(entry.age_seconds)} ago`),
    lifted ? null : fact(entry.state === "expired" ? "Ended" : "Until", entry.permanent ? "for ever" : stamp(entry.until)),
    fact("On node", entry.node),
    entry.other ? fact("Also", ...also(entry.other)) : null,
    fact("Bans so far", many(entry.bans, "ban")),
    fact("Remembered until", entry.retained_until === "never" ? "for ever" : stamp(entry.retained_until)),
  );
}

/** What HAProxy is told of an address, in a sentence; of `/api/v1/why`. */
export function sentence(why) {
  const address = element("strong", { className: "address" }, why.address);
  if (why.allowlisted_by) return ["good", address, ` is never banned: ${why.allowlisted_by} is in the allowlist.`];
  const decides = why.entries.find((entry) => entry.target === why.by_target);
  if (why.banned && decides) {
    const through = decides.target === why.address ? " is banned " : ` is banned through ${decides.target}, `;
    const until = why.until === "never" ? ["for ever"] : ["until ", stamp(why.until)];
    // Names and reasons in a `bdi`: what others wrote must not turn the sentence around.
    const reason = decides.reason ? [": ", element("bdi", {}, decides.reason)] : [];
    const exception = why.exception_from ? ` This is an exception from ${why.exception_from}, which is allowed.` : "";
    return ["bad", address, through, ...until, ", by ", element("bdi", {}, author(decides)), ...reason, ".", exception];
  }
  const before = why.entries.length ? ` ${many(why.entries.length, "entry", "entries")} of it or of networks around it.` : " Nothing is known of it.";
  return ["quiet", address, " is not banned.", before];
}

/** What is being counted against an address, where the node tells. */
function counted(attempts) {
  if (!attempts?.length) return [];
  const said = attempts.map(({ target, attempts, of, window_seconds: window }) =>
    element("li", {}, element("span", { className: "address" }, target), `: ${attempts} of ${many(of, "attempt")} within ${span(window)}`),
  );
  return [element("h3", {}, "Counted now"), element("ul", { className: "plain-list" }, ...said)];
}

const outcomes = { ban: "banned", would_ban: "would be banned", still_banned: "banned already" };

/** The lines that an address was seen in, where the node remembers some. */
function evidence(history) {
  if (!history) return [];
  const { node, elsewhere = [], offences = [] } = history;
  const others = elsewhere.length ? `More lines are on ${elsewhere.join(", ")}.` : "";
  if (!offences.length) return others ? [element("p", { className: "note" }, others)] : [];
  const lines = offences.slice(0, 50).map((offence) =>
    element(
      "li",
      {},
      element("p", { className: "note" }, stamp(offence.at), ` · ${offence.filter}, ${offence.rule} · ${outcomes[offence.outcome] ?? offence.outcome}`),
      offence.line ? element("code", {}, offence.line) : null,
    ),
  );
  return [
    element("h3", {}, "Lines"),
    // It may scroll: then the keyboard must get there, too.
    element("ol", { className: "lines", tabIndex: 0, ariaLabel: "Lines" }, ...lines),
    element("p", { className: "note" }, `Seen by ${node}. ${others}`),
  ];
}

/** Fetches all that is known of a target, which is one address or a network; an element to show. */
export async function tell(target, isHost, signal) {
  const place = element("div", { className: "told" });
  if (!isHost) {
    const entry = await get(`/bans/${target}`, signal);
    place.append(facts(entry), ...evidence(entry.history));
    return place;
  }
  const why = await get(`/why/${encodeURIComponent(target)}`, signal);
  const [kind, ...said] = sentence(why);
  place.append(element("div", { className: `verdict ${kind}` }, element("p", {}, ...said)));
  if (why.dry_run) place.append(element("p", { className: "note" }, "Dry run: nobody is really banned (ban.dry_run)."));
  for (const entry of why.entries) {
    if (entry.target !== why.address) place.append(element("h3", { className: "address" }, entry.target));
    place.append(facts(entry));
  }
  place.append(...counted(why.attempts), ...evidence(why.history));
  return place;
}
