// The pages beside what virsh says: VMs of a lab of this test's own, read by `kvmetry run`.
//
// "Within two cycles" counts cycles, not seconds: those that began after virsh was done, up to the one that the page
// shows when it first shows the change.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { before, test } from "node:test";
import { checkAccessible, openFleet, openVm, SHOTS } from "../harness.mjs";
import {
  amount,
  assertShown,
  clock,
  eventually,
  folder,
  hasTable,
  PATIENCE_MS,
  saved,
  setUpReal,
  sql,
  start,
  visit,
  XTASK,
} from "./real.mjs";

const PREFIX = `kvmetry-web-${process.pid}`;
const [FIRST, SECOND, THIRD] = [1, 2, 3].map((number) => `${PREFIX}-000${number}`);
const LOADED = `${PREFIX}-load`;
const CYCLES = 2;

const at = setUpReal();
/** Set by `before`. */
let server;
/** UUIDs by name. */
const uuids = {};

before(async () => {
  at.undo.push(() => lab("down"));
  lab("up", "3", "--period", "1");
  server = await start(at, ["run", "--interval", "2s"]);
  at.url = server.url;
  await eventually("a cycle", () => hasTable(server, "kvmetry_collector"));
  startLoadable(folder(at));
  for (const name of [FIRST, SECOND, THIRD, LOADED]) uuids[name] = virsh("domuuid", name).trim();
  // The dashboard looks once a minute which tables there are: that of events is to be among them.
  await eventually("an event", () => hasTable(server, "vm_events"));
});

test("the fleet shows each VM as virsh does", () =>
  withVms(async (page) => {
    const names = virsh("list", "--name")
      .split("\n")
      .filter((name) => name.startsWith(PREFIX));
    await eventually("all VMs", async () => (await page.locator(".vms tbody th.name").count()) === names.length);
    // They are counted once a minute: of a VM that is new they are not known yet.
    await eventually("errors", async () => (await table(page)).every((row) => !Number.isNaN(amount(row.Errors))));
    const [rows, counted] = await still(async () => {
      await shows(page, Date.now());
      return [await table(page), Object.fromEntries(names.map((name) => [name, domstats(name)]))];
    });
    assert.deepEqual(rows.map((row) => row.VM).sort(), names.sort());
    for (const row of rows) {
      const stats = counted[row.VM];
      const info = virsh("dominfo", row.VM);
      assert.match(row.State, new RegExp(/State:\s+(.*\S)/.exec(info)[1]));
      assert.equal(row.Host, virsh("hostname").trim());
      assert.equal(row.vCPUs, stats["vcpu.current"]);
      assertShown(row["Mem has"], stats["balloon.current"] * 1024, `${row.VM} has`);
      // The one that is to be loaded has no guest that tells.
      const used = row.VM === LOADED ? null : (stats["balloon.available"] - stats["balloon.usable"]) * 1024;
      if (used === null) assert.match(row["Mem used"], /rss/);
      else assertShown(row["Mem used"], used, `${row.VM} uses`);
      // Of the last minutes, counted once a minute; virsh has all since the start, and a moment later.
      for (const [text, tail] of [[row.Errors, "errs"], [row.Drops, "drop"]]) {
        const most = faults(stats, tail);
        assert.ok(amount(text) >= 0 && amount(text) <= most, `${row.VM} shows ${text} ${tail} of ${most}`);
      }
    }
    await checkAccessible(page, "fleet");
    await page.screenshot({ path: join(SHOTS, "lab-fleet.png") });
  }));

test("the VM page shows its devices, and counts what virsh counts", () =>
  visit(at, { height: 1600 }, async (page) => {
    const outer = { stats: domstats(FIRST), at: Date.now() };
    const first = await cycleAfter(outer.at);
    const inner = { stats: domstats(FIRST) };
    await cycleAfter(first + 4_000);
    const [innerEnd, innerAt] = [domstats(FIRST), Date.now()];
    const last = await cycleAfter(innerAt);
    const outerEnd = domstats(FIRST);

    await openVm(at, page, uuids[FIRST], "?range=15m");
    await page.getByRole("heading", { level: 1, name: FIRST }).waitFor();
    await page.locator(".ids", { hasText: uuids[FIRST] }).waitFor();
    const devices = await page.locator(".device summary b").allTextContents();
    const named = (kind) =>
      Object.entries(outer.stats)
        .filter(([key]) => new RegExp(`^${kind}\\.\\d+\\.name$`).test(key))
        .map(([, value]) => value);
    assert.deepEqual(devices.sort(), [...named("net"), ...named("block")].sort());
    await page.getByRole("heading", { name: `${named("net").length} NICs` }).waitFor();
    await page.getByRole("heading", { name: `${named("block").length} Disks` }).waitFor();

    // What the charts show between the two cycles lies between what virsh counted within and around them.
    const steps = (
      await sql(
        server,
        `SELECT CAST(time AS BIGINT) / 1000000 AS at FROM vm_totals WHERE uuid = '${uuids[FIRST]}' ORDER BY time`,
      )
    ).map((row) => row.at);
    const check = async (title, counted, what) => {
      const { times, columns } = await saved(page, title);
      let sum = 0;
      times.forEach((time, i) => {
        if (time > first && time <= last)
          sum += ((time - steps[steps.indexOf(time) - 1]) / 1000) * columns.reduce((all, column) => all + column[i], 0);
      });
      const least = counted(innerEnd) - counted(inner.stats);
      const most = counted(outerEnd) - counted(outer.stats);
      // A rate is written with three decimals or more.
      assert.ok(sum >= least - 1 && sum <= most + 1, `${what}: the charts say ${sum}, virsh from ${least} to ${most}`);
      assert.ok(most > 0, `${what}: nothing was counted, so nothing was compared`);
    };
    const sum = (kind, tail) => (stats) =>
      Object.entries(stats).reduce(
        (all, [key, value]) => (new RegExp(`^${kind}\\.\\d+\\.${tail}$`).test(key) ? all + Number(value) : all),
        0,
      );
    await check("Network", sum("net", "(rx|tx)\\.bytes"), "bytes of NICs");
    await check("Packets", sum("net", "(rx|tx)\\.pkts"), "packets");
    await check("Disks", sum("block", "(rd|wr)\\.bytes"), "bytes of disks");
    await check("Disk requests", sum("block", "(rd|wr)\\.reqs"), "requests");
    // Percent of its vCPUs is so many ns a second.
    const perPercent = (outer.stats["vcpu.current"] * 1e9) / 100;
    await check("CPU", (stats) => stats["cpu.time"] / perPercent, "CPU");
    await checkAccessible(page, "vm");
    await page.screenshot({ path: join(SHOTS, "lab-vm.png") });
  }));

test("load in one guest is at the top within two cycles", () =>
  withVms(async (page) => {
    const [idle] = (await table(page)).filter((row) => row.VM === LOADED);
    virsh("send-key", LOADED, "KEY_SPACE");
    const done = Date.now();
    // How much a guest gets is the machine's affair.
    const more = (name, least) => {
      const rows = [...document.querySelectorAll(".vms tbody tr")];
      const row = rows.find((it) => it.querySelector("th a")?.textContent === name);
      return parseFloat(row?.querySelectorAll("td")[2]?.textContent ?? "") > least;
    };
    const shown = await shownUntil(page, more, [LOADED, amount(idle.CPU) + 2]);
    await within(CYCLES, done, shown, "load");
    await page.keyboard.press("r");
    await eventually("it is first", async () => (await table(page))[0].VM === LOADED);
    await page.screenshot({ path: join(SHOTS, "lab-load.png") });
  }));

test("a NIC that is plugged in has its charts within two cycles, and on a page that is open", () =>
  visit(at, { height: 1600 }, async (page, open) => {
    await openVm(at, page, uuids[FIRST], "?range=15m");
    const before = nics(FIRST);
    virsh("attach-interface", FIRST, "bridge", "kvmetry-lab0", "--model", "virtio", "--live");
    const [added] = nics(FIRST).filter((name) => !before.includes(name));
    // The page's own pieces come every 5 s; another that is opened after the second cycle has it at once.
    await cycles(CYCLES);
    const second = await open();
    await openVm(at, second, uuids[FIRST], "?range=15m");
    for (const one of [second, page]) {
      const device = one.locator(".device", { has: one.locator("summary b", { hasText: new RegExp(`^${added}$`) }) });
      await device.locator(".chart").first().scrollIntoViewIfNeeded();
      await device.locator(".chart .u-over").first().waitFor();
      await one.locator(".events li", { hasText: "device added" }).waitFor();
    }
    await second.screenshot({ path: join(SHOTS, "lab-nic.png") });
  }));

/** When the end of a VM was shown, and when it was. */
let end;

test("a VM that is stopped goes from the fleet, and its page says that it is past", () =>
  withVms(async (page, open) => {
    // Just after a cycle, so that the VM's last reading is one of before.
    await shows(page, Date.now());
    virsh("destroy", SECOND);
    const done = Date.now();
    const gone = (name) => ![...document.querySelectorAll(".vms tbody th a")].some((it) => it.textContent === name);
    end = { done, shown: await shownUntil(page, gone, [SECOND]) };
    const second = await open();
    await openVm(at, second, uuids[SECOND], "?range=15m");
    await second.locator(".gone", { hasText: "Not running" }).waitFor();
    await second.locator(".events li b", { hasText: /^stopped$/ }).waitFor();
    await second.screenshot({ path: join(SHOTS, "lab-stopped.png") });
  }));

test("it goes within two cycles", () =>
  within(CYCLES, end.done, end.shown, "its end"),
);

test("a restart is marked within two cycles; a new name comes with the next list, and it stays one history", () =>
  visit(at, {}, async (page) => {
    const name = `${PREFIX}-renamed`;
    virsh("destroy", THIRD);
    virsh("domrename", THIRD, name);
    virsh("start", name);
    await cycles(CYCLES);
    await openVm(at, page, uuids[THIRD], "?range=15m");
    await page.locator(".events li b", { hasText: /^restarted$/ }).waitFor();
    await eventually(
      "the new name",
      async () => (await sql(server, `SELECT 1 AS it FROM vm_totals WHERE name = '${name}'`)).length > 0,
    );
    await page.getByRole("heading", { level: 1, name }).waitFor();
    await page.getByText(`was called ${THIRD}`).waitFor();
    await page.locator(".events li b", { hasText: /^renamed$/ }).waitFor();
    await page.screenshot({ path: join(SHOTS, "lab-renamed.png") });
  }));

test("the collector page shows the host and its VMs", () =>
  visit(at, {}, async (page) => {
    await page.goto(new URL("collector", at.url).href);
    const row = page.locator("table.plain tbody tr", { hasText: virsh("hostname").trim() });
    await row.waitFor();
    const running = virsh("list", "--uuid").trim().split("\n").length;
    await eventually(
      "as many VMs as run",
      async () => (await row.locator("td").nth(2).textContent()) === String(running),
    );
    assert.doesNotMatch(await row.textContent(), /not connected/);
    await checkAccessible(page, "collector");
    await page.screenshot({ path: join(SHOTS, "lab-collector.png") });
  }));

// ---- virsh

function virsh(...args) {
  return execFileSync("virsh", ["-c", "qemu:///system", ...args], {
    encoding: "utf8",
    env: { ...process.env, LC_ALL: "C" },
  });
}

function domstats(name) {
  const lines = virsh("domstats", name)
    .split("\n")
    .map((line) => line.trim());
  return Object.fromEntries(
    lines
      .filter((line) => line.includes("="))
      .map((line) => [line.slice(0, line.indexOf("=")), line.slice(line.indexOf("=") + 1)]),
  );
}

function nics(name) {
  return virsh("domiflist", name)
    .split("\n")
    .slice(2)
    .map((line) => line.trim().split(/\s+/)[0])
    .filter((it) => it !== "");
}

function faults(stats, tail) {
  return Object.entries(stats).reduce(
    (sum, [key, value]) => (key.startsWith("net.") && key.endsWith(`.${tail}`) ? sum + Number(value) : sum),
    0,
  );
}

function lab(command, ...args) {
  execFileSync(XTASK, ["lab", command, ...args, "--prefix", PREFIX], { stdio: ["ignore", "ignore", "pipe"] });
}

/** What `ask` finds while the guests make no reports: their own figures move from one to the next. */
async function still(ask) {
  const report = (seconds) => {
    for (const name of [FIRST, SECOND, THIRD]) virsh("dommemstat", name, "--period", seconds, "--live");
  };
  report("0");
  try {
    return await ask();
  } finally {
    report("1");
  }
}

/** A VM whose boot sector waits for a key, and then keeps its CPU busy: the lab's guest has next to no load. */
function startLoadable(dir) {
  const sector = Buffer.alloc(1 << 20);
  //                       sti   mov ah, 0   int 16h     jmp $
  Buffer.from([0xfb, 0xb4, 0x00, 0xcd, 0x16, 0xeb, 0xfe]).copy(sector);
  sector.writeUInt16LE(0xaa55, 510);
  const disk = join(dir, "boot.raw");
  writeFileSync(disk, sector);
  const kind = /<domain type='(\w+)'/.exec(virsh("dumpxml", FIRST))[1];
  const xml = join(dir, "load.xml");
  writeFileSync(
    xml,
    `<domain type='${kind}'><name>${LOADED}</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
    <os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>
    <devices><disk type='file'><driver name='qemu' type='raw'/><source file='${disk}'/>
    <target dev='vda' bus='virtio'/></disk>
    <controller type='usb' model='none'/></devices></domain>`,
  );
  // Transient: it is gone when it is stopped.
  virsh("create", xml);
  at.undo.push(() => virsh("destroy", LOADED));
}

// ---- Pages and cycles

/** The fleet page of this test's VMs only: others may run here too. */
function withVms(use) {
  return visit(at, {}, async (page, open) => {
    await openFleet(at, page, `?q=${PREFIX}`);
    await use(page, open);
  });
}

/** What the table shows: for each row, its cells by their column's title. */
function table(page) {
  return page.evaluate(() => {
    const titles = [...document.querySelectorAll(".vms thead th")].map((it) => it.textContent.replace(/[▾▴]$/, ""));
    return [...document.querySelectorAll(".vms tbody tr:not(.space)")].map((row) =>
      Object.fromEntries([...row.children].map((cell, i) => [titles[i], cell.textContent])),
    );
  });
}

/** Until the page shows a cycle that began after this moment. */
function shows(page, ms) {
  return eventually("a new cycle on the page", async () => {
    const time = await page.locator(".link time").textContent();
    return (await cyclesAfter(ms)).map(clock).includes(time);
  });
}

/** The times, HH:MM:SS, of the cycles that the page shows until it shows something, that one included. */
function shownUntil(page, condition, args) {
  // As text by the debugger, which the page's content security policy does not bind.
  return page.evaluate(`new Promise((resolve, reject) => {
    const end = performance.now() + ${PATIENCE_MS};
    const times = new Set();
    const look = () => {
      times.add(document.querySelector(".link time").textContent);
      if ((${condition.toString()})(...${JSON.stringify(args)})) resolve([...times]);
      else if (performance.now() > end) reject(new Error("never shown"));
      else requestAnimationFrame(look);
    };
    look();
  })`);
}

/** When the cycles began, ms, that are later than this. */
async function cyclesAfter(ms) {
  return (await sql(server, "SELECT CAST(time AS BIGINT) / 1000000 AS at FROM kvmetry_collector ORDER BY time"))
    .map((row) => row.at)
    .filter((it) => it > ms);
}

/** The first whole cycle that began after this moment. */
function cycleAfter(ms) {
  return eventually("a cycle", async () => (await cyclesAfter(ms))[0]);
}

/** That many cycles that begin from now on are whole. */
async function cycles(count) {
  for (let i = 0, last = Date.now(); i < count; i += 1) last = await cycleAfter(last);
}

/** Of the cycles that were `shown` at most so many began after `done`: what a busy machine does not push is not shown. */
async function within(most, done, shown, what) {
  const later = (await cyclesAfter(done)).map(clock);
  const place = shown.filter((time) => later.includes(time)).length;
  assert.ok(place <= most, `${what} was shown with cycle ${place} after it`);
}
