// What a person reads for a number: the edges of each unit.
import { test } from "node:test";
import assert from "node:assert/strict";
import * as units from "./units.ts";

type Case = [number | null, string];

function check(name: string, format: (value: number | null) => string, cases: Case[]): void {
  test(name, () => {
    for (const [value, expected] of cases) assert.equal(format(value), expected, `${name}(${value})`);
  });
}

check("percent", units.percent, [
  [0, "0.0%"], [0.04, "0.0%"], [-0.04, "0.0%"], [12.345, "12.3%"], [99.94, "99.9%"], [99.96, "100%"], [100, "100%"],
  [1234.5, "1235%"], [-3.21, "−3.2%"], [null, "–"], [NaN, "–"], [Infinity, "–"],
]);
check("kib", units.kib, [
  [0, "0 KiB"], [0.5, "0.5 KiB"], [1, "1 KiB"], [1023, "1023 KiB"], [1023.6, "1 MiB"], [1024, "1 MiB"], [1536, "1.5 MiB"],
  [4 * 1024 * 1024, "4 GiB"], [1024 ** 3, "1 TiB"], [-2048, "−2 MiB"], [1e15, "909 PiB"], [null, "–"],
]);
check("bytes", units.bytes, [[0, "0 B"], [100, "100 B"], [999, "999 B"], [1023, "1023 B"], [1024, "1 KiB"], [5e9, "4.66 GiB"], [null, "–"]]);
check("byteRate", units.byteRate, [
  [0, "0 B/s"], [0.25, "0.25 B/s"], [1.25, "1.3 B/s"], [10, "10 B/s"], [500, "500 B/s"], [999.4, "999 B/s"], [999.6, "1 kB/s"], [1500, "1.5 kB/s"],
  [12_345_678, "12.3 MB/s"], [1e9, "1 GB/s"], [1e24, "1000000 EB/s"], [-1500, "−1.5 kB/s"], [null, "–"],
]);
check("growth", units.growth, [
  [0, "0 KiB/s"], [1, "+1 KiB/s"], [1024, "+1 MiB/s"], [-1536, "−1.5 MiB/s"], [0.001, "0 KiB/s"], [null, "–"],
]);
check("count", units.count, [
  [0, "0"], [999, "999"], [1234, "1,234"], [99_999, "99,999"], [100_000, "100k"], [1_234_567, "1.23M"], [-1234, "−1,234"],
  [1.5, "1.5"], [null, "–"],
]);
check("countRate", (value) => units.countRate(value, "faults"), [
  [0, "0 faults/s"], [0.2, "0.2 faults/s"], [12.34, "12 faults/s"], [200, "200 faults/s"], [1234, "1.23k faults/s"], [null, "–"],
]);
check("degrees", units.degrees, [[0, "0.0°"], [-0.01, "0.0°"], [45, "45.0°"], [-89.96, "−90.0°"], [null, "–"]]);
check("ratio", units.ratio, [[0, "0.0%"], [0.995, "99.5%"], [1, "100%"], [null, "–"]]);
check("duration", units.duration, [
  [0, "0 s"], [0.4, "0.4 ms"], [850, "850 ms"], [999.6, "1 s"], [1500, "1.5 s"], [12_400, "12 s"], [59_999, "1 min"],
  [185_000, "3 min 5 s"], [3_600_000, "1 h"], [7_800_000, "2 h 10 min"], [356_400_000, "4 d 3 h"],
  [400 * 86_400_000, "400 d"], [5_000 * 86_400_000, "5,000 d"], [-5000, "−5 s"], [null, "–"],
]);

test("a unit of a newer server is shown with its own word", () => {
  assert.equal(units.formatter("volts")(12), "12 volts");
  assert.equal(units.formatter("volts")(null), "–");
});

test("times are the person's own and the full one says the zone", () => {
  const winter = Date.UTC(2026, 10, 30, 14, 4, 5);
  assert.equal(units.clock(winter), "15:04:05");
  assert.match(units.fullTime(winter), /^Mon,? 30 Nov 2026(,| at) 15:04:05 (CET|GMT\+1)$/);
  assert.match(units.zone(winter), /^Europe\/Berlin \((CET|GMT\+1)\)$/);
  assert.equal(units.shortTime(winter, winter + 3_600_000), "15:04:05");
  assert.equal(units.shortTime(winter, winter + 86_400_000), "30 Nov 15:04");
  assert.equal(units.shortTime(winter - 365 * 86_400_000, winter), "30 Nov 2025 15:04");
  assert.equal(units.toLocalInput(winter), "2026-11-30T15:04:05");
  assert.equal(units.clock(null), "–");
});

test("ticks say the day where it begins", () => {
  assert.equal(units.tick(Date.UTC(2026, 10, 29, 23), 3_600_000), "30 Nov");
  assert.equal(units.tick(Date.UTC(2025, 10, 30, 23), 30 * 86_400_000), "1 Dec 2025");
  assert.equal(units.tick(Date.UTC(2026, 10, 30, 14, 5), 300_000), "15:05");
  assert.equal(units.tick(Date.UTC(2026, 10, 30, 14, 5, 10), 10_000), "15:05:10");
  assert.equal(units.tick(Date.UTC(2026, 10, 30, 14, 5, 10), 86_400_000), "30 Nov");
});

test("states have words", () => {
  assert.equal(units.stateName(1), "running");
  assert.equal(units.stateName(null), "unknown");
  assert.equal(units.stateName(9), "state 9");
});
