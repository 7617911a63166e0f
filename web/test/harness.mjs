// What all browser tests share: a server (the mock, or a real one named by KVMETRY_URL), Debian's Chromium, and pages on which any
// console error, exception, violation of the content security policy or request to elsewhere fails the test.
//
//   npm run test:browser                                           against the mock, on ports of its own
//   KVMETRY_URL=http://127.0.0.1:8177/ npm run test:browser        against a running server: what needs the mock is skipped
//   CHROMIUM=/path/to/chromium                                     another browser
//
// Tests wait for conditions, never for time to pass.
import assert from "node:assert/strict";
import { once } from "node:events";
import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { after, before } from "node:test";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";
import { serve } from "../mock/server.mjs";

const root = fileURLToPath(new URL("..", import.meta.url));
/** Where pictures go: web/target/shots. */
export const SHOTS = join(root, "target/shots");
/** A condition that has not come true by then never will, on however busy a machine. */
const PATIENCE_MS = 120_000;

export const real = process.env.KVMETRY_URL ?? null;
/** For tests that steer the server: `test("…", mockOnly, …)`. */
export const mockOnly = { skip: real === null ? false : "needs the mock" };

const axe = readFileSync(join(root, "node_modules/axe-core/axe.min.js"), "utf8");

/** A server and a browser for one file of tests. `shape` is the mock's; its time stands still until `push`. */
export function setUp(shape = {}) {
  const at = { browser: null, mock: null, url: real };
  before(async () => {
    if (!existsSync(join(root, "dist/index.html"))) throw new Error("dist/ is missing: npm run build");
    mkdirSync(SHOTS, { recursive: true });
    if (real === null) {
      at.mock = await serve({ pace: 0, ...shape });
      at.url = at.mock.url;
    }
    at.browser = await chromium.launch({
      executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
      args: ["--no-sandbox", "--enable-precise-memory-info"],
      timeout: PATIENCE_MS,
    });
  });
  after(async () => {
    await at.browser?.close();
    await at.mock?.close();
  });
  return at;
}

/** A zone in which it is about noon, whenever the tests run: what a few hours before or after now is told without its day. */
function noonZone() {
  const ahead = 12 - new Date().getUTCHours();
  // POSIX's sign: west is plus.
  return ahead === 0 ? "Etc/GMT" : `Etc/GMT${ahead > 0 ? "-" : "+"}${Math.abs(ahead)}`;
}

/** Runs `use` with a page (of a browser context of its own) and fails for anything the page complained about, unless `expected` knows it. */
export async function withPage(at, options, use) {
  const { expected, width = 1440, height = 900, scheme = "light", prepare, ...rest } = options;
  const context = await at.browser.newContext({ viewport: { width, height }, colorScheme: scheme, reducedMotion: "reduce", timezoneId: noonZone(), ...rest });
  context.setDefaultTimeout(PATIENCE_MS);
  const complaints = [];
  const open = async () => {
    const page = await context.newPage();
    watch(page, at.url, complaints);
    return page;
  };
  try {
    if (prepare !== undefined) await context.addInitScript(prepare);
    await use(await open(), open, context);
    const unexpected = complaints.filter((complaint) => expected === undefined || !expected.test(complaint));
    assert.deepEqual(unexpected, [], "what the browser complained about");
  } finally {
    await context.close();
    // What this test's worker held is not to be taken for the next one's.
    if (at.mock !== null) await served(at, "the streams end with their browser", (counts) => counts.streams === 0);
  }
}

function watch(page, url, complaints) {
  page.on("console", (message) => {
    if (message.type() === "error" || message.type() === "warning") complaints.push(`console: ${message.text()}`);
  });
  page.on("pageerror", (error) => complaints.push(`exception: ${error.stack ?? error.message}`));
  page.on("dialog", (dialog) => {
    complaints.push(`dialog: ${dialog.message()}`);
    void dialog.dismiss();
  });
  const { origin } = new URL(url);
  page.on("request", (request) => {
    const to = request.url();
    if (!to.startsWith(origin) && !to.startsWith("data:") && !to.startsWith("blob:")) complaints.push(`request to ${to}`);
  });
}

/** Steers the mock; answers with its counts. */
export async function steer(at, what = "state") {
  const response = await fetch(new URL(`mock/${what}`, at.url));
  return response.json();
}

/** Until `ask` gives something true; asked once a frame, for a page changes with its drawing. */
export async function until(page, what, ask) {
  const end = performance.now() + PATIENCE_MS;
  for (;;) {
    const value = await ask();
    if (value) return value;
    if (performance.now() > end) assert.fail(`never came true: ${what}`);
    await page.evaluate(() => new Promise(requestAnimationFrame));
  }
}

/** Until the mock's counts are as `ask` wants them; asked at each change. */
export async function served(at, what, ask) {
  const signal = AbortSignal.timeout(PATIENCE_MS);
  while (!ask(at.mock.counts)) {
    await once(at.mock.changes, "change", { signal }).catch(() => assert.fail(`never came true: ${what}: ${JSON.stringify(at.mock.counts)}`));
  }
}

/** Pushes cycles; each of the pages shows the newest one. */
export async function cycle(at, pages, n = 1) {
  const { at: reading } = await steer(at, `push?n=${n}`);
  await Promise.all(pages.map((page) => showing(page, reading)));
}

async function showing(page, reading) {
  const time = await page.evaluate((ms) => new Date(ms).toLocaleTimeString("en-GB"), reading);
  // On a small screen it is there, but not seen.
  await page.locator(".link time", { hasText: time }).waitFor({ state: "attached" });
}

/** The fleet page with its rows there. */
export async function openFleet(at, page, query = "") {
  await page.goto(new URL(`./${query}`, at.url).href);
  await page.locator(".vms tbody th.name a").first().waitFor();
}

export async function openVm(at, page, uuid, query = "") {
  await page.goto(new URL(`vm/${uuid}${query}`, at.url).href);
  // On a small screen the charts are below the window, and not drawn until they come near.
  await page.locator(".chart").first().scrollIntoViewIfNeeded();
  await page.locator(".chart .u-over").first().waitFor();
}

/** A VM that the server has: the mock's by number, else the first of the real one. */
export async function someVm(at, index = 0) {
  if (at.mock !== null) return at.mock.world.vms[index];
  const fleet = await (await fetch(new URL("api/fleet", at.url))).json();
  return { uuid: fleet.vms[0].uuid, names: [fleet.vms[0].name] };
}

export function names(page) {
  return page.locator(".vms tbody th.name a").allTextContents();
}

/** Fails for anything that axe calls serious or critical. */
export async function checkAccessible(page, what) {
  // By the debugger, which the page's content security policy does not bind.
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
  const grave = violations
    .filter(({ impact }) => impact === "serious" || impact === "critical")
    .map(({ id, impact, nodes }) => `${what}: ${impact} ${id}: ${nodes.slice(0, 3).map((node) => `${node.html.slice(0, 140)} ${node.any[0]?.message ?? ""}`).join(" | ")}`);
  assert.deepEqual(grave, []);
}

/** The page itself is never wider than the window; what is in it may scroll within its own box. */
export async function checkWidth(page, what) {
  const over = await page.evaluate(() => {
    const { scrollWidth, clientWidth } = document.documentElement;
    return scrollWidth - clientWidth;
  });
  assert.ok(over <= 0, `${what} is ${over} px wider than the window`);
}

/** Replaces what the page believes of its own visibility: headless Chromium calls every tab visible. */
export function setVisible(page, visible) {
  return page.evaluate((state) => {
    Object.defineProperty(document, "visibilityState", { value: state, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
  }, visible ? "visible" : "hidden");
}
