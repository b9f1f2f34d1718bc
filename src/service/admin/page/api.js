// Asks the node, with the credentials of who looks at the page.

const KEPT = "banmesh-authorization";

/** What the node refused, or that it does not answer (`status` 0). */
export class Refused extends Error {
  constructor(status, body, wait = 0) {
    super(body.error || `the node answered ${status}`);
    this.status = status;
    this.hint = body.hint || "";
    this.code = body.code || "";
    /** Seconds after which to ask again. */
    this.wait = wait;
  }
}

let authorization = sessionStorage.getItem(KEPT);
let signIn = null;

/** What to call, with a promise for a result, when the node wants to know who asks. */
export function whenUnknown(ask) {
  let asking = null;
  // All requests that were refused meanwhile wait for the same form.
  signIn = (wrong) => (asking ??= ask(wrong).finally(() => (asking = null)));
}

/** Takes a name and a password, or a token, for what is asked from now on. */
export function authorize({ name, password, token }) {
  const utf8 = (text) => Array.from(new TextEncoder().encode(text), (byte) => String.fromCharCode(byte)).join("");
  authorization = token === undefined ? `Basic ${btoa(utf8(`${name}:${password}`))}` : `Bearer ${token}`;
  sessionStorage.setItem(KEPT, authorization);
}

/** Forgets who asks. */
export function forget() {
  authorization = null;
  sessionStorage.removeItem(KEPT);
}

/** Whether somebody has signed in. */
export const signedIn = () => authorization !== null;

async function send(method, path, body, signal) {
  const headers = { "X-Requested-With": "banmesh" };
  if (authorization) headers.Authorization = authorization;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const used = authorization;
  let answer;
  try {
    answer = await fetch(`/api/v1${path}`, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      credentials: "omit",
      cache: "no-store",
      redirect: "error",
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, { error: "the node does not answer", hint: "is it running, and is the network up?" });
  }
  if (answer.status === 401 && signIn) {
    // Somebody has signed in while this was on its way.
    if (used === authorization) await signIn(used !== null);
    return send(method, path, body, signal);
  }
  if (!answer.ok) {
    const text = await answer.json().catch(() => ({}));
    throw new Refused(answer.status, text, Number(answer.headers.get("Retry-After")) || 0);
  }
  return answer;
}

/** Asks below `/api/v1`; the JSON of the answer. Throws [`Refused`]. */
export async function ask(method, path, body, signal) {
  return (await send(method, path, body, signal)).json();
}

/** `ask` with GET. */
export const get = (path, signal) => ask("GET", path, undefined, signal);

/** Whether the credentials are good: a request that does not ask for others. Throws [`Refused`]. */
export async function tryCredentials() {
  const asking = signIn;
  signIn = null;
  try {
    await send("GET", "/ping");
  } finally {
    signIn = asking;
  }
}

/**
 * Reads the changes of the table as they happen (`/api/v1/events`) until the connection ends; `opened` is called when it
 * stands, `heard` with each event. A fetch, because an EventSource cannot say who asks.
 */
export async function follow(opened, heard, signal) {
  const answer = await send("GET", "/events", undefined, signal);
  opened();
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let left = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (left + value).split("\n\n");
    left = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5)).join("\n");
      if (data) heard(JSON.parse(data));
    }
  }
}
