// Texts about an entry, and the details of an address.

import { get } from "/ui/api.js";
import { element, many, span, stamp } from "/ui/elements.js";

/** The author of an entry: a filter or an operator. */
export const author = (entry) => (entry.by_kind === "filter" ? `filter ${entry.by}` : entry.by);

/** The end of an entry, in words. */
export function end(entry) {
  if (entry.state === "unbanned") return "unbanned";
  if (entry.permanent) return "never ends";
  if (entry.state === "expired") return "expired";
  return `ends in ${span((entry.ends ?? Date.now() + (entry.remaining_seconds ?? 0) * 1000) / 1000 - Date.now() / 1000)}`;
}

const states = { active: "in force", expired: "expired", unbanned: "unbanned", allowed: "allowed: never banned" };

/** The other decision about the target of an entry: the one that does not decide its state. */
function also(other) {
  const by = element("bdi", {}, author(other));
  const reason = other.reason ? [": ", element("bdi", {}, other.reason)] : [];
  if (other.state === "unbanned") return ["unbanned earlier by ", by, ", ", stamp(other.since), ...reason];
  const until = other.until === "never" ? ["permanently"] : ["until ", stamp(other.until)];
  const force = other.state === "expired" ? ", expired" : other.in_force ? ", also in force" : ", not in force";
  const what = other.by_kind === "filter" ? "banned by " : "set by ";
  return [what, by, " ", ...until, ...reason, force];
}

/** Country and network, if the node has files about them. */
function origin({ country, asn, as_name: name }) {
  return element("bdi", {}, [country, asn && `AS${asn}`, name].filter(Boolean).join(", "));
}

/** The feeds that have the address. */
function listed({ feeds, country, asn, ...why }) {
  const place = country || asn ? [element("p", { className: "note" }, "Located in ", origin({ country, asn, ...why }))] : [];
  if (!feeds?.length) return place;
  const said = feeds.map(({ feed, effect, weight, spared, age_seconds: age, credit }) => {
    const acts = { weight: `a first failure counts ${weight}`, ban: "its addresses are banned", observe: "only observed" };
    const confirmed = age == null ? "" : `, list confirmed ${span(age)} ago`;
    return element("li", {}, `${feed}: ${spared ? `has no effect, because ${spared}` : acts[effect]}${confirmed}. `, element("bdi", {}, credit));
  });
  return [...place, element("h3", {}, "Feeds"), element("ul", { className: "plain-list" }, ...said)];
}

/** All fields of one entry. */
export function facts(entry) {
  const fact = (name, ...value) => element("div", {}, element("dt", {}, name), element("dd", {}, ...value));
  const unbanned = entry.state === "unbanned";
  return element(
    "dl",
    { className: `facts ${entry.state}` },
    fact("State", states[entry.state] ?? entry.state),
    fact(unbanned ? "Unbanned by" : "By", author(entry)),
    fact("Reason", entry.reason || "none given"),
    fact(unbanned ? "Unbanned" : "Since", stamp(entry.since), ` · ${span(entry.age_seconds)} ago`),
    unbanned ? null : fact(entry.state === "expired" ? "Ended" : "Until", entry.permanent ? "never ends" : stamp(entry.until)),
    fact("Node", entry.node),
    entry.other ? fact("Also", ...also(entry.other)) : null,
    entry.country || entry.asn ? fact("Located in", origin(entry)) : null,
    fact("Bans so far", many(entry.bans, "ban")),
    fact("Retained until", entry.retained_until === "never" ? "permanently" : stamp(entry.retained_until)),
  );
}

/** The answer of `/api/v1/why` as a kind and a sentence. */
export function sentence(why) {
  const address = element("strong", { className: "address" }, why.address);
  if (why.allowlisted_by) return ["good", address, ` is never banned: ${why.allowlisted_by} is in the allowlist.`];
  const decides = why.entries.find((entry) => entry.target === why.by_target);
  if (why.banned && decides) {
    const through = decides.target === why.address ? " is banned " : ` is banned as part of ${decides.target}, `;
    const until = why.until === "never" ? ["permanently"] : ["until ", stamp(why.until)];
    // Names and reasons go into a `bdi`: their text must not change the direction of the sentence.
    const reason = decides.reason ? [": ", element("bdi", {}, decides.reason)] : [];
    const exception = why.exception_from ? ` This is an exception from ${why.exception_from}, which is allowed.` : "";
    return ["bad", address, through, ...until, ", by ", element("bdi", {}, author(decides)), ...reason, ".", exception];
  }
  if (why.banned) {
    const names = (why.feeds ?? []).filter(({ effect }) => effect === "ban").map(({ feed }) => feed);
    return ["bad", address, ` is banned by feed ${names.join(", ")} until `, stamp(why.until), "."];
  }
  const before = why.entries.length ? ` This node has ${many(why.entries.length, "entry", "entries")} for it or for networks that contain it.` : " This node has no entries for it.";
  return ["quiet", address, " is not banned.", before];
}

/** The current attempts of an address. */
function counted(attempts) {
  if (!attempts?.length) return [];
  const said = attempts.map(({ target, attempts, of, window_seconds: window }) =>
    element("li", {}, element("span", { className: "address" }, target), `: ${attempts} of ${many(of, "attempt")} within ${span(window)}`),
  );
  return [element("h3", {}, "Current attempts"), element("ul", { className: "plain-list" }, ...said)];
}

const outcomes = {
  ban: "banned",
  would_ban: "would be banned",
  still_banned: "already banned",
  shadow_counted: "counted in shadow mode",
  shadow_ban: "would be banned (shadow mode)",
  shadow_banned: "would be banned already (shadow mode)",
};

/** The log lines of the offences that the node still has. */
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
    element("h3", {}, "Log lines"),
    // The list may scroll, so it must be reachable by keyboard.
    element("ol", { className: "lines", tabIndex: 0, ariaLabel: "Log lines" }, ...lines),
    element("p", { className: "note" }, `Seen by ${node}. ${others}`),
  ];
}

/** Fetches the details of a target and returns them as an element. `isHost`: the target is a single address. */
export async function details(target, isHost, signal) {
  const place = element("div", { className: "details" });
  if (!isHost) {
    const entry = await get(`/bans/${target}`, signal);
    place.append(facts(entry), ...evidence(entry.history));
    return place;
  }
  const why = await get(`/why/${encodeURIComponent(target)}`, signal);
  const [kind, ...said] = sentence(why);
  place.append(element("div", { className: `verdict ${kind}` }, element("p", {}, ...said)));
  if (why.dry_run) place.append(element("p", { className: "note" }, "Dry run: bans have no effect (ban.dry_run)."));
  for (const entry of why.entries) {
    if (entry.target !== why.address) place.append(element("h3", { className: "address" }, entry.target));
    place.append(facts(entry));
  }
  place.append(...listed(why), ...counted(why.attempts), ...evidence(why.history));
  return place;
}
