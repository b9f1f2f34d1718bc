// The page of a node to which a HAProxy has sent two tables: `req` with addresses, and `tokens` with texts that a client chose.

import assert from "node:assert/strict";
import { test } from "node:test";
import { inBrowser, shows } from "./browser.mjs";

const { ONE } = process.env;

test("shows the heaviest keys of the table that is chosen", () =>
  inBrowser({}, async (open) => {
    const page = await open(`${ONE}/`);
    const keys = page.locator("#tables-body .item");
    await keys.first().waitFor();
    await shows(["req", "tokens"], () => page.locator("#tables-name option").allTextContents());
    await shows(["192.0.2.2", "192.0.2.1"], () => keys.locator(".name").allTextContents());
    await shows(["gpc0 3,000", "gpc0 7"], () => keys.locator(".facts").allTextContents());
    await shows(["1 HAProxy", "1 HAProxy"], () => keys.locator(".value").allTextContents());
    await keys.getByText("192.0.2.2").click();
    await shows("192.0.2.2", () => page.inputValue("#search"));
    await page.selectOption("#tables-name", "tokens");
    await shows(["<img src=x onerror=alert(1)>"], () => keys.locator(".name").allTextContents());
    assert.equal(await keys.locator("img, button").count(), 0, "a key is text, and no address to search for");
  }));
