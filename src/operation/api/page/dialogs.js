// What one is asked: who one is, whom to ban, what to lift. The browser's own dialogs keep the focus within.

import { Refused, ask, authorize, forget, get, tryCredentials } from "/ui/api.js";
import { byId, say, toast } from "/ui/elements.js";
import { parse } from "/ui/targets.js";
import { author, end, tell } from "/ui/why.js";

const told = (error) => (error.hint ? `${error.message}: ${error.hint}` : error.message);

/** Runs `act` when the form of a dialog is sent; what is refused is said in the dialog, which then stays. */
function whenSent(dialog, wrong, act) {
  const form = dialog.querySelector("form");
  const button = form.querySelector("[type=submit]");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (button.disabled) return;
    button.disabled = true;
    say(wrong, "");
    try {
      await act();
      dialog.close();
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      say(wrong, told(error));
    } finally {
      button.disabled = false;
    }
  });
}

/** Connects what all dialogs have: a button that closes, and a click beside that does too. */
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
  setUpLift(changed);
  setUpAllow(changed);
}

let insisting = false;

/** Says whether who looks may insist on what the node takes for a mistake. */
export function mayInsist(may) {
  insisting = may;
}

/** Whether a dialog is open. */
export const isOpen = () => document.querySelector("dialog[open]") !== null;

let signedIn = () => {};

function setUpLogin() {
  const dialog = byId("login");
  const byToken = () => dialog.querySelector("[name=with][value=token]").checked;
  // Without signing in there is nothing to see.
  dialog.addEventListener("cancel", (event) => event.preventDefault());
  for (const choice of dialog.querySelectorAll("[name=with]")) {
    choice.addEventListener("change", () => {
      byId("login-password-part").hidden = byToken();
      byId("login-token-part").hidden = !byToken();
    });
  }
  whenSent(dialog, byId("login-wrong"), async () => {
    const [name, password, token] = ["login-name", "login-password", "login-token"].map((id) => byId(id).value);
    authorize(byToken() ? { token: token.trim() } : { name: name.trim(), password });
    try {
      await tryCredentials();
    } catch (error) {
      forget();
      if (error.status !== 401 || error.message.includes("expired")) throw error;
      throw new Refused(401, { error: byToken() ? "this token is not known" : "name or password is wrong" });
    }
    byId("login-password").value = "";
    byId("login-token").value = "";
    signedIn();
  });
}

/** Asks who one is; resolves when the node has taken it. */
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

/** Takes back what the dialog of a ban offers after a refusal. */
let calmBan = () => {};

function setUpBan(changed) {
  const [target, duration, reason, force] = ["ban-target", "ban-duration", "ban-reason", "ban-force"].map(byId);
  const insist = byId("ban-insist");
  const submit = byId("ban").querySelector("[type=submit]");
  let replacing = false;
  const offerToReplace = (offered) => {
    replacing = offered;
    say(submit, offered ? "Replace" : "Ban");
  };
  calmBan = () => {
    insist.hidden = true;
    force.checked = false;
    offerToReplace(false);
  };
  target.addEventListener("input", () => calmBan());
  whenSent(byId("ban"), byId("ban-wrong"), async () => {
    if (!parse(target.value)) throw new Refused(400, { error: "this is no address or network", hint: "such as 192.0.2.7, 192.0.2.0/24 or 2001:db8::/48" });
    const terms = { target: target.value.trim(), reason: reason.value.trim() };
    if (duration.value === "permanent") terms.permanent = true;
    else if (duration.value) terms.duration = duration.value;
    if (force.checked) terms.force = true;
    if (replacing) terms.replace = true;
    try {
      const entry = await ask("POST", "/bans", terms);
      changed(entry);
      const here = entry.exempt_by ? `; not on ${entry.node}, whose configuration allows ${entry.exempt_by}` : "";
      toast(`${entry.target} is banned, ${end(entry)}${here}`);
    } catch (error) {
      if (error.code === "banned_longer") {
        offerToReplace(true);
        throw new Refused(error.status, { error: error.message, hint: "replace it to let the new ban end sooner", code: error.code });
      }
      if (error.code === "allowlisted" || error.code === "too_wide") insist.hidden = !insisting;
      throw error;
    }
  });
}

/** Asks whom to ban; `target` is there already, if given. */
export function openBan(target = "") {
  byId("ban-target").value = target;
  byId("ban-reason").value = "";
  calmBan();
  say(byId("ban-wrong"), "");
  byId("ban").showModal();
  byId(target ? "ban-reason" : "ban-target").focus();
}

let toLift = null;

function setUpLift(changed) {
  const [offers, wrong] = [byId("lift-offers"), byId("lift-wrong")];
  whenSent(byId("lift"), wrong, async () => {
    offers.hidden = true;
    const reason = new URLSearchParams({ reason: byId("lift-reason").value.trim() });
    try {
      const entry = await ask("DELETE", `/bans/${toLift}?${reason}`);
      changed(entry);
      const still = entry.banned_by ? `, but it is still banned through ${entry.banned_by}` : "";
      toast(`The ban of ${entry.target} is lifted on all nodes${still}`);
    } catch (error) {
      if (error.code === "banned_with_network") offer(error.bannedBy);
      throw error;
    }
  });
  // The target has no ban of its own: the network may be unbanned, or the target exempted from its ban.
  const offer = (network) => {
    const target = toLift;
    byId("lift-network").onclick = async () => {
      try {
        const entry = await get(`/bans/${network}`);
        byId("lift").close();
        openLift(entry);
      } catch (error) {
        if (!(error instanceof Refused)) throw error;
        say(wrong, told(error));
      }
    };
    byId("lift-allow").onclick = () => {
      byId("lift").close();
      openAllow(target, network);
    };
    offers.hidden = false;
  };
}

let toAllow = null;

function setUpAllow(changed) {
  whenSent(byId("allow"), byId("allow-wrong"), async () => {
    const terms = { target: toAllow, reason: byId("allow-reason").value.trim() };
    if (byId("allow-duration").value) terms.duration = byId("allow-duration").value;
    const entry = await ask("POST", "/allowlist", terms);
    changed(entry);
    toast(`${entry.target} is allowed on all nodes`);
  });
}

/** Asks why to exempt `target` from the ban of `network`. */
export function openAllow(target, network) {
  toAllow = target;
  say(byId("allow-target"), target);
  say(byId("allow-note"), `It is exempt from the ban of ${network} and from later bans, on all nodes. The rest of ${network} stays banned.`);
  byId("allow-duration").value = "";
  byId("allow-reason").value = "";
  say(byId("allow-wrong"), "");
  byId("allow").showModal();
  byId("allow-reason").focus();
}

/** Asks why to lift the ban of `entry`. */
export function openLift(entry) {
  toLift = entry.target;
  say(byId("lift-target"), entry.target);
  say(byId("lift-note"), `By ${author(entry)}${entry.reason ? `: ${entry.reason}` : ""}; ${end(entry)}. It is lifted on all nodes.`);
  byId("lift-reason").value = "";
  byId("lift-offers").hidden = true;
  say(byId("lift-wrong"), "");
  byId("lift").showModal();
  byId("lift-reason").focus();
}

/** Shows all that is known of `entry`; `may` says whether bans may be changed. */
export async function openDetails(entry, may) {
  const dialog = byId("details");
  const body = byId("details-body");
  const loading = new AbortController();
  const [ban, lift] = [byId("details-ban"), byId("details-lift")];
  say(byId("details-target"), entry.target);
  body.replaceChildren("…");
  lift.hidden = !may || entry.state !== "active";
  ban.hidden = !may || entry.state === "active";
  const then = (open) => () => {
    dialog.close();
    open();
  };
  lift.onclick = then(() => openLift(entry));
  ban.onclick = then(() => openBan(entry.target));
  dialog.addEventListener("close", () => loading.abort(), { once: true });
  dialog.showModal();
  try {
    body.replaceChildren(await tell(entry.target, parse(entry.target)?.host ?? false, loading.signal));
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof Refused)) throw error;
    body.textContent = told(error);
  }
}
