// One VM's page: ranges, zoom, pan, back, live, cursor, gaps, devices, SQL and CSV.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { checkAccessible, cycle, mockOnly, openVm, served, setUp, someVm, steer, until, withPage } from "./harness.mjs";

const at = setUp({ vms: 24 });
const span = (page) => page.evaluate(() => Object.fromEntries(new URLSearchParams(location.search)));
const isVm = (request) => request.url().includes("/api/vm/");

const loaded = (page) => page.locator(".note", { hasText: "loading" }).waitFor({ state: "detached" });

async function drag(page, from, to, modifier) {
  const box = await page.locator(".chart .u-over").first().boundingBox();
  const y = box.y + box.height / 2;
  if (modifier) await page.keyboard.down(modifier);
  await page.mouse.move(box.x + box.width * from, y);
  await page.mouse.down();
  await page.mouse.move(box.x + (box.width * (from + to)) / 2, y, { steps: 3 });
  await page.mouse.move(box.x + box.width * to, y, { steps: 3 });
  await page.mouse.up();
  if (modifier) await page.keyboard.up(modifier);
}

test("drag zooms, asks anew, and is a URL; double-click and the back button go back", () =>
  withPage(at, {}, async (page) => {
    const { uuid } = await someVm(at, 1);
    await openVm(at, page, uuid);
    const asked = page.waitForRequest((request) => isVm(request) && !request.url().includes("step="));
    await drag(page, 0.25, 0.75);
    await page.waitForURL(/from=\d+&to=\d+/);
    const first = await span(page);
    const width = (Number(first.to) - Number(first.from)) / 60_000;
    assert.ok(width > 28 && width < 32, `half of an hour, not ${width} min`);
    assert.ok((await asked).url().includes(`from=${first.from}`));
    // The answer has readings where there were buckets: the charts are made anew.
    await loaded(page);
    await drag(page, 0.2, 0.6);
    await page.waitForURL((url) => url.searchParams.get("from") !== first.from);
    await loaded(page);
    await page.locator(".chart .u-over").first().dblclick();
    await page.waitForURL((url) => url.searchParams.get("from") === first.from);
    await page.goBack();
    await page.waitForURL((url) => !url.searchParams.has("from"));
    await page.goForward();
    await page.waitForURL((url) => url.searchParams.get("from") === first.from);
  }));

test("shift-drag pans by what was dragged", () =>
  withPage(at, {}, async (page) => {
    const { uuid } = await someVm(at, 1);
    const to = Math.floor((await now()) - 600_000);
    const from = to - 3_600_000;
    await openVm(at, page, uuid, `?from=${from}&to=${to}`);
    await drag(page, 0.25, 0.5, "Shift");
    await page.waitForURL((url) => Number(url.searchParams.get("from")) !== from);
    const moved = await span(page);
    const earlier = (from - Number(moved.from)) / 60_000;
    assert.ok(earlier > 14 && earlier < 16, `a quarter of an hour, not ${earlier} min`);
    assert.equal(Number(moved.to) - Number(moved.from), 3_600_000);
  }));

test("a deep link shows its range; double-click leads to the usual one where there is no way back", () =>
  withPage(at, {}, async (page) => {
    const { uuid } = await someVm(at, 1);
    const to = Math.floor((await now()) - 600_000);
    const asked = page.waitForRequest(isVm);
    await openVm(at, page, uuid, `?from=${to - 600_000}&to=${to}`);
    assert.match((await asked).url(), new RegExp(`from=${to - 600_000}&to=${to}`));
    assert.equal(await page.getByRole("button", { name: "Live" }).getAttribute("aria-pressed"), "false");
    await page.locator(".chart .u-over").first().dblclick();
    await page.waitForURL((url) => !url.searchParams.has("from"));
  }));

test("the range picker, its keys, live on and off, earlier and wider", () =>
  withPage(at, {}, async (page) => {
    const { uuid } = await someVm(at, 0);
    await openVm(at, page, uuid);
    for (const [name, range] of [["15m", "15m"], ["24h", "24h"], ["400d", "400d"]]) {
      await page.getByRole("link", { name, exact: true }).click();
      await page.waitForURL(new RegExp(`range=${range}`));
      await loaded(page);
    }
    await page.keyboard.press("3");
    await page.waitForURL(/range=6h/);
    await page.keyboard.press("l");
    await page.waitForURL(/from=/);
    await page.keyboard.press("ArrowLeft");
    await page.keyboard.press("-");
    await until(page, "twice as wide", async () => {
      const { from, to } = await span(page);
      return Math.abs(to - from - 12 * 3_600_000) < 5;
    });
    await page.getByRole("button", { name: "Live" }).click();
    await page.waitForURL(/range=6h|range=24h/);
  }));

test("two moments can be given in the person's own zone", () =>
  withPage(at, { timezoneId: "Asia/Kolkata" }, async (page) => {
    const { uuid } = await someVm(at, 0);
    await openVm(at, page, uuid);
    await page.locator(".rangebar .span").click();
    await page.getByLabel("From", { exact: true }).fill("2026-11-30T12:00:00");
    await page.getByLabel("To", { exact: true }).fill("2026-11-30T11:00:00");
    await page.getByText("the end must be after the beginning").waitFor();
    await page.getByLabel("To", { exact: true }).fill("2026-11-30T13:00:00");
    await page.getByRole("button", { name: "Show" }).click();
    await page.waitForURL(/from=/);
    assert.equal(Number((await span(page)).from), Date.UTC(2026, 10, 30, 6, 30));
    await page.locator(".note", { hasText: "Asia/Calcutta" }).or(page.locator(".note", { hasText: "Asia/Kolkata" })).first().waitFor();
  }));

test("the cursor is shared, and the legends tell its values in units", () =>
  withPage(at, { height: 1600 }, async (page) => {
    const { uuid } = await someVm(at, 1);
    await openVm(at, page, uuid);
    const box = await page.locator("#panel-cpu .u-over").boundingBox();
    await page.mouse.move(box.x + box.width * 0.3, box.y + 40);
    const time = (id) => page.locator(`#panel-${id} figcaption time`).textContent();
    await until(page, "both charts tell the time", async () => (await time("cpu")) !== "" && (await time("memory")) !== "");
    assert.match(await time("cpu"), /^\d\d:\d\d:\d\d$/);
    assert.match(await page.locator("#panel-cpu .legend b").first().textContent(), /%/);
    assert.match(await page.locator("#panel-memory .legend b").first().textContent(), /[KMG]iB/);
    await page.mouse.move(5, 5);
    await until(page, "the cursor left", async () => (await time("cpu")) === "");
  }));

test("the arrow keys move the cursor of a chart", () =>
  withPage(at, {}, async (page) => {
    const { uuid } = await someVm(at, 0);
    await openVm(at, page, uuid);
    await page.locator("#panel-cpu .chart").focus();
    await page.keyboard.press("ArrowLeft");
    const time = page.locator("#panel-cpu figcaption time");
    await until(page, "a time", async () => (await time.textContent()) !== "");
    const first = await time.textContent();
    await page.keyboard.press("ArrowLeft");
    await until(page, "another time", async () => (await time.textContent()) !== first);
    assert.doesNotMatch(page.url(), /from=/, "the page's own arrow keys are not meant");
  }));

test("a gap is a gap: nothing is drawn across it", mockOnly, () =>
  withPage(at, { expected: /willReadFrequently/ }, async (page) => {
    const { uuid } = await someVm(at, 1);
    const { start } = at.mock.world;
    const [from, to] = [start - 1_200_000, start];
    await openVm(at, page, uuid, `?from=${from}&to=${to}`);
    await loaded(page);
    // Of 20 minutes the gap lies from 11 to 9 before the end.
    const coloured = await page.evaluate(() => {
      const canvas = document.querySelector("#panel-cpu canvas");
      const over = document.querySelector("#panel-cpu .u-over").getBoundingClientRect();
      const ratio = canvas.width / canvas.getBoundingClientRect().width;
      const left = (over.left - canvas.getBoundingClientRect().left) * ratio;
      const colour = getComputedStyle(document.documentElement).getPropertyValue("--series-1").trim();
      const wanted = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
      return [0.3, 0.5, 0.7].map((part) => {
        const x = Math.round(left + over.width * ratio * part);
        const { data } = canvas.getContext("2d").getImageData(x, 0, 1, canvas.height);
        for (let i = 0; i < data.length; i += 4) if (wanted.every((value, c) => Math.abs(value - data[i + c]) < 40)) return true;
        return false;
      });
    });
    assert.deepEqual(coloured, [true, false, true]);
  }));

test("events are marks and a list; what moved says since when", mockOnly, () =>
  withPage(at, {}, async (page) => {
    const { uuid } = await someVm(at, 1);
    await openVm(at, page, uuid);
    await page.locator(".events li", { hasText: "io error" }).waitFor();
    // Which of them moved most is the hour's; that the CPU moved is not.
    await page.locator(".moves li", { hasText: "CPU:" }).first().getByRole("link").click();
    await page.waitForURL(/from=/);
    const { from, to } = await span(page);
    const trouble = at.mock.world.trouble;
    assert.ok(Number(from) < trouble && trouble < Number(to));
  }));

test("a renamed VM is one history, under its newest name", mockOnly, () =>
  withPage(at, {}, async (page) => {
    await openVm(at, page, (await someVm(at, 4)).uuid);
    await page.getByRole("heading", { level: 1, name: "mail-01" }).waitFor();
    await page.getByText("was called mail-old").waitFor();
    await page.locator(".events li", { hasText: "renamed" }).waitFor();
  }));

/** The page's steady clock stands still until the test sets it ahead. */
function still() {
  const start = performance.now();
  globalThis.ahead = 0;
  performance.now = () => start + globalThis.ahead;
}

test("a live page asks for its newest piece only, at its own pace", mockOnly, () =>
  withPage(at, { prepare: still }, async (page) => {
    const asked = [];
    page.on("request", (request) => isVm(request) && asked.push(request.url()));
    await openVm(at, page, (await someVm(at, 0)).uuid, "?range=6h");
    await loaded(page);
    const shown = page.locator(".rangebar .span");
    const before = await shown.textContent();
    await cycle(at, [page]);
    await page.evaluate(() => (globalThis.ahead = 60_000));
    await cycle(at, [page]);
    await until(page, "the piece is shown", async () => (await shown.textContent()) !== before);
    // Cycles come faster than the page asks.
    await cycle(at, [page]);
    await cycle(at, [page]);
    assert.deepEqual(asked.map((url) => url.includes("step=")), [false, true]);
  }));

test("30 devices: folded, drawn only when unfolded and in sight", mockOnly, () =>
  withPage(at, {}, async (page) => {
    await openVm(at, page, (await someVm(at, 6)).uuid);
    await page.locator(".device").nth(29).waitFor({ state: "attached" });
    const drawn = () => page.locator(".u-over").count();
    const before = await drawn();
    assert.ok(before <= 12, `${before} charts`);
    await page.locator(".device summary").first().click();
    await page.locator(".device").first().locator(".u-over").first().waitFor();
    assert.ok((await drawn()) < 20);
  }));

test("the SQL can be copied, the data saved", () =>
  withPage(at, { permissions: ["clipboard-read", "clipboard-write"], acceptDownloads: true }, async (page) => {
    await openVm(at, page, (await someVm(at, 0)).uuid);
    await page.getByRole("button", { name: "SQL of CPU" }).click();
    await page.getByRole("button", { name: "Copy SQL" }).click();
    await page.getByText("Copied").waitFor();
    assert.match(await page.evaluate(() => navigator.clipboard.readText()), /^(SELECT|WITH)/);
    await page.keyboard.press("Escape");
    const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: "Save CPU as CSV" }).click()]);
    const lines = readFileSync(await download.path(), "utf8").split("\r\n");
    assert.match(lines[0], /^time,user \(percent\)/);
    assert.match(lines[1], /^\d{4}-\d\d-\d\dT/);
    assert.ok(lines.length > 100);
  }));

test("a series can be hidden", () =>
  withPage(at, {}, async (page) => {
    await openVm(at, page, (await someVm(at, 0)).uuid);
    const button = page.locator("#panel-cpu .legend button").first();
    await button.click();
    assert.equal(await button.getAttribute("aria-pressed"), "false");
  }));

test("a long range tells how far its answer is; another range gives it up; what fails can be tried again", mockOnly, async (t) => {
  const { serve } = await import("../mock/server.mjs");
  const slow = await serve({ pace: 0, vms: 5, parts: 15 });
  t.after(() => slow.close());
  const own = { ...at, url: slow.url, mock: slow };
  await withPage(own, {}, async (page) => {
    const begun = (n) => served(own, `${n} answers in parts`, (counts) => counts.inParts === n);
    const note = (text) => page.locator(".rangebar .note", { hasText: text }).waitFor();
    await openVm(own, page, (await someVm(own, 0)).uuid);
    await page.getByRole("link", { name: "7d" }).click();
    await note("loading: 0 of 15 parts");
    await steer(own, "parts?n=3");
    await note("loading: 3 of 15 parts");
    assert.equal(await page.locator(".rangebar progress").evaluate((bar) => bar.position), 0.2);
    await checkAccessible(page, "a long range");

    await page.getByRole("link", { name: "30d" }).click();
    await served(own, "the first is given up", (counts) => counts.givenUp === 1);
    await begun(2);
    await note("loading: 0 of 15 parts");
    await steer(own, "parts-fail?error=part+4:+<b>no+answer</b>");
    await page.locator(".failed", { hasText: "part 4: <b>no answer</b>" }).waitFor();
    assert.equal(await page.locator("progress").count(), 0);

    await page.getByRole("button", { name: "Try again" }).click();
    await begun(3);
    await steer(own, "parts?n=14");
    await note("loading: 14 of 15 parts");
    await steer(own, "parts-break");
    await page.locator(".failed", { hasText: "the answer broke off" }).waitFor();

    await page.getByRole("button", { name: "Try again" }).click();
    await begun(4);
    await steer(own, "parts?n=15");
    await loaded(page);
    await page.locator(".note", { hasText: "A point is" }).waitFor();
    assert.equal(await page.locator(".failed").count(), 0);

    // The first one of a page has nothing else to show.
    await page.reload();
    await page.locator(".loading", { hasText: "Loading: 0 of 15 parts" }).waitFor();
    await steer(own, "parts?n=15");
    await page.locator(".chart .u-over").first().waitFor();
  });
});

test("an unknown VM says what to do", () =>
  withPage(at, { expected: /404/ }, async (page) => {
    await page.goto(new URL("vm/00000000-0000-4000-8000-000000000000", at.url).href);
    await page.getByRole("heading", { name: "This VM is not known" }).waitFor();
    await page.getByRole("link", { name: "See the VMs that are" }).click();
    await page.locator(".vms").waitFor();
  }));

async function now() {
  return at.mock === null ? Date.now() : at.mock.world.now;
}
