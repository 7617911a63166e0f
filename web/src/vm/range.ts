// Which span of time is looked at, and its form in the address: `range=1h` follows the newest reading, `from=…&to=…` stands still.

export interface Following {
  live: true;
  name: string;
  span: number;
}
export interface Fixed {
  live: false;
  from: number;
  to: number;
}
export type Range = Following | Fixed;

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;

/** What the range picker offers: name in the address, length, words, words where there is little room. */
export const RANGES: { name: string; span: number; words: string; short: string }[] = [
  { name: "15m", span: 15 * MINUTE, words: "15 minutes", short: "15m" },
  { name: "1h", span: HOUR, words: "1 hour", short: "1h" },
  { name: "6h", span: 6 * HOUR, words: "6 hours", short: "6h" },
  { name: "24h", span: DAY, words: "24 hours", short: "24h" },
  { name: "7d", span: 7 * DAY, words: "7 days", short: "7d" },
  { name: "30d", span: 30 * DAY, words: "30 days", short: "30d" },
  { name: "90d", span: 90 * DAY, words: "90 days", short: "90d" },
  { name: "400d", span: 400 * DAY, words: "400 days", short: "400d" },
];

export const DEFAULT: Following = { live: true, name: "1h", span: HOUR };

/** Narrower than this there is nothing to see between two readings. */
export const NARROWEST = 20_000;
/** The roll-ups reach no further. */
export const WIDEST = 400 * DAY;

export function parseRange(query: URLSearchParams): Range {
  const from = moment(query.get("from"));
  const to = moment(query.get("to"));
  if (from !== null && to !== null && to > from) return fixed(from, to);
  const named = RANGES.find(({ name }) => name === query.get("range"));
  return named === undefined ? DEFAULT : { live: true, name: named.name, span: named.span };
}

/** The query that `parseRange` reads; empty for the default. */
export function rangeQuery(range: Range): string {
  if (!range.live) return `from=${range.from}&to=${range.to}`;
  return range.name === DEFAULT.name ? "" : `range=${range.name}`;
}

export function bounds(range: Range, now: number): { from: number; to: number } {
  return range.live ? { from: Math.round(now - range.span), to: Math.round(now) } : { from: range.from, to: range.to };
}

/** A span that is neither too narrow nor too wide, about the same middle. */
export function fixed(from: number, to: number): Fixed {
  const middle = (from + to) / 2;
  const span = Math.min(WIDEST, Math.max(NARROWEST, to - from));
  return { live: false, from: Math.round(middle - span / 2), to: Math.round(middle + span / 2) };
}

/** By a part of its own width: -0.5 is half a width earlier. */
export function shifted(range: Range, now: number, part: number): Fixed {
  const { from, to } = bounds(range, now);
  const by = (to - from) * part;
  return fixed(from + by, to + by);
}

/** 0.5 is half as wide, 2 twice; never into the future. */
export function scaled(range: Range, now: number, factor: number): Fixed {
  const { from, to } = bounds(range, now);
  const middle = (from + to) / 2;
  const half = ((to - from) * factor) / 2;
  const over = Math.max(0, middle + half - Math.max(now, to));
  return fixed(middle - half - over, middle + half - over);
}

/** ms since 1970, or a date as people write it (ISO 8601). */
function moment(text: string | null): number | null {
  if (text === null || text === "") return null;
  const value = /^\d+$/.test(text) ? Number(text) : Date.parse(text);
  return Number.isFinite(value) ? value : null;
}
