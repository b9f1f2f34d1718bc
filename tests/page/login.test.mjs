// The page of a node that requires authentication.

import assert from "node:assert/strict";
import { test } from "node:test";
import { inBrowser, shows } from "./browser.mjs";

const { ONE } = process.env;

test("the page asks for credentials and keeps them until the tab is closed", () =>
  inBrowser({}, async (open, context) => {
    const challenges = [];
    context.on("response", (response) => {
      if (response.headers()["www-authenticate"]) challenges.push(response.url());
    });
    const page = await open(`${ONE}/`);
    const form = page.locator("#login[open]");
    await form.waitFor();
    await shows("login-name", () => page.evaluate(() => document.activeElement.id));
    assert.equal(await page.locator(".body .row").count(), 0);
    // It cannot be put away.
    await page.keyboard.press("Escape");
    assert.ok(await form.isVisible());
    await page.fill("#login-name", "ann");
    await page.fill("#login-password", "wrong");
    await page.keyboard.press("Enter");
    await page.locator("#login-wrong", { hasText: "wrong name or password" }).waitFor();
    await page.check("#login [value=token]");
    await page.fill("#login-token", "wrong as well");
    await page.click("#login [type=submit]");
    await page.locator("#login-wrong", { hasText: "invalid token" }).waitFor();
    await page.check("#login [value=password]");
    await page.fill("#login-password", "sécret: 1");
    await page.keyboard.press("Enter");
    await form.waitFor({ state: "hidden" });
    await page.locator(".body .row").first().waitFor();
    await page.locator("#live.good").waitFor();
    await shows("", () => page.inputValue("#login-password"));
    await page.click("#open-ban");
    await page.fill("#ban-target", "192.0.2.5");
    await page.click("#ban [type=submit]");
    // Who banned is who signed in.
    await shows(["ann"], () => page.locator('[data-target="192.0.2.5"] .by').allTextContents());

    await page.reload();
    await page.locator(".body .row").first().waitFor();
    assert.equal(await form.count(), 0, "a reload keeps the credentials");
    assert.equal(await page.evaluate(() => JSON.stringify(localStorage) + document.cookie), "{}");
    await page.click("#sign-out");
    await form.waitFor();
    assert.equal(await page.evaluate(() => sessionStorage.length), 0);
    assert.deepEqual(challenges, [], "the browser's own question would come before the page's");
  }));
