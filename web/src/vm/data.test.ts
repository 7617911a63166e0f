// Joining the newest piece to a page, cutting, grouping, CSV: what the charts are given.
import { test } from "node:test";
import assert from "node:assert/strict";
import type { Panel, VmPage } from "../api.ts";
import { csv, fileName } from "./csv.ts";
import { grouped, joined, lowerBound, newest, pieceFrom } from "./data.ts";
import { moved } from "./moved.ts";

type Values = (number | null)[];

function panel(id: string, times: number[], mean: Values, bounds?: { min: Values; max: Values }, unit = "percent"): Panel {
  return { id, title: id, unit, times, sql: "", series: [{ id: "a", label: "a", mean, min: bounds?.min ?? null, max: bounds?.max ?? null }] };
}
function page(from: number, to: number, panels: Panel[], change: Partial<VmPage> = {}): VmPage {
  return { names: ["x"], uuid: "u", host: "h", from, to, step: null, table: "raw", now: null, panels, marks: [], notes: [], ...change };
}

test("the piece takes the place of everything from its beginning on, the past is cut", () => {
  const old = page(0, 30, [panel("cpu", [0, 10, 20, 30], [1, 2, null, 4])]);
  const result = joined(old, page(20, 40, [panel("cpu", [20, 30, 40], [3, 4, 5])]), 10, 40);
  assert.deepEqual(result.panels[0]?.times, [10, 20, 30, 40]);
  assert.deepEqual(result.panels[0]?.series[0]?.mean, [2, 3, 4, 5]);
  assert.deepEqual([result.from, result.to], [10, 40]);
});

test("buckets keep their bounds; a piece without bounds is its own", () => {
  const old = page(0, 30, [panel("cpu", [0, 10], [1, 2], { min: [0, 1], max: [5, 6] })], { step: 10 });
  const result = joined(old, page(10, 20, [panel("cpu", [10, 20], [3, 4])]), 0, 20);
  assert.deepEqual(result.panels[0]?.series[0]?.min, [0, 3, 4]);
  assert.deepEqual(result.panels[0]?.series[0]?.max, [5, 3, 4]);
});

test("a device that is new comes, one that is gone moves out, a series that is missing is a gap", () => {
  const old = page(0, 30, [panel("nic:a:bytes", [0, 10], [1, 2]), panel("cpu", [0, 10], [1, 2])]);
  const more = panel("cpu", [20], [9]);
  more.series = [{ id: "other", label: "other", mean: [9], min: null, max: null }];
  const result = joined(old, page(20, 30, [more, panel("nic:b:bytes", [20], [7])]), 10, 30);
  assert.deepEqual(result.panels.map(({ id, times }) => [id, times]), [["nic:a:bytes", [10]], ["cpu", [10, 20]], ["nic:b:bytes", [20]]]);
  assert.deepEqual(result.panels[1]?.series[0]?.mean, [2, null]);
});

test("marks are joined once", () => {
  const mark = (at: number) => ({ at, kind: "paused", text: "" });
  const result = joined(page(0, 30, [], { marks: [mark(5), mark(15)] }), page(10, 40, [], { marks: [mark(15), mark(35)] }), 10, 40);
  assert.deepEqual(result.marks.map(({ at }) => at), [15, 35]);
});

test("a day of live readings holds as much as an hour", () => {
  const [interval, span, day] = [5_000, 3_600_000, 17_280];
  let live = page(0, span, [panel("cpu", [], [])]);
  for (let cycle = 1; cycle <= day; cycle += 1) {
    const to = span + cycle * interval;
    const from = pieceFrom(live, interval);
    const times = [];
    for (let t = Math.max(Math.ceil(from / interval), cycle) * interval; t <= to; t += interval) times.push(t);
    live = joined(live, page(from, to, [panel("cpu", times, times.map(() => 1))]), to - span, to);
  }
  assert.equal(live.panels[0]?.times.length, span / interval + 1);
  assert.ok(live.panels[0]?.times.every((t, i, all) => i === 0 || t - (all[i - 1] ?? 0) === interval), "no gap, no repeat");
});

test("the newest piece begins at the newest bucket, or some readings before the newest", () => {
  const panels = [panel("a", [0, 10_000], [1, 1]), panel("b", [0, 20_000], [1, 1]), panel("c", [], [])];
  assert.equal(pieceFrom(page(0, 30_000, panels, { step: 10_000 }), 5000), 20_000);
  assert.equal(pieceFrom(page(0, 30_000, panels), 5000), 5000);
  assert.equal(pieceFrom(page(7, 30_000, []), 5000), 7);
});

test("search and the newest value", () => {
  assert.deepEqual([0, 1, 5, 9, 10].map((value) => lowerBound([1, 5, 9], value)), [0, 0, 1, 2, 3]);
  assert.equal(newest([1, 2, null]), 2);
  assert.equal(newest([null]), null);
  assert.equal(newest([]), null);
});

test("devices are groups; their names may hold colons", () => {
  const { whole, devices } = grouped(["cpu", "nic:a:b:bytes", "nic:a:b:packets", "disk:vda:bytes", "odd:one"].map((id) => panel(id, [], [])));
  assert.deepEqual(whole.map(({ id }) => id), ["cpu", "odd:one"]);
  assert.deepEqual(devices.map(({ kind, device, panels }) => [kind, device, panels.length]), [["nic", "a:b", 2], ["disk", "vda", 1]]);
});

test("CSV: what is in sight, a gap is empty, names cannot break out", () => {
  const shown = panel("cpu", [0, 1000, 2000, 3000], [1, null, 2.5, 4], { min: [0, null, 2, 3], max: [2, null, 3, 5] });
  if (shown.series[0]) shown.series[0].label = '=cmd,"x"';
  assert.equal(
    csv(shown, 1000, 2000),
    '"\'=cmd,""x"" (percent)"'.replace(/^/, "time,") + ',"\'=cmd,""x"" min (percent)","\'=cmd,""x"" max (percent)"\r\n' +
      "1970-01-01T00:00:01.000Z,,,\r\n1970-01-01T00:00:02.000Z,2.5,2,3\r\n",
  );
  assert.equal(fileName("<img src=x>/ü", "nic:vnet0:bytes", 0), "_img_src_x_ü-nic_vnet0_bytes-1970-01-01T000000.csv");
});

test("what moved: the moment and both levels of a step, and nothing of noise, of a spike, of a drift too small", () => {
  const times = Array.from({ length: 120 }, (_, i) => i * 5000);
  const noise = (i: number) => ((i * 7919) % 13) / 13;
  const move = (values: Values, unit = "percent") => moved(page(0, 600_000, [panel("cpu", times, values, undefined, unit)]), 5)[0];
  const step = move(times.map((_, i) => (i === 30 ? null : (i < 80 ? 10 : 60) + noise(i))));
  assert.equal(step?.at, 80 * 5000);
  assert.ok(Math.abs((step?.before ?? 0) - 10.5) < 0.5 && Math.abs((step?.after ?? 0) - 60.5) < 0.5);
  assert.equal(move(times.map((_, i) => 10 + noise(i))), undefined);
  assert.equal(move(times.map((_, i) => (i === 60 ? 100 : 10))), undefined);
  assert.equal(move(times.map((_, i) => (i < 60 ? 0 : 2))), undefined, "2% is too small to matter");
  assert.equal(move(times.map(() => null)), undefined);
  assert.equal(move(times.map((_, i) => (i < 60 ? 0 : 50)))?.after, 50, "out of nothing");
});
