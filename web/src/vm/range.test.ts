// Ranges in the address, and what zooming and panning make of them.
import { test } from "node:test";
import assert from "node:assert/strict";
import { bounds, DEFAULT, fixed, NARROWEST, parseRange, rangeQuery, scaled, shifted, WIDEST } from "./range.ts";

const NOW = 1_000_000_000_000;
const HOUR = 3_600_000;
const parsed = (query: string) => parseRange(new URLSearchParams(query));

test("addresses", () => {
  assert.deepEqual(parsed(""), DEFAULT);
  assert.deepEqual(parsed("range=6h"), { live: true, name: "6h", span: 6 * HOUR });
  assert.deepEqual(parsed("range=bogus"), DEFAULT);
  assert.deepEqual(parsed("from=1000000&to=2000000"), { live: false, from: 1_000_000, to: 2_000_000 });
  assert.deepEqual(parsed("from=2001-09-09T01:46:40Z&to=2001-09-09T02:46:40Z"), { live: false, from: NOW, to: NOW + HOUR });
  assert.deepEqual(parsed("from=2000000&to=1000000"), DEFAULT, "the wrong way round");
  assert.deepEqual(parsed("from=x&to=1000000"), DEFAULT);
});

test("an address leads back to its range", () => {
  for (const query of ["", "range=24h", "from=1000000&to=2000000"]) assert.equal(rangeQuery(parsed(query)), query);
});

test("never narrower or wider than there is something to see", () => {
  const narrow = fixed(NOW, NOW + 2);
  assert.equal(narrow.to - narrow.from, NARROWEST);
  const wide = fixed(0, NOW);
  assert.equal(wide.to - wide.from, WIDEST);
});

test("shifting and scaling", () => {
  assert.deepEqual(bounds(shifted(DEFAULT, NOW, -0.5), NOW), { from: NOW - 1.5 * HOUR, to: NOW - 0.5 * HOUR });
  assert.deepEqual(bounds(scaled(DEFAULT, NOW, 0.5), NOW), { from: NOW - 0.75 * HOUR, to: NOW - 0.25 * HOUR });
  // Wider than now would be the future: it grows into the past.
  assert.deepEqual(bounds(scaled(DEFAULT, NOW, 2), NOW), { from: NOW - 2 * HOUR, to: NOW });
});
