// The dashboard's server, made up: serves dist/ with the real one's headers and the API of src/api.ts with invented data.
// For developing the pages and for their tests; needs nothing but node.
//
//   node mock/server.mjs [--port 8178] [--vms 24] [--hosts 3] [--base /kvm/] [--seed 1] [--interval 5000]
//                        [--scenario normal|fresh|empty|no-vms|no-permission] [--token SECRET] [--parts 15]
//
// A test steers it by requests below `mock/` (see `control`).
import { EventEmitter } from "node:events";
import { createServer } from "node:http";
import { readFileSync, existsSync } from "node:fs";
import { join, normalize, extname } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { World } from "./world.mjs";

const CSP =
  "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'self'; " +
  "form-action 'self'; frame-ancestors 'none'";
const TYPES = { ".js": "text/javascript", ".css": "text/css", ".txt": "text/plain; charset=utf-8", ".html": "text/html; charset=utf-8" };
/** Events a reader may have missed and still resume behind. */
const RESUMABLE = 60;
const TROUBLE = `event: trouble\ndata: ${JSON.stringify({ error: "InfluxDB at https://influx.example:8181 does not answer: <b>connection refused</b>" })}\n\n`;
const DIST = fileURLToPath(new URL("../dist", import.meta.url));

/** Longer than this a range takes as many parts as `parts` says, if any. */
const LONG_MS = 48 * 3_600_000;
/** A part's time, where time goes by itself. */
const PART_MS = 400;

/** Starts a server; `close` ends it. With `pace: 0` time stands still until a test pushes cycles, and goes on with parts. */
export async function serve({ port = 0, base = "/", token = null, pace, scenario = "normal", parts = 0, ...shape } = {}) {
  const world = new World(shape);
  world.scenario = scenario;
  const readers = new Set();
  const sockets = new Set();
  /** Answers in parts that are not whole yet. */
  const unfinished = new Set();
  const counts = { streams: 0, resumed: 0, requests: {}, inParts: 0, givenUp: 0 };
  /** Says `change` whenever the counts have changed: a test waits for that. */
  const changes = new EventEmitter();
  const changed = () => changes.emit("change");
  let auth = token;
  let down = false;
  /** Where the points are kept does not answer: no cycle has new values. */
  let troubled = false;
  let event = 1;
  let body = JSON.stringify(world.fleet());

  const timer = (pace ?? world.interval) > 0 ? setInterval(() => cycle(1), pace ?? world.interval) : null;
  const partTimer = (pace ?? world.interval) > 0 && parts > 0 ? setInterval(() => goOn(1), PART_MS) : null;
  const beat = setInterval(() => readers.forEach((reader) => reader.write("event: beat\ndata: {}\n\n")), 15_000);

  function cycle(times) {
    for (let i = 0; i < times; i += 1) {
      world.now += world.interval;
      if (troubled) {
        for (const reader of readers) reader.write(TROUBLE);
        continue;
      }
      event += 1;
      body = JSON.stringify(world.fleet());
      for (const reader of readers) reader.write(`id: ${event}\nevent: fleet\ndata: ${body}\n\n`);
    }
  }

  function live(request, response) {
    response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-store" });
    const last = Number(request.headers["last-event-id"] ?? event);
    if (event - last > RESUMABLE) response.write(`id: ${event}\nevent: hole\ndata: {}\n\n`);
    response.write(`retry: 1000\nid: ${event}\nevent: fleet\ndata: ${body}\n\n`);
    if (troubled) response.write(TROUBLE);
    readers.add(response);
    counts.streams += 1;
    if (request.headers["last-event-id"] !== undefined) counts.resumed += 1;
    changed();
    response.on("close", () => {
      readers.delete(response);
      counts.streams -= 1;
      changed();
    });
  }

  /** Begins an answer in lines; `goOn` brings the rest. */
  function inParts(response, answer) {
    response.writeHead(200, { "content-type": "application/x-ndjson", "cache-control": "no-store" });
    const one = { response, answer, done: 0 };
    unfinished.add(one);
    counts.inParts += 1;
    response.on("close", () => {
      if (unfinished.delete(one)) counts.givenUp += 1;
      changed();
    });
    say(one);
    changed();
  }

  function goOn(n) {
    for (const one of unfinished) {
      one.done = Math.min(parts, one.done + n);
      say(one);
      if (one.done === parts) finish(one, `${JSON.stringify(one.answer)}\n`);
    }
  }

  function say({ response, done }) {
    response.write(`${JSON.stringify({ done, of: parts })}\n`);
  }

  function finish(one, last) {
    unfinished.delete(one);
    one.response.end(last);
  }

  /** mock/…: what a test may do to this world. Answers with the counts and the newest reading's time. */
  function control(path, query) {
    if (path === "push") cycle(Number(query.get("n") ?? 1));
    if (path === "scenario") world.scenario = query.get("name");
    if (path === "down") {
      down = query.get("on") === "1";
      if (down) readers.forEach((reader) => reader.destroy());
    }
    if (path === "cut") readers.forEach((reader) => reader.destroy());
    if (path === "hole") readers.forEach((reader) => reader.write(`id: ${event}\nevent: hole\ndata: {}\n\n`));
    if (path === "trouble") {
      troubled = query.get("on") === "1";
      if (troubled) readers.forEach((reader) => reader.write(TROUBLE));
    }
    if (path === "parts") goOn(Number(query.get("n")));
    if (path === "parts-fail") unfinished.forEach((one) => finish(one, `${JSON.stringify({ error: query.get("error") })}\n`));
    if (path === "parts-break") unfinished.forEach((one) => finish(one, ""));
    if (path === "add") world.vms.push(world.makeVm(world.made++));
    if (path === "remove") world.vms = world.vms.filter((vm) => vm.uuid !== query.get("uuid"));
    return { ...counts, at: JSON.parse(body).at };
  }

  function api(request, response, path, query) {
    const json = (value, status = 200, headers = {}) => {
      response.writeHead(status, { "content-type": "application/json", "cache-control": "no-store", ...headers });
      response.end(typeof value === "string" ? value : JSON.stringify(value));
    };
    const kind = path.replace(/[0-9a-f-]{36}/, "*");
    counts.requests[kind] = (counts.requests[kind] ?? 0) + 1;
    changed();
    const loggedIn = auth === null || (request.headers.cookie ?? "").includes(`kvmetry=${auth}`);
    if (path === "session") {
      if (request.method === "GET") return json({ login: loggedIn, needed: auth !== null });
      if (request.method === "DELETE") return response.writeHead(204, { "set-cookie": "kvmetry=; Max-Age=0; Path=/" }).end();
      let text = "";
      request.on("data", (part) => (text += part));
      request.on("end", () => {
        if (JSON.parse(text).token !== auth) return json({ error: "this token is not known; kvmetry token makes one" }, 401);
        response.writeHead(204, { "set-cookie": `kvmetry=${auth}; HttpOnly; SameSite=Strict; Path=${base}` }).end();
      });
      return undefined;
    }
    if (!loggedIn) return json({ error: "a token is needed" }, 401);
    if (path === "fleet") return json(body);
    if (path === "fleet/history") return json(world.history(Number(query.get("points") ?? 60)));
    if (path === "live") return live(request, response);
    if (path === "collector") return json(world.collector());
    if (path.startsWith("vm/")) {
      const vm = world.vms.find((one) => one.uuid === path.slice(3));
      if (vm === undefined || world.isBare()) return json({ error: "the store holds nothing of this VM" }, 404);
      const number = (name) => (query.has(name) ? Number(query.get(name)) : undefined);
      const page = world.page(vm, { from: number("from"), to: number("to"), span: number("span"), points: number("points") ?? 1000, step: number("step") });
      return parts > 0 && page.to - page.from > LONG_MS ? inParts(response, page) : json(page);
    }
    return json({ error: `no such address: api/${path}` }, 404);
  }

  const server = createServer((request, response) => {
    const url = new URL(request.url, "http://mock");
    response.setHeader("content-security-policy", CSP);
    response.setHeader("x-content-type-options", "nosniff");
    response.setHeader("referrer-policy", "no-referrer");
    if (!url.pathname.startsWith(base)) return response.writeHead(404).end(`everything is below ${base}\n`);
    const path = url.pathname.slice(base.length);
    if (path.startsWith("mock/")) return response.end(JSON.stringify(control(path.slice(5), url.searchParams)));
    if (down) return request.socket.destroy();
    if (path.startsWith("api/")) return api(request, response, path.slice(4), url.searchParams);
    const file = join(DIST, normalize(path));
    if (path !== "" && path !== "index.html" && file.startsWith(DIST) && existsSync(file) && extname(file) !== "") {
      response.writeHead(200, { "content-type": TYPES[extname(file)] ?? "application/octet-stream", "cache-control": "public, max-age=31536000, immutable" });
      return response.end(readFileSync(file));
    }
    if (path !== "" && path !== "collector" && !/^vm\/[^/]+$/.test(path)) return response.writeHead(404).end("not found\n");
    response.writeHead(200, { "content-type": TYPES[".html"], "cache-control": "no-cache" });
    return response.end(readFileSync(join(DIST, "index.html"), "utf8").replace('<base href="/">', `<base href="${base}">`));
  });
  server.on("connection", (socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
  });
  await new Promise((resolve) => server.listen(port, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${server.address().port}${base}`,
    world,
    counts,
    changes,
    /** From now on this token is asked for; null: none. */
    setToken(token) {
      auth = token;
      readers.forEach((reader) => reader.destroy());
    },
    close() {
      clearInterval(timer);
      clearInterval(partTimer);
      clearInterval(beat);
      sockets.forEach((socket) => socket.destroy());
      return new Promise((resolve) => server.close(resolve));
    },
  };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { values } = parseArgs({
    options: Object.fromEntries(
      ["port", "vms", "hosts", "base", "seed", "interval", "scenario", "token", "parts"].map((name) => [name, { type: "string" }]),
    ),
  });
  const numbers = Object.fromEntries(
    ["port", "vms", "hosts", "seed", "interval", "parts"].filter((name) => values[name] !== undefined).map((name) => [name, Number(values[name])]),
  );
  const mock = await serve({ port: 8178, base: values.base ?? "/", token: values.token ?? null, scenario: values.scenario ?? "normal", ...numbers });
  console.log(mock.url);
}
