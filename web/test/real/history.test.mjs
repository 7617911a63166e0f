// The VM page on made-up history in the real program's store: 3 VMs for 30 days, up to now and going on. One has a
// reading that sticks out, one a gap, and one counters that begin anew.
import assert from "node:assert/strict";
import { join } from "node:path";
import { before, test } from "node:test";
import { checkAccessible, openVm, SHOTS } from "../harness.mjs";
import { amount, eventually, feed, format, parse, saved, setUpReal, sql, start, visit } from "./real.mjs";

const at = setUpReal();
const SECOND = 1_000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;
/** How long the made-up VMs go on being read while the tests run, in days. */
const AHEAD = 0.04;
/** 30 days of 5 s are 7.8 million lines, which a debug build takes six minutes to keep. */
const INTERVAL = 30 * SECOND;
const BEGUN = Math.floor(Date.now() / INTERVAL) * INTERVAL;

/** One reading of the second VM, and the bytes that its NICs received meanwhile. */
const SPIKE = { vm: "02", at: BEGUN - 6 * HOUR, bytes: 50_000_000_000n };
/** An hour of which nothing is known of the first one. */
const GAP = { vm: "01", from: BEGUN - 5 * HOUR, to: BEGUN - 4 * HOUR };
/** The third one's counters are 0 from here on, though it was not started anew. */
const RESET = { vm: "03", at: BEGUN - 3 * HOUR };

/** Set by `before`. */
let server;
/** UUIDs of the three by number. */
const uuids = {};

before(async () => {
  server = await start(at, ["serve"]);
});

test("3 VMs for 30 days are taken", async (t) => {
  const from = new Date(BEGUN - 30 * DAY).toISOString();
  const bases = new Map();
  const took = await feed(
    at,
    server,
    ["--vms", 3, "--nics", 1, "--disks", 1, "--days", 30 + AHEAD, "--interval", `${INTERVAL}ms`, "--start", from],
    (line, moment) => changed(line, moment, bases),
  );
  t.diagnostic(`${took.lines} lines, ${took.bytes} bytes in ${took.seconds.toFixed(1)} s`);
  for (const { uuid, name } of await sql(server, "SELECT DISTINCT uuid, name FROM vm_totals"))
    uuids[name.slice(-2)] = uuid;
  assert.equal(Object.keys(uuids).length, 3);
  // Minutes and hours are made in the background, of days whose points are all there.
  await eventually("roll-ups", async () => {
    const [{ hours }] = await sql(server, "SELECT count(*) AS hours FROM vm_totals_1h");
    return hours >= 3 * 29 * 24;
  });
});

/** A generated line with what is to be seen in it; null for one of the gap. */
function changed(line, moment, bases) {
  const isOf = (number) => line.includes(`-${number},uuid=`);
  if (isOf(GAP.vm) && moment >= GAP.from && moment < GAP.to) return null;
  if (isOf(SPIKE.vm) && moment >= SPIKE.at) {
    const point = parse(line);
    for (const field of ["net_rxbytes", "rxbytes"])
      if (field in point.fields) point.fields[field] = `${BigInt(point.fields[field].slice(0, -1)) + SPIKE.bytes}i`;
    if (moment === SPIKE.at && "memrss" in point.fields)
      point.fields.memrss = `${4 * Number(point.fields.memactual.slice(0, -1))}i`;
    return format(point);
  }
  if (isOf(RESET.vm) && moment >= RESET.at) {
    const point = parse(line);
    for (const [field, text] of Object.entries(point.fields)) {
      if (!/^(cputime|time|net_|disk_|rx|tx|rd_|wr_)/.test(field)) continue;
      const key = `${point.table} ${point.tags.VMID} ${point.tags.device} ${field}`;
      const value = BigInt(text.slice(0, -1));
      if (!bases.has(key)) bases.set(key, value);
      point.fields[field] = `${value - bases.get(key)}i`;
    }
    return format(point);
  }
  return line;
}

function withVm(number, query, use, options = {}) {
  return visit({ ...at, url: server.url }, { acceptDownloads: true, height: 1200, ...options }, async (page, open) => {
    await openVm({ url: server.url }, page, uuids[number], query);
    await loaded(page);
    await use(page, open);
  });
}

const loaded = (page) => page.locator(".rangebar .note", { hasText: "loading" }).waitFor({ state: "detached" });
const span = (page) =>
  page.evaluate(() =>
    Object.fromEntries([...new URLSearchParams(location.search)].map(([key, value]) => [key, Number(value)])),
  );

async function drag(page, from, to) {
  const box = await page.locator(".chart .u-over").first().boundingBox();
  const y = box.y + box.height / 2;
  await page.mouse.move(box.x + box.width * from, y);
  await page.mouse.down();
  await page.mouse.move(box.x + box.width * to, y, { steps: 4 });
  await page.mouse.up();
}

test("15 minutes, a day, a week, 30 days: from readings or roll-ups, and accessible", () =>
  withVm("01", "?range=15m", async (page) => {
    for (const [name, words] of [
      ["15m", "Each reading is shown."],
      ["24h", /^A point is [\d.]+ min/],
      ["7d", "From the roll-ups by the minute."],
      ["30d", "From the roll-ups by the hour."],
    ]) {
      await page.getByRole("link", { name, exact: true }).click();
      await page.waitForURL(new RegExp(`range=${name}`));
      await loaded(page);
      await page.locator(".note", { hasText: words }).first().waitFor();
      await page.locator(".chart .u-over").first().waitFor();
      await checkAccessible(page, name);
      await page.screenshot({ path: join(SHOTS, `vm-${name}.png`) });
    }
    // Readings of devices are kept for 7 days, their hours for longer.
    const devices = page.locator(".device");
    assert.ok((await devices.count()) >= 2);
    const { times, columns } = await saved(page, "Network");
    assert.ok(
      times[0] < BEGUN - 29 * DAY && times.at(-1) > BEGUN - DAY,
      `from ${new Date(times[0]).toISOString()} to ${new Date(times.at(-1)).toISOString()}`,
    );
    assert.ok(columns[0].filter((value) => value !== null).length > 300);
  }));

test("from 30 days into an hour of 20 days ago, back by the back button, there again by its address", () =>
  withVm("01", "?range=30d", async (page, open) => {
    const wanted = BEGUN - 20 * DAY;
    const into = async (width, { from: begin, to: end }) => {
      const [middle, half] = [(wanted - begin) / (end - begin), width / 2 / (end - begin)];
      const before = page.url();
      await drag(page, middle - half, middle + half);
      await page.waitForURL((url) => url.href !== before);
      await loaded(page);
      return span(page);
    };
    const shownDay = await into(DAY, { from: BEGUN - 30 * DAY, to: BEGUN });
    const day = page.url();
    const { from, to } = await into(HOUR, shownDay);
    assert.ok(
      from < wanted && wanted < to && to - from > 0.7 * HOUR && to - from < 1.4 * HOUR,
      `${to - from} ms from ${new Date(from).toISOString()}`,
    );
    await page.locator(".note", { hasText: "Each reading is shown." }).waitFor();
    const { times } = await saved(page, "CPU");
    const expected = (to - from) / INTERVAL;
    assert.ok(Math.abs(times.length - expected) <= 2, `${times.length} readings, not ${expected}`);
    const hour = page.url();
    await page.screenshot({ path: join(SHOTS, "vm-20-days-ago.png") });
    await page.goBack();
    await page.waitForURL(day);
    await page.goBack();
    await page.waitForURL(/range=30d/);
    await loaded(page);
    await page.locator(".note", { hasText: "From the roll-ups by the hour." }).waitFor();

    const other = await open();
    await other.goto(hour);
    await other.locator(".chart .u-over").first().waitFor();
    await loaded(other);
    const there = await saved(other, "CPU");
    assert.deepEqual(there.times, times);
  }));

/** Ranges, each with the spike in it. */
const ZOOMS = [
  `?from=${SPIKE.at - 10 * MINUTE}&to=${SPIKE.at + 5 * MINUTE}`,
  `?from=${SPIKE.at - HOUR}&to=${SPIKE.at + 3 * HOUR}`,
  "?range=24h",
  "?range=7d",
  "?range=30d",
];

test("one reading that sticks out is seen at every zoom", () =>
  withVm("02", ZOOMS[0], async (page) => {
    for (const query of ZOOMS) {
      await openVm({ url: server.url }, page, uuids["02"], query);
      await loaded(page);
      const [from, to] = query.startsWith("?from")
        ? [(await span(page)).from, (await span(page)).to]
        : [Date.now() - { "24h": DAY, "7d": 7 * DAY, "30d": 30 * DAY }[query.slice(7)], Date.now()];
      // A gauge keeps its most in full at every zoom: four times what the VM has.
      const [resident, assigned] = [
        await most(page, "memory", "resident on the host"),
        await most(page, "memory", "assigned"),
      ];
      assert.ok(resident > 3.9 * assigned, `${query}: ${resident} bytes of ${assigned}`);
      // So does a counter's rate.
      const received = await most(page, "net", "received");
      const expected = Number(SPIKE.bytes) / (INTERVAL / SECOND);
      assert.ok(received > 0.9 * expected && received < 1.1 * expected, `${query}: ${received} B/s, not ${expected}`);
      // And it is drawn: in the upper half of the chart there is this alone, where it belongs.
      await page.locator("#panel-net .chart").scrollIntoViewIfNeeded();
      await page.locator("#panel-net .u-over").waitFor();
      const columns = await colouredColumns(page, "net", 0.15, 0.5);
      const place = (SPIKE.at - from) / (to - from);
      assert.ok(columns.length > 0, `${query}: nothing is drawn`);
      assert.ok(
        columns.every((column) => Math.abs(column - place) < 0.02),
        `${query}: drawn at ${columns[0]} to ${columns.at(-1)}, not at ${place}`,
      );
      await page.screenshot({ path: join(SHOTS, `spike${query.replaceAll(/\W+/g, "-").slice(0, 20)}.png`) });
    }
  }));

test("a gap is a gap: its line has a hole, near and far", () =>
  withVm("01", "?range=15m", async (page) => {
    for (const [from, to] of [
      [GAP.from - HOUR, GAP.to + HOUR],
      [BEGUN - DAY, BEGUN],
      [BEGUN - 3 * DAY, BEGUN],
    ]) {
      await openVm({ url: server.url }, page, uuids["01"], `?from=${from}&to=${to}`);
      await loaded(page);
      await page.locator("#panel-cpu .u-over").waitFor();
      // A line all the way across, but for the gap.
      const columns = await colouredColumns(page, "cpu", 0, 1);
      const [begin, end] = [(GAP.from - from) / (to - from), (GAP.to - from) / (to - from)];
      const margin = 0.01;
      const within = columns.filter((column) => column > begin + margin && column < end - margin);
      assert.deepEqual(within, [], "nothing within");
      for (const [low, high] of [
        [Math.max(0, begin - 0.1), begin - margin],
        [end + margin, Math.min(1, end + 0.1)],
      ]) {
        const near = columns.filter((column) => column > low && column < high);
        assert.ok(near.length > 10, `the line is there from ${low} to ${high}`);
      }
      await page.screenshot({ path: join(SHOTS, `gap-${Math.round((to - from) / HOUR)}h.png`) });
    }
  }));

test("counters that begin anew are no spike", () =>
  withVm("03", "?range=15m", async (page) => {
    const read = async (query, title) => {
      await openVm({ url: server.url }, page, uuids["03"], query);
      await loaded(page);
      const { times, columns } = await saved(page, title);
      assert.ok(
        columns.every((column) => column.every((value) => value === null || value >= 0)),
        `${title}: a rate is never below 0`,
      );
      return { times, values: columns.flat().filter((value) => value !== null), rows: columns[0] };
    };
    for (const title of ["Network", "Disks", "CPU"]) {
      // The day before it has what is usual. A VM may be busier than then, but not ten times.
      const usual = await read(`?from=${RESET.at - DAY}&to=${RESET.at - MINUTE}`, title);
      const around = await read(`?from=${RESET.at - 30 * MINUTE}&to=${RESET.at + 30 * MINUTE}`, title);
      assert.ok(
        Math.max(...around.values) < 10 * Math.max(...usual.values),
        `${title}: ${Math.max(...around.values)} against ${Math.max(...usual.values)}`,
      );
      // Of the step back nothing is known.
      assert.equal(around.rows[around.times.indexOf(RESET.at)] ?? null, null);
      for (const range of ["7d", "30d"]) {
        const { times, rows } = await read(`?range=${range}`, title);
        const near = rows.filter((value, i) => value !== null && Math.abs(times[i] - RESET.at) < 2 * HOUR);
        const rest = rows.filter((value) => value !== null);
        assert.ok(
          near.length > 0 &&
            Math.max(...near) <=
              10 * Math.max(...rest.filter((value) => !near.includes(value)), Math.max(...usual.values)),
          `${title}, ${range}: ${near}`,
        );
      }
    }
    await page.screenshot({ path: join(SHOTS, "reset.png") });
  }));

/** The most that a chart says of a line, as a person hears it who does not see the chart. */
async function most(page, panel, label) {
  const told = await page.locator(`#panel-${panel} .chart`).getAttribute("aria-label");
  const line = told
    .replace(/\. Arrow keys.*$/, "")
    .split(/[:;] /)
    .find((it) => it.startsWith(`${label} `));
  return amount(/ to (.+)$/.exec(line)[1]);
}

/** The columns of a chart, as parts of its width, that have its first line or band within these parts of its height. */
function colouredColumns(page, id, top, bottom) {
  return page.evaluate(
    ([panel, high, low]) => {
      const canvas = document.querySelector(`#panel-${panel} canvas`);
      const [over, all] = [document.querySelector(`#panel-${panel} .u-over`), canvas].map((it) =>
        it.getBoundingClientRect(),
      );
      const ratio = canvas.width / all.width;
      const [left, width] = [Math.round((over.left - all.left) * ratio), Math.round(over.width * ratio)];
      const [y, height] = [
        Math.round((over.top - all.top + over.height * high) * ratio),
        Math.round(over.height * (low - high) * ratio),
      ];
      const { data } = canvas.getContext("2d", { willReadFrequently: true }).getImageData(left, y, width, height);
      const colour = getComputedStyle(document.documentElement).getPropertyValue("--series-1").trim();
      const wanted = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
      const columns = [];
      for (let x = 0; x < width; x += 1) {
        for (let row = 0; row < height; row += 1) {
          const i = 4 * (row * width + x);
          const [r, g, b, a] = data.slice(i, i + 4);
          // What is thinner than a pixel is faint, but of the same colour.
          if (a > 8 && wanted.every((value, channel) => Math.abs(value - [r, g, b][channel]) < 48)) {
            columns.push(x / width);
            break;
          }
        }
      }
      return columns;
    },
    [id, top, bottom],
  );
}
