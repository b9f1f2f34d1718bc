// A hundred thousand bans on a page.

import assert from "node:assert/strict";
import { test } from "node:test";
import { api, inBrowser, shows, until } from "./browser.mjs";

const { ONE } = process.env;
const ALL = 100_000;

test("a hundred thousand bans load and scroll", () =>
  inBrowser({}, async (open) => {
    const began = Date.now();
    const page = await open(`${ONE}/`);
    const rows = page.locator(".body .row");
    await rows.first().waitFor();
    const shown = Date.now() - began;
    const count = async () => page.locator("#count").textContent();
    // The number of rows that are elements does not depend on how many bans there are.
    const elements = async () => {
      const [all, among] = await page.evaluate(() => [document.querySelectorAll("*").length, document.querySelectorAll(".body .row").length]);
      assert.ok(among < 80 && all < 2500, `${among} rows, ${all} elements`);
    };
    await shows("100,000 bans", count);
    await elements();
    // To the end, as fast as it comes.
    await rows.first().focus();
    await until("all are here", async () => {
      await page.keyboard.press("End");
      await elements();
      return page.evaluate((height) => document.querySelector(".grid .body").scrollHeight === height, ALL * 44);
    });
    await page.keyboard.press("End");
    await shows(String(ALL + 1), () => page.evaluate(() => document.activeElement.getAttribute("aria-rowindex")));
    await shows(String(ALL + 1), () => page.locator("#grid").getAttribute("aria-rowcount"));
    await shows(ALL * 44, () => page.evaluate(() => document.querySelector(".grid .body").scrollHeight));
    await page.keyboard.press("Home");
    // In another order, and back.
    await page.locator(".head .address button").click();
    await page.locator('.body .row[aria-rowindex="2"][data-target="11.128.0.0"]').waitFor();
    await page.locator(".head .since button").click();
    // Anywhere, at once.
    await page.evaluate(() => (document.querySelector(".grid .body").scrollTop = 50_000 * 44));
    await until("rows of the middle are drawn", () => page.locator('.body .row[aria-rowindex="50003"]').count());
    await elements();
    // A change arrives at the top, and leaves.
    await page.evaluate(() => (document.querySelector(".grid .body").scrollTop = 0));
    await api(ONE, "POST", "/bans", { target: "192.0.2.77", duration: "1h" });
    await page.locator('.body .row[data-target="192.0.2.77"][aria-rowindex="2"]').waitFor();
    await api(ONE, "DELETE", "/bans/192.0.2.77");
    await page.locator('.body .row[data-target="192.0.2.77"]').waitFor({ state: "detached" });
    await page.fill("#search", "11.128.100.7");
    await shows("1 ban", count);
    await elements();
    const { longest } = await page.evaluate(() => window.seen);
    console.log(`first rows after ${shown} ms, all loaded and walked through after ${Date.now() - began} ms, longest task ${Math.round(longest)} ms`);
  }));
