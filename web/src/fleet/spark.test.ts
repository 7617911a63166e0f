// The ring behind a sparkline: buckets, gaps, and that it does not grow.
import { test } from "node:test";
import assert from "node:assert/strict";
import type { Vm } from "../api.ts";
import { POINTS, Sparks } from "./spark.ts";

const STEP = 15_000;
const reading = (at: number, cpu: number | null, uuid = "a") => [{ uuid, at, cpu } as Vm];
const at = (bucket: number) => bucket * STEP;
/** The last `n` values; a gap is null. */
const tail = (sparks: Sparks, bucket: number, n: number) =>
  [...sparks.values("a", at(bucket)).slice(POINTS - n)].map((value) => (Number.isNaN(value) ? null : value));

test("readings of one bucket are averaged", () => {
  const sparks = new Sparks();
  for (const [ms, cpu] of [[0, 10], [5_000, 20], [10_000, 60]] as const) sparks.add(reading(at(100) + ms, cpu));
  assert.deepEqual(tail(sparks, 100, 2), [null, 30]);
});

test("buckets without a reading are gaps, also when the ring has gone round", () => {
  const sparks = new Sparks();
  for (let bucket = 100; bucket < 300; bucket += 1) sparks.add(reading(at(bucket), 5));
  sparks.add(reading(at(303), 7));
  sparks.add(reading(at(304), null));
  assert.deepEqual(tail(sparks, 304, 6), [5, null, null, null, 7, null]);
  sparks.add(reading(at(304 + 2 * POINTS), 1));
  assert.deepEqual(tail(sparks, 304 + 2 * POINTS, POINTS).filter((value) => value !== null), [1]);
});

test("a VM that is late moves out to the left", () => {
  const sparks = new Sparks();
  sparks.add(reading(at(100), 8));
  assert.deepEqual(tail(sparks, 102, 3), [8, null, null]);
  assert.deepEqual(tail(sparks, 100 + POINTS, POINTS).filter((value) => value !== null), []);
});

test("history starts anew, the stream goes on behind it, an older reading changes nothing", () => {
  const sparks = new Sparks();
  sparks.add(reading(at(1), 99));
  sparks.seed({ from: at(100), step: STEP, cpu: { a: [1, null, 3] } });
  sparks.add(reading(at(103), 4));
  sparks.add(reading(at(101), 50));
  assert.deepEqual(tail(sparks, 103, 5), [null, 1, null, 3, 4]);
});

test("a VM that went takes its ring with it", () => {
  const sparks = new Sparks();
  for (let i = 0; i < 1000; i += 1) sparks.add(reading(at(i), 1, `vm-${i}`));
  assert.equal(sparks.size, 1);
});
