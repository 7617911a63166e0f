// The stream: one a browser, none while hidden, resumed or mended after a break, and a page that says when it is cut off.
import assert from "node:assert/strict";
import { test } from "node:test";
import { cycle, mockOnly, openFleet, served, setUp, setVisible, steer, withPage } from "./harness.mjs";

const at = setUp({ vms: 24 });
/** What Chromium says of a server that is gone. */
const GONE = /ERR_|Failed to load resource/;
const streams = (n) => served(at, `${n} streams`, (counts) => counts.streams === n);
const HISTORY = /\/api\/fleet\/history\?/;
const noSharedWorker = () => delete window.SharedWorker;

for (const [way, prepare] of [["a shared worker", undefined], ["a leader", noSharedWorker]]) {
  test(`10 tabs have one stream, by ${way}`, mockOnly, () =>
    withPage(at, { prepare }, async (first, open) => {
      const pages = [first];
      for (let i = 1; i < 10; i += 1) pages.push(await open());
      await Promise.all(pages.map((page) => openFleet(at, page)));
      await streams(1);
      await cycle(at, pages);
      // Whichever of them holds it: the others go on when it goes.
      for (const page of pages.splice(0, 8)) await page.close();
      await cycle(at, pages);
      await streams(1);
    }));

  test(`a hidden tab gives its stream up and catches up when it is shown, by ${way}`, mockOnly, () =>
    withPage(at, { prepare }, async (page, open) => {
      const other = await open();
      await openFleet(at, page);
      await openFleet(at, other);
      await streams(1);
      await setVisible(page, false);
      // The other one is still seen.
      await cycle(at, [other]);
      await streams(1);
      await setVisible(other, false);
      await streams(0);
      await steer(at, "push?n=12");
      const history = page.waitForRequest(HISTORY);
      await setVisible(page, true);
      await cycle(at, [page]);
      await history;
      await streams(1);
    }));
}

test("a broken connection is told, values stay and look old, and the stream comes back", mockOnly, () =>
  withPage(at, { expected: GONE }, async (page) => {
    await openFleet(at, page);
    await cycle(at, [page]);
    await steer(at, "down?on=1");
    await page.getByText(/Not connected since \d\d:\d\d:\d\d/).waitFor();
    assert.ok(await page.locator(".frame.stale").isVisible());
    assert.ok((await page.locator(".vms tbody th.name a").count()) > 0);
    assert.match(await page.getByRole("status").textContent(), /connection to the server is lost/);
    await steer(at, "down?on=0");
    await page.locator(".lost").waitFor({ state: "detached" });
    await cycle(at, [page]);
  }));

test("a server without new values says so in its own words, once, until the next cycle", mockOnly, () =>
  withPage(at, {}, async (page, open) => {
    await openFleet(at, page);
    await cycle(at, [page]);
    await page.evaluate(() => {
      globalThis.announced = [];
      const status = document.querySelector("[role=status]");
      new MutationObserver(() => globalThis.announced.push(status.textContent)).observe(status, { characterData: true, childList: true, subtree: true });
    });
    await steer(at, "trouble?on=1");
    const bar = page.locator(".troubled");
    await bar.waitFor();
    assert.match(await bar.textContent(), /No new values since \d\d:\d\d:\d\d: InfluxDB at .* does not answer: <b>connection refused<\/b>$/);
    assert.ok(await page.locator(".frame.stale").isVisible());
    assert.ok((await page.locator(".vms tbody th.name a").count()) > 0);
    await page.locator(".link", { hasText: "no new values" }).waitFor();
    assert.equal(await page.locator(".lost").count(), 0, "the connection is up");
    // Who joins late hears the trouble as it stands; each cycle tells it again.
    const late = await open();
    await openFleet(at, late);
    await late.locator(".troubled").waitFor();
    await steer(at, "push?n=3");
    await steer(at, "trouble?on=0");
    await cycle(at, [page, late]);
    await bar.waitFor({ state: "detached" });
    await late.locator(".troubled").waitFor({ state: "detached" });
    assert.equal(await page.locator(".frame.stale").count(), 0);
    const announced = await page.evaluate(() => globalThis.announced);
    assert.equal(announced.length, 1, announced.join("\n"));
    assert.match(announced[0], /No new values since/);
  }));

test("Last-Event-ID is sent after a break", mockOnly, () =>
  withPage(at, { expected: GONE }, async (page) => {
    await openFleet(at, page);
    // By the stream, not by the question that stands in for it: an id was heard.
    await cycle(at, [page]);
    const { resumed } = at.mock.counts;
    await steer(at, "cut");
    await served(at, "resumed", (counts) => counts.resumed > resumed);
    await cycle(at, [page]);
  }));

test("a hole is filled from history, also one that is told while history is awaited", mockOnly, () =>
  withPage(at, {}, async (page) => {
    let asked = 0;
    let release;
    const held = new Promise((resolve) => (release = resolve));
    await page.route(HISTORY, async (route) => {
      asked += 1;
      const response = await route.fetch();
      if (asked === 1) await held;
      await route.fulfill({ response });
    });
    await openFleet(at, page);
    await steer(at, "hole");
    await steer(at, "hole");
    // The holes were heard, for they came before it.
    await cycle(at, [page]);
    assert.equal(asked, 1);

    let history = page.waitForResponse(HISTORY);
    release();
    await history;
    await (await page.waitForResponse(HISTORY)).finished();
    await cycle(at, [page]);
    assert.equal(asked, 2, "both holes by one answer");

    history = page.waitForResponse(HISTORY);
    await steer(at, "hole");
    await history;
  }));

test("a server that is not there at all says what to try, and the page comes by itself", mockOnly, () =>
  withPage(at, { expected: GONE }, async (page) => {
    // The page is loaded; its data are what fails.
    await page.route("**/api/**", (route) => route.abort());
    await page.goto(new URL("collector", at.url).href);
    await page.getByText("the server cannot be reached").waitFor();
    await page.unroute("**/api/**");
    await page.getByRole("heading", { name: "Hypervisors" }).waitFor();
  }));
