// What the tests against the real program share: the program itself, a browser, SQL to ask what was collected, and
// made-up history.
//
//   KVMETRY=… XTASK=…   the binaries; else those that cargo built last (debug)
//   CHROMIUM=…          another browser
//
// Each server has a port of the kernel's choice and a directory of its own, and is gone after the tests.
import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";
import { SHOTS, withPage } from "../harness.mjs";

const root = fileURLToPath(new URL("../../..", import.meta.url));
/** A debug build on a busy machine takes a second or two to start; one that takes longer has hung. */
const STARTS_WITHIN_MS = 60_000;
/** Of one write: the server takes 64 MiB, and smaller pieces keep both sides' memory small. */
const WRITE_BYTES = 2 << 20;
/** Lines of a server's log that a failed test shows. */
const LOG_LINES = 30;
/** Node polls what has no event of its own at this pace. */
const POLL_MS = 50;
/** A condition that has not come true by then never will: roll-ups are made in the background, machines are shared. */
export const PATIENCE_MS = 120_000;

/** A name that only the browser knows: it is this machine. */
export const NAME = "kvmetry.test";

export const KVMETRY = binary("KVMETRY", "kvmetry");
export const XTASK = binary("XTASK", "xtask");

function binary(variable, name) {
  const given = process.env[variable];
  if (given) return given;
  const metadata = execFileSync("cargo", ["metadata", "--locked", "--no-deps", "--format-version", "1"], {
    cwd: root,
    encoding: "utf8",
  });
  const built = join(JSON.parse(metadata).target_directory, "debug", name);
  if (!existsSync(built))
    throw new Error(`${built} is missing: make web, then cargo build -p ${name}; or set ${variable}`);
  return built;
}

/** A browser for one file of tests, and what is to be undone after them, the newest first. */
export function setUpReal() {
  const at = { browser: null, mock: null, undo: [] };
  before(async () => {
    mkdirSync(SHOTS, { recursive: true });
    at.browser = await chromium.launch({
      executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
      args: ["--no-sandbox", `--host-resolver-rules=MAP ${NAME} 127.0.0.1`],
    });
  });
  after(async () => {
    await at.browser?.close();
    const failures = [];
    for (const undo of at.undo.reverse()) {
      // One that fails must not leave the others behind.
      try {
        await undo();
      } catch (error) {
        failures.push(error);
      }
    }
    if (failures.length > 0) throw new AggregateError(failures, "not all could be taken down");
  });
  return at;
}

/** `withPage`, in UTC, and with the patience that real VMs and a million points need on a busy machine. */
export function visit(at, options, use) {
  return withPage(at, { timezoneId: "UTC", acceptDownloads: true, ...options }, (page, open, context) => {
    context.setDefaultTimeout(PATIENCE_MS);
    return use(page, open);
  });
}

/** A directory that is gone after the tests. Others may pass through it: QEMU and `nobody` are not root. */
export function folder(at) {
  const path = mkdtempSync(join(tmpdir(), "kvmetry-web-"));
  execFileSync("chmod", ["755", path]);
  at.undo.push(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

/** `kvmetry COMMAND ARGS` once it listens. `config`: a configuration's text; `prefix`: words before the command. */
export async function start(at, args, { config, prefix = [], dir = folder(at), path = "/" } = {}) {
  const file = join(dir, "kvmetry.toml");
  if (config !== undefined) writeFileSync(file, config);
  const [command, ...rest] = [
    ...prefix,
    KVMETRY,
    ...args,
    "--data-dir",
    join(dir, "data"),
    "--listen",
    "127.0.0.1:0",
    ...(config === undefined ? [] : ["--config", file]),
  ];
  const child = spawn(command, rest, {
    stdio: ["ignore", "ignore", "pipe"],
    env: { PATH: process.env.PATH, HOME: dir },
  });
  const server = { url: null, dir, child, log: "", stop: () => stop(child) };
  at.undo.push(server.stop);
  await new Promise((resolve, reject) => {
    const late = setTimeout(() => reject(new Error(`does not listen: ${server.log}`)), STARTS_WITHIN_MS);
    const settle = (how, value) => {
      clearTimeout(late);
      how(value);
    };
    child.on("error", (error) => settle(reject, error));
    child.on("exit", (code) => settle(reject, new Error(`ended with ${code}: ${server.log}`)));
    child.stderr.setEncoding("utf8").on("data", (text) => {
      server.log = `${server.log}${text}`.split("\n").slice(-LOG_LINES).join("\n");
      const [, url] = /listening on (https?:\/\/\S+)/.exec(server.log) ?? [];
      if (url === undefined || server.url !== null) return;
      server.url = new URL(path, url).href;
      settle(resolve);
    });
  });
  return server;
}

/** Ends a process of ours and waits for its end. */
export async function stop(child) {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = new Promise((resolve) => child.once("exit", resolve));
  child.kill("SIGTERM");
  await ended;
}

/** Until `ask` gives something true. */
export async function eventually(what, ask) {
  const end = performance.now() + PATIENCE_MS;
  for (;;) {
    const value = await ask();
    if (value) return value;
    if (performance.now() > end) assert.fail(`never came true: ${what}`);
    await sleep(POLL_MS);
  }
}

/** The rows that a query gives. */
export async function sql(server, q) {
  const response = await fetch(new URL("api/v3/query_sql", server.url), {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ db: "kvmetry", q, format: "json" }),
  });
  assert.ok(response.ok, `${q}: ${response.status}`);
  return response.json();
}

/** Whether something was written into a table. */
export async function hasTable(server, table) {
  const response = await fetch(new URL("api/v3/query_sql", server.url), {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ db: "kvmetry", q: `SELECT 1 AS it FROM ${table} LIMIT 1`, format: "json" }),
  });
  // Of a table that is not there nothing can be asked.
  return response.ok;
}

/** Writes line protocol (text or bytes), which the server must take whole. */
export async function write(server, lines) {
  const response = await fetch(new URL("api/v3/write_lp?db=kvmetry&precision=nanosecond", server.url), {
    method: "POST",
    body: lines,
  });
  assert.equal(response.status, 204, response.status === 204 ? "" : await response.text());
}

/**
 * `xtask gen ARGS` into the server, in pieces of bounded size: what lies behind at once, what lies ahead when its time
 * has come, until the server is stopped. `change` gets each line and its moment (ms) and gives what is written in its
 * place. Resolves when the past is in, to what it took.
 */
export function feed(at, server, args, change = (line) => line) {
  const begun = performance.now();
  const child = spawn(XTASK, ["gen", ...args.map(String)], { stdio: ["ignore", "pipe", "inherit"] });
  const stopped = new AbortController();
  const told = { lines: 0, bytes: 0, seconds: 0 };
  let past;
  const isIn = new Promise((resolve, reject) => (past = { resolve, reject }));
  const run = async () => {
    let piece = [];
    let size = 0;
    let rest = "";
    let isPast = true;
    const send = async () => {
      if (size === 0) return;
      await write(server, piece.join("\n"));
      told.lines += piece.length;
      told.bytes += size;
      piece = [];
      size = 0;
    };
    let last = 0;
    for await (const text of child.stdout.setEncoding("utf8")) {
      const lines = `${rest}${text}`.split("\n");
      rest = lines.pop();
      for (const line of lines) {
        const moment = Number(line.slice(line.lastIndexOf(" ") + 1)) / 1e6;
        if (moment !== last) {
          if (moment > Date.now()) {
            await send();
            if (isPast) past.resolve({ ...told, seconds: (performance.now() - begun) / 1000 });
            isPast = false;
            // Generated cycles come at their own pace.
            await sleep(Math.max(0, moment - Date.now()), undefined, { signal: stopped.signal });
          }
          last = moment;
        }
        const changed = change(line, moment);
        if (changed === null) continue;
        piece.push(changed);
        size += changed.length;
        if (size > WRITE_BYTES) await send();
      }
    }
    await send();
    past.resolve({ ...told, seconds: (performance.now() - begun) / 1000 });
  };
  const done = run().catch((error) => {
    if (!stopped.signal.aborted) past.reject(error);
  });
  at.undo.push(async () => {
    stopped.abort();
    await stop(child);
    await done;
  });
  return isIn;
}

/** A VM's generated line in parts. */
export function parse(line) {
  const [, head, fields, time] = /^(\S+) (\S+) (\d+)$/.exec(line);
  const [table, ...tags] = head.split(",");
  return {
    table,
    tags: Object.fromEntries(tags.map((tag) => tag.split("="))),
    fields: Object.fromEntries(fields.split(",").map((it) => it.split("="))),
    time,
  };
}

export function format({ table, tags, fields, time }) {
  const pairs = (of) => Object.entries(of).map(([key, value]) => `${key}=${value}`);
  return `${[table, ...pairs(tags)].join(",")} ${pairs(fields).join(",")} ${time}`;
}

/** HH:MM:SS of a moment, as pages in UTC show it. */
export function clock(ms) {
  return new Date(ms).toISOString().slice(11, 19);
}

const PREFIXES = { "": 1, k: 1e3, M: 1e6, G: 1e9, T: 1e12, Ki: 1024, Mi: 1024 ** 2, Gi: 1024 ** 3, Ti: 1024 ** 4 };

/** The number that a person reads: bytes of "1.5 GiB", bytes a second of "12 kB/s", 3.4 of "3.4%"; NaN of "–". */
export function amount(text) {
  const match = /(−|\+)?([\d.,]+)\s*(?:(%)|(Ki|Mi|Gi|Ti|k|M|G|T)?(?:B(?:\/s)?)?)/.exec(text);
  if (match === null) return Number.NaN;
  return (match[1] === "−" ? -1 : 1) * Number(match[2].replaceAll(",", "")) * PREFIXES[match[4] ?? ""];
}

/** Pages show three digits. */
export function assertShown(text, value, what) {
  const shown = amount(text);
  assert.ok(
    Math.abs(shown - value) <= Math.max(0.006 * Math.abs(value), 0.051),
    `${what}: the page shows ${text}, it is ${value}`,
  );
}

/** A chart's data as its CSV has it: moments and columns. */
export async function saved(page, title) {
  const [download] = await Promise.all([
    page.waitForEvent("download"),
    page.getByRole("button", { name: `Save ${title} as CSV`, exact: true }).click(),
  ]);
  const rows = readFileSync(await download.path(), "utf8")
    .trim()
    .split("\r\n")
    .slice(1)
    .map((line) => line.split(","));
  return {
    times: rows.map(([time]) => Date.parse(time)),
    columns: rows[0].slice(1).map((_, i) => rows.map((row) => (row[i + 1] === "" ? null : Number(row[i + 1])))),
  };
}
