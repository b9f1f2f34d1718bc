// Requests to the node, with the credentials of the user.

const STORAGE = "banmesh-authorization";
/** The longest wait for an answer, in milliseconds. */
const ANSWER_TIMEOUT = 15_000;
/** The longest pause in the event stream, in milliseconds. The node sends a comment at least every 15 s. */
const STREAM_TIMEOUT = 40_000;

/** A refused request, or a node that does not answer (`status` 0). */
export class Refused extends Error {
  constructor(status, body, wait = 0) {
    super(body.error || `the node answered ${status}`);
    this.status = status;
    this.hint = body.hint || "";
    this.code = body.code || "";
    /** With the code `banned_with_network`: the network whose ban covers the target. */
    this.bannedBy = body.banned_by || "";
    /** Seconds to wait before the next request. */
    this.wait = wait;
  }
}

let authorization = sessionStorage.getItem(STORAGE);
let signIn = null;

/** Sets the function that asks the user to sign in; it returns a promise. */
export function onUnauthenticated(ask) {
  let asking = null;
  // All refused requests wait for the same dialog.
  signIn = (wrong) => (asking ??= ask(wrong).finally(() => (asking = null)));
}

/** Sets the credentials for all further requests: a name and a password, or a token. */
export function authorize({ name, password, token }) {
  const utf8 = (text) => Array.from(new TextEncoder().encode(text), (byte) => String.fromCharCode(byte)).join("");
  authorization = token === undefined ? `Basic ${btoa(utf8(`${name}:${password}`))}` : `Bearer ${token}`;
  sessionStorage.setItem(STORAGE, authorization);
}

/** Deletes the credentials. */
export function signOut() {
  authorization = null;
  sessionStorage.removeItem(STORAGE);
}

export const signedIn = () => authorization !== null;

/** A signal that aborts with `signal`, or `wait` milliseconds after the last call of `again`. */
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

/** The error of a request without an answer. */
const unanswered = (error) =>
  error.name === "AbortError" ? error : new Refused(0, { error: "the node does not answer", hint: "check that it is running and that you can reach it" });

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

const json = (answer) =>
  answer.json().catch((error) => {
    throw error instanceof SyntaxError ? error : unanswered(error);
  });

/**
 * Sends a request, and sends it again after the user has signed in. Returns the result of `read`. No step may take longer
 * than `wait` milliseconds.
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
    // Skip the dialog if the user has signed in meanwhile.
    if (sent.used === authorization) await sent.asking(sent.used !== null);
  }
}

/** Sends a request to a path below `/api/v1` and returns the JSON of the answer. Throws `Refused`. */
export async function ask(method, path, body, signal) {
  return exchange(method, path, body, signal, ANSWER_TIMEOUT, json);
}

/** `ask` with GET. */
export const get = (path, signal) => ask("GET", path, undefined, signal);

/** Tests the credentials with a request that does not open the sign-in dialog. Throws `Refused`. */
export async function tryCredentials() {
  const asking = signIn;
  signIn = null;
  try {
    await exchange("GET", "/ping", undefined, undefined, ANSWER_TIMEOUT, json);
  } finally {
    signIn = asking;
  }
}

/**
 * Reads `/api/v1/events` until the connection ends. Calls `opened` when it is open, and `received` with each event. Uses
 * fetch, because an EventSource cannot send credentials.
 */
export async function follow(opened, received, signal) {
  await exchange("GET", "/events", undefined, signal, STREAM_TIMEOUT, async (answer, limit) => {
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
        if (data) received(JSON.parse(data));
      }
    }
  });
}
