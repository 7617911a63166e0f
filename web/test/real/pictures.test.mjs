// The pictures of README and docs: a made-up site of three hosts, in the real program. They are always made, in
// target/shots; with KVMETRY_WRITE_DOCS=1 they are also put into docs/images.
import assert from "node:assert/strict";
import { copyFileSync, mkdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { checkAccessible, openFleet, SHOTS } from "../harness.mjs";
import { eventually, feed, setUpReal, sql, start, visit, write } from "./real.mjs";

const IMAGES = fileURLToPath(new URL("../../../docs/images", import.meta.url));
/** More of each is a burden to every clone. */
const MOST_BYTES = 200 << 10;
const MINUTE = 60_000;
const INTERVAL = 5_000;
/** The VM page shows an hour where nothing else is asked for. */
const PAST = 65 * MINUTE;
const AHEAD = 30 * MINUTE;

const HOSTS = [
  { host: "kvm-01", vms: 14, seed: 11, cycle: 21 },
  { host: "kvm-02", vms: 12, seed: 12, cycle: 18 },
  { host: "kvm-03", vms: 10, seed: 13, cycle: 14 },
];
/** What the VMs of a role are called, over all hosts in turn. */
const NAMES = {
  web: ["shop-web", "shop-api", "www", "intranet", "webmail", "cdn"],
  db: ["shop-db", "crm-db", "wiki-db", "metrics-db"],
  desktop: ["vdi-anna", "vdi-ben", "vdi-carla", "vdi-deniz"],
  batch: ["nightly-build", "video-encode", "report-batch"],
  test: [
    "dns",
    "ldap",
    "mail",
    "git",
    "wiki",
    "vpn",
    "proxy",
    "print",
    "ntp",
    "chat",
    "ci-runner",
    "backup",
    "staging",
    "registry",
    "helpdesk",
    "forum",
    "syslog",
    "mirror",
    "jump",
    "lab",
  ],
};

const at = setUpReal();
let server;

before(async () => {
  server = await start(at, ["serve"]);
  at.url = server.url;
  const begun = Math.floor((Date.now() - PAST) / INTERVAL) * INTERVAL;
  const taken = {};
  for (const { host, vms, seed, cycle } of HOSTS) {
    const names = new Map();
    let last = 0;
    const rename = (made) => {
      const [, role, number] = /^(\D+)-(\d+)$/.exec(made);
      const list = NAMES[role] ?? [role];
      taken[role] = (taken[role] ?? -1) + 1;
      const round = Math.floor(taken[role] / list.length);
      return `${list[taken[role] % list.length] ?? number}${round === 0 ? "" : `-${round + 1}`}`;
    };
    const change = (line, moment) => {
      const changed = line.replace(/name=([^,]+)/, (_, made) => {
        if (!names.has(made)) names.set(made, rename(made));
        return `name=${names.get(made)}`;
      });
      if (moment === last) return changed;
      last = moment;
      // What `kvmetry run` tells of each of its cycles. It takes a little more and a little less.
      const wobble = 1 + ((moment / INTERVAL) % 7) / 20;
      const fields = {
        cycle_ns: Math.round(cycle * wobble * 1e6), lines: vms * 8, failures: 0, stuck_vms: 0, abandoned_calls: 0,
        cache_hits: vms * 720, cache_misses: vms * 5,
      };
      const pairs = Object.entries(fields).map(([field, value]) => `${field}=${value}i`);
      return `${changed}\nkvmetry_collector,host=${host} ${pairs.join(",")} ${moment}000000`;
    };
    await feed(
      at,
      server,
      [
        "--host",
        host,
        "--vms",
        vms,
        "--seed",
        seed,
        "--days",
        (PAST + AHEAD) / 86_400_000,
        "--interval",
        `${INTERVAL}ms`,
        "--start",
        new Date(begun).toISOString(),
      ],
      change,
    );
  }
  const [vm] = await sql(server, `SELECT uuid, "VMID" AS vmid FROM vm_totals WHERE name = '${NAMES.db[0]}' LIMIT 1`);
  const tags = `VMID=${vm.vmid},host=${HOSTS[0].host},name=${NAMES.db[0]},uuid=${vm.uuid}`;
  const moment = (minutes) => `${begun + minutes * MINUTE}000000`;
  await write(
    server,
    [
      `vm_events,${tags} event="device_added",detail="net2",reason="" ${moment(28)}`,
      `vm_events,${tags} event="balloon",detail="8388608 KiB",reason="" ${moment(46)}`,
    ].join("\n"),
  );
});

/** What a README's column has room for. */
const [WIDTH, HEIGHT] = [1344, 700];

/** Takes the picture of a page that is open. */
async function picture(page, name) {
  await checkAccessible(page, name);
  const path = join(SHOTS, `${name}.png`);
  await page.mouse.move(0, 0);
  await page.screenshot({ path, animations: "disabled" });
  const { size } = statSync(path);
  assert.ok(size < MOST_BYTES, `${name}.png has ${size} bytes`);
  if (process.env.KVMETRY_WRITE_DOCS !== "1") return;
  mkdirSync(IMAGES, { recursive: true });
  copyFileSync(path, join(IMAGES, `${name}.png`));
}

async function fleet(page) {
  await openFleet(at, page);
  // The sparklines' past comes after the first cycle.
  await eventually("sparklines", () =>
    page.evaluate(() => {
      const canvas = document.querySelector(".vms td.spark canvas");
      const { data } = canvas.getContext("2d").getImageData(0, 0, Math.floor(canvas.width / 2), canvas.height);
      return data.some((value) => value !== 0);
    }),
  );
}

for (const [name, scheme] of [
  ["fleet", "light"],
  ["fleet-dark", "dark"],
]) {
  test(name, () =>
    // To look at a sparkline is to read its canvas.
    visit(at, { scheme, width: WIDTH, height: HEIGHT, expected: /willReadFrequently/ }, async (page) => {
      await fleet(page);
      assert.equal(await page.locator(".shown").textContent(), `${HOSTS.reduce((sum, { vms }) => sum + vms, 0)} VMs`);
      await picture(page, name);
    }),
  );
}

for (const [name, scheme] of [
  ["vm", "light"],
  ["vm-dark", "dark"],
]) {
  test(name, () =>
    visit(at, { scheme, width: WIDTH, height: HEIGHT }, async (page) => {
      await openFleet(at, page, `?q=${NAMES.db[0]}`);
      await page.locator(".vms tbody th.name a").first().click();
      await page.locator(".chart .u-over").first().waitFor();
      await page.locator(".events li", { hasText: "device added" }).waitFor();
      await picture(page, name);
    }),
  );
}

test("collector", () =>
  visit(at, { width: WIDTH, height: 370 }, async (page) => {
    await page.goto(new URL("collector", at.url).href);
    await eventually("three hosts", async () => (await page.locator("table.plain tbody tr").count()) === HOSTS.length);
    await picture(page, "collector");
  }));
