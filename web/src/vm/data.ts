// A VM's page as it grows: the newest piece is put behind what is there, and what left the range is dropped, so that a live page
// holds as much after a day as after a minute.
import type { Mark, Panel, Series, VmPage } from "../api.ts";

/** Readings at the end that are asked for again: the newest of them may not have been whole. */
const OVERLAP_INTERVALS = 3;

/** From where on the newest piece is asked for: the newest bucket again, or the last few readings. */
export function pieceFrom(page: VmPage, interval: number): number {
  let newest = page.from;
  for (const panel of page.panels) newest = Math.max(newest, panel.times[panel.times.length - 1] ?? page.from);
  return Math.max(page.from, page.step === null ? newest - OVERLAP_INTERVALS * interval : newest);
}

/** `page` with `piece` in place of everything from the piece's beginning on, cut to from..to. */
export function joined(page: VmPage, piece: VmPage, from: number, to: number): VmPage {
  const fresh = new Map(piece.panels.map((panel) => [panel.id, panel]));
  const known = new Set(page.panels.map((panel) => panel.id));
  return {
    ...page,
    names: piece.names,
    host: piece.host,
    now: piece.now,
    from,
    to,
    panels: [
      ...page.panels.map((panel) => joinedPanel(panel, fresh.get(panel.id), from, piece.from)),
      ...piece.panels.filter((panel) => !known.has(panel.id)),
    ],
    marks: joinedMarks(page.marks, piece.marks, from),
  };
}

function joinedPanel(old: Panel, piece: Panel | undefined, from: number, cut: number): Panel {
  const begin = lowerBound(old.times, from);
  const end = piece === undefined ? old.times.length : lowerBound(old.times, cut);
  const times = [...old.times.slice(begin, end), ...(piece?.times ?? [])];
  const series = old.series.map((series): Series => {
    const tail = piece?.series.find(({ id }) => id === series.id);
    const missing = piece === undefined ? [] : new Array<null>(piece.times.length).fill(null);
    const join = (head: (number | null)[], more: (number | null)[] | undefined) => [...head.slice(begin, end), ...(more ?? missing)];
    return {
      ...series,
      mean: join(series.mean, tail?.mean),
      // A piece without its own (one reading a bucket) is its own least and most.
      min: series.min === null ? null : join(series.min, tail?.min ?? tail?.mean),
      max: series.max === null ? null : join(series.max, tail?.max ?? tail?.mean),
    };
  });
  return { ...old, times, series, sql: old.sql };
}

function joinedMarks(old: Mark[], piece: Mark[], from: number): Mark[] {
  const key = (mark: Mark) => `${mark.at} ${mark.kind} ${mark.text}`;
  const known = new Set(old.map(key));
  return [...old, ...piece.filter((mark) => !known.has(key(mark)))].filter((mark) => mark.at >= from).sort((a, b) => a.at - b.at);
}

/** The index of the first that is not before `value`. */
export function lowerBound(sorted: number[], value: number): number {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((sorted[middle] ?? 0) < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

export interface DeviceGroup {
  kind: string;
  device: string;
  panels: Panel[];
}

/** Panels of the VM as a whole, and those of each device (ids `nic:vnet0:bytes`, of which the device's name may hold colons). */
export function grouped(panels: Panel[]): { whole: Panel[]; devices: DeviceGroup[] } {
  const whole: Panel[] = [];
  const devices = new Map<string, DeviceGroup>();
  for (const panel of panels) {
    const [first, last] = [panel.id.indexOf(":"), panel.id.lastIndexOf(":")];
    if (first < 0 || last === first) {
      whole.push(panel);
      continue;
    }
    const id = panel.id.slice(0, last);
    const group = devices.get(id);
    if (group !== undefined) group.panels.push(panel);
    else devices.set(id, { kind: panel.id.slice(0, first), device: panel.id.slice(first + 1, last), panels: [panel] });
  }
  return { whole, devices: [...devices.values()] };
}

/** The newest value that is known. */
export function newest(values: (number | null)[]): number | null {
  for (let i = values.length - 1; i >= 0; i -= 1) {
    const value = values[i];
    if (value !== null && value !== undefined) return value;
  }
  return null;
}
