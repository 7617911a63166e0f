// What the real program's pages cost in a browser: the time until the first page is there, until a VM's 24 hours of 5 s are drawn,
// the script of an update of 1,000 VMs, and the heap of a page that is open for a while. Told, never failed.
//
//   KVMETRY=…/release/kvmetry XTASK=…/release/xtask node --test test/real/cost.mjs     on a machine that does nothing else
//   MINUTES=60                                                                        how long the heap is looked at; 2 if not set
import { test } from "node:test";
import { openFleet } from "../harness.mjs";
import { eventually, feed, setUpReal, sql, start, visit } from "./real.mjs";

const at = setUpReal();
const TIMES = 10;
const MINUTES = Number(process.env.MINUTES ?? 2);
/** How often the heap is looked at. */
const LOOKS = 12;
/** Nothing here depends on how wide the window is, but how many points a chart has room for. */
const WINDOW = { width: 1440, height: 2000 };
const ms = (value) => `${value.toFixed(0)} ms`;
const middle = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];
const begun = Math.floor(Date.now() / 5_000) * 5_000;
const since = (minutes) => new Date(begun - minutes * 60_000).toISOString();

test("one VM over 24 h of 5 s", async (t) => {
  const server = await start(at, ["serve"]);
  await feed(at, server, ["--vms", 3, "--days", 1.05, "--start", since(24 * 60)]);
  const [{ uuid }] = await sql(server, "SELECT uuid FROM vm_totals LIMIT 1");
  const first = [];
  const whole = [];
  for (let i = 0; i < TIMES; i += 1) {
    await visit({ ...at, url: server.url }, WINDOW, async (page) => {
      await openFleet({ ...at, url: server.url }, page);
      first.push(await page.evaluate(() => performance.getEntriesByName("first-contentful-paint")[0].startTime));
    });
    await visit({ ...at, url: server.url }, WINDOW, async (page) => {
      await page.goto(new URL(`vm/${uuid}?range=24h`, server.url).href);
      // From the navigation on, until the last chart near the window is drawn.
      whole.push(
        await page.evaluate(
          () =>
            new Promise((resolve) => {
              const look = () => {
                const charts = document.querySelectorAll(".chart .u-over").length;
                if (charts < 8) return requestAnimationFrame(look);
                requestAnimationFrame(() => resolve(performance.now()));
              };
              look();
            }),
        ),
      );
    });
  }
  t.diagnostic(`first contentful paint of the fleet page: median ${ms(middle(first))}, most ${ms(Math.max(...first))} of ${TIMES}`);
  t.diagnostic(`a VM's 24 h, from the navigation to its drawn charts: median ${ms(middle(whole))}, most ${ms(Math.max(...whole))}`);
});

test("1,000 VMs, live", async (t) => {
  const server = await start(at, ["serve"]);
  await feed(at, server, ["--vms", 1000, "--days", (MINUTES + 20) / 1440, "--start", since(15)]);
  const prepare = () => {
    globalThis.updates = [];
    new PerformanceObserver((list) => {
      for (const entry of list.getEntries()) if (entry.name === "fleet-update") globalThis.updates.push(entry.duration);
    }).observe({ type: "measure" });
  };
  await visit({ ...at, url: server.url }, { prepare }, async (page) => {
    await openFleet({ ...at, url: server.url }, page);
    const client = await page.context().newCDPSession(page);
    await client.send("HeapProfiler.enable");
    const heap = async () => {
      await client.send("HeapProfiler.collectGarbage");
      return (await client.send("Runtime.getHeapUsage")).usedSize / 1024 / 1024;
    };
    const drawn = () => page.evaluate(() => globalThis.updates.length);
    await eventually("some cycles", async () => (await drawn()) >= 3);
    const heaps = [await heap()];
    const begun = Date.now();
    for (let i = 1; i <= LOOKS; i += 1) {
      await page.waitForTimeout(begun + (i * MINUTES * 60_000) / LOOKS - Date.now());
      heaps.push(await heap());
    }
    const updates = await page.evaluate(() => globalThis.updates);
    t.diagnostic(
      `1,000 VMs: ${updates.length} updates, script of one: median ${middle(updates).toFixed(1)} ms, most ${Math.max(...updates).toFixed(1)} ms; ` +
        `heap over ${MINUTES} min, MiB: ${heaps.map((value) => value.toFixed(2)).join(" ")}`,
    );
  });
});
