// The fleet page on 1,000 made-up VMs in the real program's store, which are read for 15 minutes up to now and on.
import assert from "node:assert/strict";
import { join } from "node:path";
import { before, test } from "node:test";
import { checkAccessible, openFleet, SHOTS } from "../harness.mjs";
import { amount, eventually, feed, setUpReal, sql, start, visit } from "./real.mjs";

const at = setUpReal();
const VMS = 1_000;
const DAY = 86_400_000;
const PAST = 15 * 60_000;
/** They go on being read while the tests run. */
const AHEAD = 60 * 60_000;
/** A debug build keeps some 20,000 lines a second; at 5 s a thousand VMs would be a minute's work. */
const INTERVAL = 10_000;

/** Set by `before`. */
let server;

before(async () => {
  server = await start(at, ["serve"]);
});

test("1,000 VMs for 15 minutes are taken", async (t) => {
  const from = new Date(Math.floor((Date.now() - PAST) / INTERVAL) * INTERVAL).toISOString();
  const took = await feed(at, server, [
    "--vms",
    VMS,
    "--nics",
    1,
    "--disks",
    1,
    "--days",
    (PAST + AHEAD) / DAY,
    "--interval",
    `${INTERVAL}ms`,
    "--start",
    from,
  ]);
  t.diagnostic(`${took.lines} lines, ${took.bytes} bytes in ${took.seconds.toFixed(1)} s`);
  const [{ vms }] = await sql(server, "SELECT count(DISTINCT uuid) AS vms FROM vm_totals");
  assert.equal(vms, VMS);
});

function withFleet(options, use) {
  return visit({ ...at, url: server.url }, { ...options }, use);
}

test("all rows of 1,000 are there, in order, as one scrolls", () =>
  withFleet({}, async (page) => {
    await openFleet({ url: server.url }, page, "?sort=name&dir=asc");
    await page.locator(".shown", { hasText: /^1,000 VMs$/ }).waitFor();
    assert.equal(await page.locator(".vms table").getAttribute("aria-rowcount"), String(VMS + 1));
    const seen = new Map();
    while (seen.size < VMS) {
      const drawn = await page.evaluate(() =>
        [...document.querySelectorAll(".vms tbody tr[aria-rowindex]")].map((row) => [
          Number(row.getAttribute("aria-rowindex")),
          row.querySelector("th a").textContent,
        ]),
      );
      const before = seen.size;
      for (const [index, name] of drawn) seen.set(index, name);
      assert.ok(seen.size > before, `nothing new after ${before} rows`);
      const last = Math.max(...seen.keys());
      if (last === VMS + 1) break;
      await page.locator(".vms").evaluate((box) => (box.scrollTop += box.clientHeight));
      await page.locator(`.vms tr[aria-rowindex="${last + 1}"]`).waitFor();
    }
    const names = [...seen.entries()].sort(([a], [b]) => a - b).map(([, name]) => name);
    assert.equal(names.length, VMS);
    const known = (await sql(server, "SELECT DISTINCT name FROM vm_totals")).map((row) => row.name);
    assert.deepEqual(
      names,
      known.sort((a, b) => (a.toLowerCase() < b.toLowerCase() ? -1 : 1)),
    );
    await page.screenshot({ path: join(SHOTS, "fleet-1000-end.png") });
  }));

test("1,000 are sorted by what is shown, and a filter finds some", () =>
  withFleet({}, async (page) => {
    await openFleet({ url: server.url }, page);
    const column = (title) =>
      page.evaluate((wanted) => {
        const heads = [...document.querySelectorAll(".vms thead th")];
        const titles = heads.map((it) => it.textContent.replace(/[▾▴]$/, ""));
        return [...document.querySelectorAll(".vms tbody tr[aria-rowindex]")].map(
          (row) => row.children[titles.indexOf(wanted)].textContent,
        );
      }, title);
    const titles = (await page.locator("thead a").allTextContents()).map((title) => title.replace(/[▾▴]$/, ""));
    for (const title of titles) {
      await page.locator("thead").getByRole("link", { name: title, exact: true }).click();
      await page.locator("thead th[aria-sort]", { hasText: title }).waitFor();
      // What moves may have moved since it was sorted.
      if (!["vCPUs", "Mem has"].includes(title)) continue;
      const values = (await column(title)).map(amount);
      assert.deepEqual(
        values,
        [...values].sort((a, b) => b - a),
        title,
      );
    }
    const [{ some }] = await sql(
      server,
      "SELECT count(DISTINCT uuid) AS some FROM vm_totals WHERE name LIKE '%batch%'",
    );
    await page.getByRole("searchbox").fill("batch");
    await page.locator(".shown", { hasText: `${some} of 1,000 VMs` }).waitFor();
    await page.goBack();
    await page.locator(".shown", { hasText: /^1,000 VMs$/ }).waitFor();
  }));

test("1,000 live: the next cycles come, and the page is accessible", () =>
  withFleet({}, async (page) => {
    await openFleet({ url: server.url }, page);
    const time = () => page.locator(".link time").textContent();
    for (let i = 0; i < 2; i += 1) {
      const last = await time();
      await eventually("the next cycle", async () => (await time()) !== last);
    }
    await page.locator(".link", { hasText: "live" }).waitFor();
    await checkAccessible(page, "fleet of 1,000");
    await page.screenshot({ path: join(SHOTS, "fleet-1000.png") });
  }));
