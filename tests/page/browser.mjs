// A real Chromium with a profile of its own, and what must never happen on the page: errors, and breaches of its policy.

import assert from "node:assert/strict";
import { after } from "node:test";
import { isDeepStrictEqual } from "node:util";
import { chromium } from "playwright-core";

/** What is waited for comes within this, also on a machine that is busy; in milliseconds. */
export const SOON = 30_000;

const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--disable-dev-shm-usage",
  "--no-proxy-server",
];

// One for all tests of a file, with a profile that is new and goes with it.
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: FLAGS });
after(() => browser.close());

/** Runs `act` with a function that opens pages of a new profile. Fails when a page logged an error. */
export async function inBrowser(options, act) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 860 }, ...options });
  context.setDefaultTimeout(SOON);
  const { TOKEN } = process.env;
  if (TOKEN) await context.addInitScript((token) => sessionStorage.setItem("banmesh-authorization", `Bearer ${token}`), TOKEN);
  const wrong = [];
  // Breaches of the policy, and tasks that keep the page from answering.
  await context.addInitScript(() => {
    window.seen = { breaches: [], longest: 0 };
    document.addEventListener("securitypolicyviolation", (event) => window.seen.breaches.push(`${event.violatedDirective} ${event.blockedURI}`));
    new PerformanceObserver((list) => {
      for (const task of list.getEntries()) window.seen.longest = Math.max(window.seen.longest, task.duration);
    }).observe({ type: "longtask", buffered: true });
  });
  const hosts = new Set();
  const open = async (url) => {
    const page = await context.newPage();
    page.on("console", (message) => {
      // The browser itself logs every answer of 4xx; those are the API's, and tests ask for them on purpose.
      const asked = message.text().startsWith("Failed to load resource") && message.location().url.includes("/api/");
      if (message.type() === "error" && !asked) wrong.push(`${message.text()} (${message.location().url})`);
    });
    page.on("pageerror", (error) => wrong.push(String(error.stack ?? error)));
    page.on("request", (request) => hosts.add(new URL(request.url()).host));
    hosts.add(new URL(url).host);
    await page.goto(url);
    return page;
  };
  try {
    await act(open, context);
    for (const page of context.pages()) {
      const seen = await page.evaluate(() => window.seen?.breaches ?? []);
      assert.deepEqual(seen, [], "the page keeps to its policy");
    }
    assert.deepEqual(wrong, [], "the page logs no errors");
    for (const host of hosts) assert.match(host, /^(127\.0\.0\.1(:\d+)?)?$/, "the page asks its node only");
  } finally {
    await context.close();
  }
}

/** Waits until `check` gives something true. */
export async function until(what, check) {
  const end = Date.now() + SOON;
  for (;;) {
    const found = await check();
    if (found) return found;
    assert.ok(Date.now() < end, `waited in vain: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** Waits until `look` gives `wanted`, because a page draws after the event that changed it. Fails with what it gave last. */
export async function shows(wanted, look) {
  const end = Date.now() + SOON;
  for (;;) {
    const found = await look();
    if (isDeepStrictEqual(found, wanted)) return;
    if (Date.now() >= end) assert.deepEqual(found, wanted);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** The headers of a request to the API. */
export const headers = { "Content-Type": "application/json", ...(process.env.TOKEN ? { Authorization: `Bearer ${process.env.TOKEN}` } : {}) };

/** Asks a node's API directly. */
export async function api(base, method, path, body) {
  const answer = await fetch(`${base}/api/v1${path}`, {
    method,
    headers,
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  assert.ok(answer.ok, `${method} ${path}: ${answer.status} ${await answer.clone().text()}`);
  return answer.json();
}
