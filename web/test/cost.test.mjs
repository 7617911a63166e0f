// What the pages cost, measured and printed: the script time of an update with 1,000 VMs, scrolling, the time until the first page is
// there, and the heap over a day of cycles. Times are told and never fail: they are the machine's, too.
import assert from "node:assert/strict";
import { test } from "node:test";
import { cycle, mockOnly, openFleet, openVm, setUp, someVm, until, withPage } from "./harness.mjs";

const at = setUp({ vms: 1000 });
const UPDATES = 60;
/** A day of cycles of 5 s. */
const DAY = 17_280;
/** Cycles a push: the page draws at least once for each push. */
const BATCH = 120;
/** A heap that breathes this much is flat. */
const FLAT_BYTES = 3 * 1024 * 1024;

/** Collects the page's own measures of an update: from the event's arrival in the tab to the end of its drawing. */
function collect() {
  globalThis.updates = [];
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) if (entry.name === "fleet-update") globalThis.updates.push(entry.duration);
  }).observe({ type: "measure" });
}

async function metric(client, name) {
  const { metrics } = await client.send("Performance.getMetrics");
  return metrics.find((one) => one.name === name).value;
}

function spread(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const part = (p) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * p))];
  return { median: part(0.5), p95: part(0.95), most: sorted.at(-1) };
}
const ms = (value) => `${value.toFixed(1)} ms`;

test("1,000 VMs: every cycle is drawn", mockOnly, (t) =>
  withPage(at, { prepare: collect }, async (page, _, context) => {
    await openFleet(at, page);
    const client = await context.newCDPSession(page);
    await client.send("Performance.enable");
    // The first updates compile.
    for (let i = 0; i < 10; i += 1) await cycle(at, [page]);
    const updates = (n) => until(page, `${n} updates are measured`, async () => {
      const all = await page.evaluate(() => globalThis.updates);
      return all.length >= n && all;
    });
    // The first of all, and these.
    await updates(11);
    for (let i = 0; i < UPDATES; i += 1) await cycle(at, [page]);
    const values = (await updates(11 + UPDATES)).slice(-UPDATES);
    const { median, p95, most } = spread(values);
    t.diagnostic(`update of 1,000 VMs (parse, order, totals, draw): median ${ms(median)}, p95 ${ms(p95)}, most ${ms(most)} of ${values.length}`);
  }));

test("1,000 VMs: scrolling through all of them", mockOnly, (t) =>
  withPage(at, {}, async (page, _, context) => {
    await openFleet(at, page);
    const client = await context.newCDPSession(page);
    await client.send("Performance.enable");
    const before = await metric(client, "ScriptDuration");
    const frames = await page.evaluate(async () => {
      const box = document.querySelector(".vms");
      const times = [];
      let last = await new Promise(requestAnimationFrame);
      for (let top = 0; top < box.scrollHeight; top += 140) {
        box.scrollTop = top;
        const now = await new Promise(requestAnimationFrame);
        times.push(now - last);
        last = now;
      }
      return times;
    });
    const script = ((await metric(client, "ScriptDuration")) - before) * 1000;
    const { median, p95 } = spread(frames);
    t.diagnostic(`scrolling 1,000 rows in ${frames.length} steps: ${ms(script / frames.length)} of script a step; frames: median ${ms(median)}, p95 ${ms(p95)}`);
    assert.ok(frames.length > 100);
  }));

test("the first page", mockOnly, (t) =>
  withPage(at, {}, async (page) => {
    await openFleet(at, page);
    const rows = await page.evaluate(() => performance.now());
    // The browser tells it some time after the paint.
    const paint = await page.evaluate(() => new Promise((resolve) => {
      new PerformanceObserver((list, observer) => {
        for (const entry of list.getEntriesByName("first-contentful-paint")) {
          observer.disconnect();
          resolve(entry.startTime);
        }
      }).observe({ type: "paint", buffered: true });
    }));
    t.diagnostic(`first contentful paint ${ms(paint)} after the navigation; rows of 1,000 VMs before ${ms(rows)}`);
  }));

test("a VM's 24 hours, all panels", mockOnly, (t) =>
  withPage(at, { height: 2000 }, async (page, _, context) => {
    const vm = await someVm(at, 0);
    await openVm(at, page, vm.uuid);
    const client = await context.newCDPSession(page);
    await client.send("Performance.enable");
    const before = await metric(client, "ScriptDuration");
    const started = performance.now();
    const answer = page.waitForResponse((response) => response.url().includes("/api/vm/"));
    await page.getByRole("link", { name: "24h" }).click();
    await (await answer).finished();
    await page.locator(".note", { hasText: "A point is" }).waitFor();
    await page.locator(".note", { hasText: "loading" }).waitFor({ state: "detached" });
    const whole = performance.now() - started;
    const script = ((await metric(client, "ScriptDuration")) - before) * 1000;
    t.diagnostic(`24 h of one VM, all panels in sight: ${ms(script)} of script, ${ms(whole)} with the mock's answer and the test's own round trips`);
  }));

test("a VM with 30 devices, all unfolded", mockOnly, (t) =>
  withPage(at, {}, async (page, _, context) => {
    await openVm(at, page, (await someVm(at, 6)).uuid, "?range=24h");
    const client = await context.newCDPSession(page);
    await client.send("Performance.enable");
    const before = await metric(client, "ScriptDuration");
    await page.evaluate(() => document.querySelectorAll(".device").forEach((device) => (device.open = true)));
    await until(page, "90 panels", async () => (await page.locator(".device .panel").count()) === 90);
    const unfolded = await metric(client, "ScriptDuration");
    const most = await page.evaluate(async () => {
      let charts = 0;
      for (let top = 0; top < document.documentElement.scrollHeight; top += 400) {
        scrollTo(0, top);
        await new Promise(requestAnimationFrame);
        await new Promise(requestAnimationFrame);
        charts = Math.max(charts, document.querySelectorAll(".u-over").length);
      }
      return charts;
    });
    const scrolled = await metric(client, "ScriptDuration");
    t.diagnostic(`30 devices over 24 h: ${ms((unfolded - before) * 1000)} of script to unfold all, ${ms((scrolled - unfolded) * 1000)} to scroll through their 90 charts, of which at most ${most} existed at once`);
    assert.ok(most < 30);
  }));

test("the heap is flat over a day of cycles", mockOnly, async (t) => {
  const { serve } = await import("../mock/server.mjs");
  const small = await serve({ pace: 0, vms: 20 });
  t.after(() => small.close());
  const own = { ...at, url: small.url, mock: small };
  await withPage(own, { prepare: collect }, async (page, _, context) => {
    await openFleet(own, page);
    const client = await context.newCDPSession(page);
    await client.send("HeapProfiler.enable");
    const heap = async () => {
      await client.send("HeapProfiler.collectGarbage");
      return (await client.send("Runtime.getHeapUsage")).usedSize;
    };
    const nodes = async () => (await client.send("Memory.getDOMCounters")).nodes;
    const run = async (cycles) => {
      for (let i = 0; i < cycles; i += BATCH) await cycle(own, [page], BATCH);
    };
    await run(DAY / 8);
    await page.evaluate(() => (globalThis.updates = []));
    const [first, firstNodes] = [await heap(), await nodes()];
    await run((DAY * 7) / 8);
    const drawn = await page.evaluate(() => globalThis.updates.length);
    await page.evaluate(() => (globalThis.updates = []));
    const [last, lastNodes] = [await heap(), await nodes()];
    const mib = (bytes) => `${(bytes / 1024 / 1024).toFixed(2)} MiB`;
    t.diagnostic(`heap after 3 h ${mib(first)}, after 24 h of cycles ${mib(last)} (${drawn} drawings between); DOM nodes ${firstNodes}, ${lastNodes}`);
    assert.ok(last - first < FLAT_BYTES, `grew by ${mib(last - first)}`);
    assert.ok(lastNodes < firstNodes * 1.2 + 200, `${lastNodes} DOM nodes, ${firstNodes} before`);
  });
});
