// What a panel shows as CSV (RFC 4180): one line a point, times in UTC, a gap is an empty cell, values in the panel's own unit.
import type { Panel } from "../api.ts";
import { lowerBound } from "./data.ts";

export function csv(panel: Panel, from: number, to: number): string {
  const head = ["time"];
  const columns: (number | null)[][] = [];
  for (const series of panel.series) {
    head.push(`${series.label} (${panel.unit})`);
    columns.push(series.mean);
    if (series.min === null || series.max === null) continue;
    head.push(`${series.label} min (${panel.unit})`, `${series.label} max (${panel.unit})`);
    columns.push(series.min, series.max);
  }
  const lines = [head.map(cell).join(",")];
  for (let i = lowerBound(panel.times, from); i < panel.times.length; i += 1) {
    const time = panel.times[i] ?? 0;
    if (time > to) break;
    lines.push([new Date(time).toISOString(), ...columns.map((column) => column[i] ?? "")].join(","));
  }
  return `${lines.join("\r\n")}\r\n`;
}

/** Quoted where it must be. A leading = + - @ would be a formula to a spreadsheet: a quote before it makes it text. */
function cell(text: string): string {
  const plain = /^[=+\-@\t]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(plain) ? `"${plain.replaceAll('"', '""')}"` : plain;
}

/** A file name that every system takes. */
export function fileName(vm: string, panel: string, from: number): string {
  const safe = (text: string) => text.replace(/[^\p{L}\p{N}._-]+/gu, "_").slice(0, 60);
  return `${safe(vm)}-${safe(panel)}-${new Date(from).toISOString().slice(0, 19).replaceAll(":", "")}.csv`;
}
