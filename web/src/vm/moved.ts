// What moved in the span that is looked at, and since when: the level of each series before and after the moment at which it
// changed most, those that changed most against their own noise first.
//
// The moment is where the cumulative sum of the deviations from the mean is farthest from zero (CUSUM, the usual estimate of one
// change in the mean). One pass a series; a spike that comes and goes is not a change of level and is left to the charts.
import type { Panel, Series, VmPage } from "../api.ts";
import { grouped } from "./data.ts";

export interface Move {
  panel: Panel;
  series: Series;
  at: number;
  before: number;
  after: number;
  score: number;
}

/** Fewer readings than this on either side say nothing. */
const FEWEST = 8;
/** A change of less than this many of the series' own standard deviations is noise. */
const LEAST_SCORE = 2;
/** And of less than this part of its level it is not worth a line. */
const LEAST_PART = 0.15;
/** Changes too small to matter whatever they are relative to, by unit. */
const LEAST: Record<string, number> = {
  percent: 3, KiB: 16_384, "KiB/s": 64, "bytes/s": 20_000, "count/s": 1, "faults/s": 10, count: 1, degrees: 3,
};

/** The `n` largest changes of level; of a device only its errors, for its traffic is in the sums already. */
export function moved(page: VmPage, n: number): Move[] {
  const { whole, devices } = grouped(page.panels);
  const faults = devices.flatMap((group) => group.panels.filter((panel) => /:(errors|faults)$/.test(panel.id)));
  const moves: Move[] = [];
  for (const panel of [...whole, ...faults]) {
    // The angle is the growth said otherwise.
    if (panel.unit === "degrees") continue;
    for (const series of panel.series) {
      const move = changeOf(panel, series);
      if (move !== null) moves.push(move);
    }
  }
  return moves.sort((a, b) => b.score - a.score).slice(0, n);
}

function changeOf(panel: Panel, series: Series): Move | null {
  const values: number[] = [];
  const times: number[] = [];
  series.mean.forEach((value, i) => {
    if (value === null) return;
    values.push(value);
    times.push(panel.times[i] ?? 0);
  });
  const count = values.length;
  if (count < 2 * FEWEST) return null;
  const mean = values.reduce((sum, value) => sum + value, 0) / count;

  let cumulated = 0;
  let farthest = 0;
  let split = 0;
  for (let i = 0; i < count - 1; i += 1) {
    cumulated += (values[i] ?? 0) - mean;
    if (i + 1 >= FEWEST && count - i - 1 >= FEWEST && Math.abs(cumulated) > Math.abs(farthest)) {
      farthest = cumulated;
      split = i + 1;
    }
  }
  if (split === 0) return null;
  const [before, after] = [average(values, 0, split), average(values, split, count)];
  const noise = Math.sqrt((scatter(values, 0, split, before) + scatter(values, split, count, after)) / count);
  const change = Math.abs(after - before);
  const level = Math.max(Math.abs(before), Math.abs(after));
  const least = LEAST[panel.unit] ?? 0;
  // A series without any noise (all zero, then not) would have an endless score.
  const score = change / Math.max(noise, level / 50, least / 10);
  if (score < LEAST_SCORE || change < LEAST_PART * level || change < least) return null;
  return { panel, series, at: times[split] ?? 0, before, after, score };
}

function average(values: number[], begin: number, end: number): number {
  let sum = 0;
  for (let i = begin; i < end; i += 1) sum += values[i] ?? 0;
  return sum / (end - begin);
}

function scatter(values: number[], begin: number, end: number, mean: number): number {
  let sum = 0;
  for (let i = begin; i < end; i += 1) sum += ((values[i] ?? 0) - mean) ** 2;
  return sum;
}
