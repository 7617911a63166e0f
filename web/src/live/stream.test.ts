// One connection through its troubles, on a made-up EventSource and a clock that the test turns.
import { mock, test } from "node:test";
import assert from "node:assert/strict";
import { RETRY_FIRST_MS, RETRY_MOST_MS, SILENCE_MS, Stream, TROUBLE_CHARS, type News } from "./stream.ts";

class FakeSource extends EventTarget {
  static readonly CLOSED = 2;
  static made: FakeSource[] = [];
  readyState = 0;
  onopen: (() => void) | null = null;
  onerror: (() => void) | null = null;
  constructor(readonly url: string) {
    super();
    FakeSource.made.push(this);
  }
  close(): void {
    this.readyState = 2;
  }
  opens(): void {
    this.readyState = 1;
    this.onopen?.();
  }
  /** `fatal`: the server refused; else the browser tries again by itself. */
  fails(fatal: boolean): void {
    this.readyState = fatal ? 2 : 0;
    this.onerror?.();
  }
  says(kind: string, data: string): void {
    this.dispatchEvent(Object.assign(new Event(kind), { data }));
  }
}

/** A stream, what it told, and its newest connection. */
function start() {
  mock.timers.reset();
  mock.timers.enable({ apis: ["setTimeout"] });
  (globalThis as { EventSource?: unknown }).EventSource = FakeSource;
  FakeSource.made = [];
  const told: News[] = [];
  const stream = new Stream("api/live", (news) => told.push(news));
  stream.open();
  const newest = () => FakeSource.made[FakeSource.made.length - 1] as FakeSource;
  return { stream, told, newest, made: () => FakeSource.made.length, kinds: () => told.map((news) => (news.kind === "link" ? news.up : news.kind)) };
}

test("a break is told once, and its end", () => {
  const { newest, made, kinds } = start();
  newest().opens();
  newest().says("fleet", "{}");
  newest().fails(false);
  newest().fails(false);
  newest().opens();
  newest().says("hole", "{}");
  assert.deepEqual(kinds(), [true, "fleet", false, true, "hole"]);
  assert.equal(made(), 1, "the browser resumes by itself");
});

test("a refusal is tried again, ever slower up to a bound, quickly again after it worked", () => {
  const { newest, made } = start();
  let wait = RETRY_FIRST_MS;
  for (let tries = 1; tries <= 8; tries += 1) {
    newest().fails(true);
    mock.timers.tick(wait - 1);
    assert.equal(made(), tries);
    mock.timers.tick(1);
    assert.equal(made(), tries + 1);
    wait = Math.min(2 * wait, RETRY_MOST_MS);
  }
  newest().opens();
  newest().fails(true);
  mock.timers.tick(RETRY_FIRST_MS);
  assert.equal(made(), 10);
});

test("silence is a dead connection; a beat is none", () => {
  const { newest, made, kinds } = start();
  newest().opens();
  mock.timers.tick(SILENCE_MS - 1);
  newest().says("beat", "{}");
  mock.timers.tick(SILENCE_MS - 1);
  assert.equal(made(), 1);
  mock.timers.tick(1);
  assert.equal(made(), 2);
  assert.deepEqual(kinds(), [true, false]);
});

test("who joins late hears the state and the newest cycle; what was given up is forgotten", () => {
  const { stream, newest, made } = start();
  assert.deepEqual(stream.recall(), []);
  newest().opens();
  newest().says("fleet", "1");
  newest().says("fleet", "2");
  assert.deepEqual(stream.recall(), [{ kind: "link", up: true, since: null }, { kind: "fleet", json: "2" }]);
  stream.close();
  assert.deepEqual(stream.recall(), []);
  mock.timers.tick(10 * SILENCE_MS);
  assert.equal(made(), 1, "nothing is opened while nobody looks");
});

test("trouble is told in the server's words, also to who joins late, until the next cycle", () => {
  const { stream, newest, told } = start();
  newest().opens();
  newest().says("fleet", "1");
  newest().says("trouble", JSON.stringify({ error: "InfluxDB: <b>refused</b>" }));
  const trouble: News = { kind: "trouble", text: "InfluxDB: <b>refused</b>" };
  assert.deepEqual(told[told.length - 1], trouble);
  const up: News = { kind: "link", up: true, since: null };
  assert.deepEqual(stream.recall(), [up, { kind: "fleet", json: "1" }, trouble]);
  // The connection is up for as long as anything is heard.
  mock.timers.tick(SILENCE_MS - 1);
  newest().says("trouble", JSON.stringify({ error: "x".repeat(TROUBLE_CHARS + 1) }));
  assert.deepEqual(told[told.length - 1], { kind: "trouble", text: `${"x".repeat(TROUBLE_CHARS)}…` });
  mock.timers.tick(SILENCE_MS - 1);
  newest().says("fleet", "2");
  assert.deepEqual(stream.recall(), [up, { kind: "fleet", json: "2" }]);
  newest().says("trouble", JSON.stringify({ error: "again" }));
  stream.close();
  assert.deepEqual(stream.recall(), []);
});
