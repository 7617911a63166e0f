// The stream: one a browser, none while hidden, resumed or mended after a break, and a page that says when it is cut off.
import assert from "node:assert/strict";
import { test } from "node:test";
import { mockOnly, openFleet, setUp, setVisible, steer, until, withPage } from "./harness.mjs";

const at = setUp({ vms: 24 });
/** What Chromium says of a server that is gone. */
const GONE = /ERR_|Failed to load resource/;
const streams = async () => (await steer(at)).streams;
const clock = (page) => page.locator(".link time").textContent();
const noSharedWorker = () => delete window.SharedWorker;

/** The next cycle is seen on each of the pages. */
async function seen(pages) {
  const before = await Promise.all(pages.map(clock));
  await steer(at, "push");
  await Promise.all(pages.map((page, i) => until("a new time", async () => (await clock(page)) !== before[i])));
}

for (const [way, prepare] of [["a shared worker", undefined], ["a leader", noSharedWorker]]) {
  test(`10 tabs have one stream, by ${way}`, mockOnly, () =>
    withPage(at, { prepare }, async (first, open) => {
      const pages = [first];
      for (let i = 1; i < 10; i += 1) pages.push(await open());
      await Promise.all(pages.map((page) => openFleet(at, page)));
      await until("one stream", async () => (await streams()) === 1);
      await seen(pages);
      assert.equal(await streams(), 1);
      // Whichever of them holds it: the others go on when it goes.
      for (const page of pages.splice(0, 8)) await page.close();
      await until("one stream", async () => (await streams()) === 1);
      await seen(pages);
    }));

  test(`a hidden tab gives its stream up and catches up when it is shown, by ${way}`, mockOnly, () =>
    withPage(at, { prepare }, async (page, open) => {
      const other = await open();
      await openFleet(at, page);
      await openFleet(at, other);
      await setVisible(page, false);
      await seen([other]);
      assert.equal(await streams(), 1, "the other tab is still seen");
      await setVisible(other, false);
      await until("no stream", async () => (await streams()) === 0);
      const { requests } = await steer(at, "push?n=12");
      const histories = requests["fleet/history"];
      const before = await clock(page);
      await setVisible(page, true);
      await until("it caught up", async () => (await clock(page)) !== before);
      await until("and filled the hole", async () => (await steer(at)).requests["fleet/history"] > histories);
      assert.equal(await streams(), 1);
    }));
}

test("a broken connection is told, values stay and look old, and the stream resumes", mockOnly, () =>
  withPage(at, { expected: GONE }, async (page) => {
    await openFleet(at, page);
    await until("one stream", async () => (await streams()) === 1);
    const { resumed } = await steer(at);
    await steer(at, "down?on=1");
    await page.getByText(/Not connected since \d\d:\d\d:\d\d/).waitFor();
    assert.ok(await page.locator(".frame.stale").isVisible());
    assert.ok((await page.locator(".vms tbody th.name a").count()) > 0);
    assert.match(await page.getByRole("status").textContent(), /connection to the server is lost/);
    await steer(at, "down?on=0");
    await page.locator(".lost").waitFor({ state: "detached" });
    await seen([page]);
    // EventSource resumes by itself, unless a try of its own was refused meanwhile and ours was the one that came through.
    assert.ok((await steer(at)).resumed >= resumed);
  }));

test("Last-Event-ID is sent after a break", mockOnly, () =>
  withPage(at, { expected: GONE }, async (page) => {
    await openFleet(at, page);
    const { resumed } = await steer(at);
    await steer(at, "cut");
    await until("resumed", async () => (await steer(at)).resumed > resumed);
    await seen([page]);
  }));

test("a hole is filled from history", mockOnly, () =>
  withPage(at, {}, async (page) => {
    await openFleet(at, page);
    await until("history came", async () => (await steer(at)).requests["fleet/history"] > 0);
    const before = (await steer(at)).requests["fleet/history"];
    await steer(at, "hole");
    await until("history again", async () => (await steer(at)).requests["fleet/history"] > before);
  }));

test("a server that is not there at all says what to try, and the page comes by itself", mockOnly, () =>
  withPage(at, { expected: GONE }, async (page) => {
    await openFleet(at, page);
    // The page is loaded; its stream and data are what fails.
    await page.route("**/api/**", (route) => route.abort());
    await page.goto(new URL("collector", at.url).href);
    await page.getByText("the server cannot be reached").waitFor();
    await page.unroute("**/api/**");
    await steer(at, "push");
    await page.getByRole("heading", { name: "Hypervisors" }).waitFor();
  }));
