// The dialogs: sign in, ban, unban, allow, details. The browser's <dialog> keeps the focus inside.

import { Refused, ask, authorize, signOut, get, tryCredentials } from "/ui/api.js";
import { byId, many, say, toast } from "/ui/elements.js";
import { meantNetwork, parse } from "/ui/targets.js";
import { author, details, end } from "/ui/why.js";

const failureText = (error) => (error.hint ? `${error.message}: ${error.hint}` : error.message);

/** A signal that is aborted when the dialog, which is open now, is closed. */
function untilClosed(dialog) {
  const closed = new AbortController();
  dialog.addEventListener("close", () => closed.abort(), { once: true });
  return closed.signal;
}

/**
 * Runs `act` when the form of a dialog is submitted. Shows an error in the dialog, which then stays open. If the user has closed it
 * before the answer, an error is shown as a message, and the dialog may be open again for something else.
 */
function onSubmit(dialog, wrong, act) {
  const form = dialog.querySelector("form");
  const button = form.querySelector("[type=submit]");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (button.disabled) return;
    button.disabled = true;
    say(wrong, "");
    const closed = untilClosed(dialog);
    try {
      await act(closed);
      if (!closed.aborted) dialog.close();
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      if (closed.aborted) toast(failureText(error));
      else say(wrong, failureText(error));
    } finally {
      button.disabled = false;
    }
  });
}

/** Sets up all dialogs. A click outside an open dialog closes it, except for the sign-in dialog. */
export function setUp(changed) {
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.querySelector(".cancel")?.addEventListener("click", () => dialog.close());
    if (dialog.id === "login") continue;
    dialog.addEventListener("mousedown", (event) => {
      const { left, right, top, bottom } = dialog.getBoundingClientRect();
      const within = event.clientX >= left && event.clientX <= right && event.clientY >= top && event.clientY <= bottom;
      if (event.target === dialog && !within) dialog.close();
    });
  }
  setUpLogin();
  setUpBan(changed);
  setUpUnban(changed);
  setUpAllow(changed);
  // The event comes later than the end. By then other details can be open.
  byId("details").addEventListener("close", () => byId("details").open || leave());
}

let mayForce = false;

/** Sets whether the user may override the checks for likely mistakes (`force`). */
export function setMayForce(may) {
  mayForce = may;
}

/** Whether a dialog is open. */
export const isOpen = () => document.querySelector("dialog[open]") !== null;

let signedIn = () => {};

function setUpLogin() {
  const dialog = byId("login");
  const byToken = () => dialog.querySelector("[name=with][value=token]").checked;
  // There is nothing to show without signing in.
  dialog.addEventListener("cancel", (event) => event.preventDefault());
  for (const choice of dialog.querySelectorAll("[name=with]")) {
    choice.addEventListener("change", () => {
      byId("login-password-part").hidden = byToken();
      byId("login-token-part").hidden = !byToken();
    });
  }
  onSubmit(dialog, byId("login-wrong"), async () => {
    const [name, password, token] = ["login-name", "login-password", "login-token"].map((id) => byId(id).value);
    authorize(byToken() ? { token: token.trim() } : { name: name.trim(), password });
    try {
      await tryCredentials();
    } catch (error) {
      signOut();
      if (error.status !== 401 || error.message.includes("expired")) throw error;
      throw new Refused(401, { error: byToken() ? "invalid token" : "wrong name or password" });
    }
    byId("login-password").value = "";
    byId("login-token").value = "";
    signedIn();
  });
}

/** Opens the sign-in dialog. Resolves when the node has accepted the credentials. */
export function logIn() {
  return new Promise((resolve) => {
    signedIn = resolve;
    document.querySelectorAll("dialog[open]").forEach((dialog) => dialog.close());
    say(byId("login-wrong"), "");
    say(byId("login-node"), location.host);
    byId("login").showModal();
    byId(byId("login-name").value ? "login-password" : "login-name").focus();
  });
}

/** Removes the choices that the ban dialog offers after a refusal. */
let resetBan = () => {};

function setUpBan(changed) {
  const [target, duration, reason, force] = ["ban-target", "ban-duration", "ban-reason", "ban-force"].map(byId);
  const override = byId("ban-override");
  const submit = byId("ban").querySelector("[type=submit]");
  let replacing = false;
  const offerToReplace = (offered) => {
    replacing = offered;
    say(submit, offered ? "Replace" : "Ban");
  };
  resetBan = () => {
    override.hidden = true;
    force.checked = false;
    offerToReplace(false);
  };
  target.addEventListener("input", () => resetBan());
  onSubmit(byId("ban"), byId("ban-wrong"), async (closed) => {
    const meant = meantNetwork(target.value);
    if (meant) throw new Refused(400, { error: `${target.value.trim()} is not a network`, hint: `write ${meant} if you mean the network` });
    if (!parse(target.value)) throw new Refused(400, { error: "invalid address or network", hint: "write for example 192.0.2.7, 192.0.2.0/24 or 2001:db8::/48" });
    const terms = { target: target.value.trim(), reason: reason.value.trim() };
    if (duration.value === "permanent") terms.permanent = true;
    else if (duration.value) terms.duration = duration.value;
    if (force.checked) terms.force = true;
    if (replacing) terms.replace = true;
    try {
      const entry = await ask("POST", "/bans", terms);
      changed(entry);
      const here = entry.exempt_by ? `; no effect on ${entry.node}, because its configuration allows ${entry.exempt_by}` : "";
      toast(`${entry.target} is banned, ${end(entry)}${here}`);
    } catch (error) {
      if (closed.aborted) throw error;
      if (error.code === "banned_longer") {
        offerToReplace(true);
        throw new Refused(error.status, { error: error.message, hint: "choose Replace if the new ban should end sooner", code: error.code });
      }
      if (["allowlisted", "too_wide", "not_public"].includes(error.code)) override.hidden = !mayForce;
      throw error;
    }
  });
}

/** Opens the ban dialog with `target` filled in. */
export function openBan(target = "") {
  byId("ban-target").value = target;
  byId("ban-reason").value = "";
  resetBan();
  say(byId("ban-wrong"), "");
  byId("ban").showModal();
  byId(target ? "ban-reason" : "ban-target").focus();
}

let toUnban = null;
/** The targets to unban, if there are several. */
let several = null;

/** Unbans several targets. What the node refuses stays, and is named. */
async function unbanSeveral(changed) {
  const terms = { targets: several, reason: byId("unban-reason").value.trim() };
  const { done, refused } = await ask("POST", "/bans/unban", terms);
  changed(null);
  if (done > 0) toast(`${many(done, "target")} unbanned on all nodes`);
  if (refused.length === 0) return;
  const [first] = refused;
  const more = refused.length > 1 ? `, and ${refused.length - 1} more` : "";
  throw new Refused(409, { error: `not unbanned: ${first.target} (${first.error})${more}`, hint: first.hint });
}

function setUpUnban(changed) {
  const [offers, wrong] = [byId("unban-offers"), byId("unban-wrong")];
  onSubmit(byId("unban"), wrong, async (closed) => {
    offers.hidden = true;
    if (several) return unbanSeveral(changed);
    const reason = new URLSearchParams({ reason: byId("unban-reason").value.trim() });
    try {
      const entry = await ask("DELETE", `/bans/${toUnban}?${reason}`);
      changed(entry);
      const still = entry.banned_by ? `, but still banned as part of ${entry.banned_by}` : "";
      toast(`${entry.target} is unbanned on all nodes${still}`);
    } catch (error) {
      if (error.code === "banned_with_network" && !closed.aborted) offer(error.bannedBy);
      throw error;
    }
  });
  byId("unban-and-allow").addEventListener("click", () => {
    byId("unban").close();
    openAllow(toUnban);
  });
  // The target has no ban of its own: offer to unban the network, or to exempt the target from its ban.
  const offer = (network) => {
    const target = toUnban;
    byId("unban-network").onclick = async () => {
      const closed = untilClosed(byId("unban"));
      try {
        const entry = await get(`/bans/${network}`, closed);
        byId("unban").close();
        openUnban(entry);
      } catch (error) {
        if (error.name === "AbortError") return;
        if (!(error instanceof Refused)) throw error;
        say(wrong, failureText(error));
      }
    };
    byId("unban-allow").onclick = () => {
      byId("unban").close();
      openAllow(target, network);
    };
    offers.hidden = false;
  };
}

let toAllow = null;

function setUpAllow(changed) {
  onSubmit(byId("allow"), byId("allow-wrong"), async () => {
    const terms = { target: toAllow, reason: byId("allow-reason").value.trim() };
    if (byId("allow-duration").value) terms.duration = byId("allow-duration").value;
    const entry = await ask("POST", "/allowlist", terms);
    changed(entry);
    toast(`${entry.target} is allowed on all nodes`);
  });
}

/** Opens the dialog that allows `target`, which may be banned itself or with `network`. */
export function openAllow(target, network = "", banned = true) {
  toAllow = target;
  say(byId("allow-target"), target);
  const verb = banned ? "Unban and allow" : "Allow";
  say(byId("allow-verb"), verb);
  say(byId("allow-submit"), verb);
  const effect = "It is exempt from bans on all nodes until the end of this entry.";
  say(byId("allow-note"), network ? `It is exempt from the ban of ${network} and from later bans, on all nodes. The rest of ${network} stays banned.` : effect);
  byId("allow-duration").value = "";
  byId("allow-reason").value = "";
  say(byId("allow-wrong"), "");
  byId("allow").showModal();
  byId("allow-reason").focus();
}

/** Opens the unban dialog for `entry`. */
export function openUnban(entry) {
  toUnban = entry.target;
  several = null;
  byId("unban-and-allow").hidden = !mayAllow(entry.target);
  say(byId("unban-target"), entry.target);
  say(byId("unban-note"), `Banned by ${author(entry)}${entry.reason ? `: ${entry.reason}` : ""}; ${end(entry)}. This unbans it on all nodes.`);
  byId("unban-reason").value = "";
  byId("unban-offers").hidden = true;
  say(byId("unban-wrong"), "");
  byId("unban").showModal();
  byId("unban-reason").focus();
}

/** Opens the unban dialog for several entries. */
export function openUnbanMany(entries) {
  if (entries.length === 0) return toast("None of the selected entries is in force");
  if (entries.length === 1) return openUnban(entries[0]);
  several = entries.map(({ target }) => target);
  byId("unban-and-allow").hidden = true;
  say(byId("unban-target"), many(entries.length, "target"));
  say(byId("unban-note"), `${several.slice(0, 5).join(", ")}${several.length > 5 ? ` and ${several.length - 5} more` : ""}. This unbans them on all nodes.`);
  byId("unban-reason").value = "";
  byId("unban-offers").hidden = true;
  say(byId("unban-wrong"), "");
  byId("unban").showModal();
  byId("unban-reason").focus();
}

/** Whether the user may allow a target: networks are for administrators. */
const mayAllow = (target) => mayForce || (parse(target)?.host ?? false);

/** Ends the details that are shown. */
let leave = () => {};

/** Shows the details of `entry`, instead of those that are open; `may` says whether the user may change bans. */
export async function openDetails(entry, may, closed = () => {}) {
  const dialog = byId("details");
  leave();
  const body = byId("details-body");
  const loading = new AbortController();
  const [ban, unban, allow] = [byId("details-ban"), byId("details-unban"), byId("details-allow")];
  say(byId("details-target"), entry.target);
  body.replaceChildren("…");
  unban.hidden = !may || entry.state !== "active";
  ban.hidden = !may || entry.state === "active";
  allow.hidden = !may || entry.state === "allowed" || !mayAllow(entry.target);
  say(allow, entry.state === "active" ? "Unban and allow…" : "Allow…");
  const then = (open) => () => {
    dialog.close();
    open();
  };
  unban.onclick = then(() => openUnban(entry));
  ban.onclick = then(() => openBan(entry.target));
  allow.onclick = then(() => openAllow(entry.target, "", entry.state === "active"));
  byId("details-link").onclick = async () => {
    try {
      await navigator.clipboard.writeText(location.href);
      toast("Link copied");
    } catch {
      toast(`The browser does not allow copying here. The link is ${location.href}`);
    }
  };
  leave = () => {
    leave = () => {};
    loading.abort();
    closed();
  };
  if (!dialog.open) dialog.showModal();
  try {
    body.replaceChildren(await details(entry.target, parse(entry.target)?.host ?? false, loading.signal));
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof Refused)) throw error;
    body.textContent = failureText(error);
  }
}
