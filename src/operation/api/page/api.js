// Asks the node, with the credentials of who looks at the page.

const KEPT = "banmesh-authorization";
/** The longest wait for an answer, in milliseconds: a network that loses everything says nothing. */
const PATIENCE = 15_000;
/** The node says something on a quiet connection at least every 15 s; one that is silent for so long is gone. */
const SILENCE = 40_000;

/** What the node refused, or that it does not answer (`status` 0). */
export class Refused extends Error {
  constructor(status, body, wait = 0) {
    super(body.error || `the node answered ${status}`);
    this.status = status;
    this.hint = body.hint || "";
    this.code = body.code || "";
    /** The network with which the target is banned, where that is what is wrong. */
    this.bannedBy = body.banned_by || "";
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

/** An end for a request: when `signal` says so, or when `wait` milliseconds have passed since the last `again`. */
function limited(signal, wait) {
  const ending = new AbortController();
  const stop = () => ending.abort(signal.reason);
  if (signal?.aborted) stop();
  signal?.addEventListener("abort", stop);
  let timer;
  const again = () => {
    clearTimeout(timer);
    timer = setTimeout(() => ending.abort(new DOMException("no answer", "TimeoutError")), wait);
  };
  const done = () => {
    clearTimeout(timer);
    signal?.removeEventListener("abort", stop);
  };
  again();
  return { signal: ending.signal, again, done };
}

/** What a request came to that was not answered. */
const unanswered = (error) =>
  error.name === "AbortError" ? error : new Refused(0, { error: "the node does not answer", hint: "is it running, and is the network up?" });

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
    throw unanswered(error);
  }
  if (answer.status === 401 && signIn) return { used, asking: signIn };
  if (!answer.ok) {
    const text = await answer.json().catch(() => ({}));
    throw new Refused(answer.status, text, Number(answer.headers.get("Retry-After")) || 0);
  }
  return { answer };
}

/** The JSON of an answer. */
const json = (answer) =>
  answer.json().catch((error) => {
    throw error instanceof SyntaxError ? error : unanswered(error);
  });

/**
 * Sends a request, and again when its sender had to sign in first; what `read` makes of the answer. Nothing may take longer
 * than `wait`.
 */
async function exchange(method, path, body, signal, wait, read) {
  for (;;) {
    const limit = limited(signal, wait);
    let sent;
    try {
      sent = await send(method, path, body, limit.signal);
      if (sent.answer) return await read(sent.answer, limit);
    } finally {
      limit.done();
    }
    // Somebody has signed in while this was on its way.
    if (sent.used === authorization) await sent.asking(sent.used !== null);
  }
}

/** Asks below `/api/v1`; the JSON of the answer. Throws [`Refused`]. */
export async function ask(method, path, body, signal) {
  return exchange(method, path, body, signal, PATIENCE, json);
}

/** `ask` with GET. */
export const get = (path, signal) => ask("GET", path, undefined, signal);

/** Whether the credentials are good: a request that does not ask for others. Throws [`Refused`]. */
export async function tryCredentials() {
  const asking = signIn;
  signIn = null;
  try {
    await exchange("GET", "/ping", undefined, undefined, PATIENCE, json);
  } finally {
    signIn = asking;
  }
}

/**
 * Reads the changes of the table as they happen (`/api/v1/events`) until the connection ends; `opened` is called when it
 * stands, `heard` with each event. A fetch, because an EventSource cannot say who asks.
 */
export async function follow(opened, heard, signal) {
  await exchange("GET", "/events", undefined, signal, SILENCE, async (answer, limit) => {
    opened();
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let left = "";
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        throw unanswered(error);
      });
      if (done) return;
      limit.again();
      const blocks = (left + value).split("\n\n");
      left = blocks.pop();
      for (const block of blocks) {
        const data = block.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5)).join("\n");
        if (data) heard(JSON.parse(data));
      }
    }
  });
}
