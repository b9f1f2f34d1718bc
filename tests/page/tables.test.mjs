// The page of a node to which a HAProxy has sent two tables: `req` with addresses, and `tokens` with texts that a client chose.

import assert from "node:assert/strict";
import { test } from "node:test";
import { inBrowser, until } from "./browser.mjs";

const { ONE } = process.env;

test("shows the heaviest keys of the table that is chosen", () =>
  inBrowser({}, async (open) => {
    const page = await open(`${ONE}/`);
    const keys = page.locator("#tables-body .item");
    await keys.first().waitFor();
    assert.deepEqual(await page.locator("#tables-name option").allTextContents(), ["req", "tokens"]);
    assert.deepEqual(await keys.locator(".name").allTextContents(), ["192.0.2.2", "192.0.2.1"]);
    assert.deepEqual(await keys.locator(".facts").allTextContents(), ["gpc0 3,000", "gpc0 7"]);
    assert.deepEqual(await keys.locator(".value").allTextContents(), ["1 HAProxy", "1 HAProxy"]);
    await keys.getByText("192.0.2.2").click();
    assert.equal(await page.inputValue("#search"), "192.0.2.2");
    await page.selectOption("#tables-name", "tokens");
    await until("the other table is shown", async () => (await keys.locator(".name").allTextContents()).join() === "<img src=x onerror=alert(1)>");
    assert.equal(await keys.locator("img, button").count(), 0, "a key is text, and no address to search for");
  }));
