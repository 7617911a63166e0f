// Every number and time that a person reads is made here, and nowhere else.
//
// Rules:
// - Memory is counted in 1024s and says so (KiB, MiB, GiB), as libvirt and guests count it; so is its growth (MiB/s).
// - What flows through a NIC or a disk is counted in 1000s (kB/s, MB/s), as their makers count it.
// - Three significant digits at most, so that a column of changing numbers stands still.
// - What is not known is "–", never 0. A minus is "−". Numbers are English whatever the browser's language.
// - Clock times are the person's own zone, 24 hours; a full time says the zone.

const UNKNOWN = "–";

type Value = number | null | undefined;

const DECIMAL = ["", "k", "M", "G", "T", "P", "E"];
const BINARY = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

/** At most three significant digits: 0.04, 1.23, 12.3, 123. */
function digits(value: number): string {
  const size = Math.abs(value);
  if (size >= 99.95) return value.toFixed(0);
  if (size >= 9.995) return trim(value.toFixed(1));
  return trim(value.toFixed(2));
}

function trim(text: string): string {
  // Only after the point: 500 is not 5.
  const short = text.includes(".") ? text.replace(/\.?0+$/, "") : text;
  return short === "-0" ? "0" : short;
}

function signed(text: string): string {
  return text.startsWith("-") ? `−${text.slice(1)}` : text;
}

function known(value: Value): value is number {
  return value !== null && value !== undefined && Number.isFinite(value);
}

function scaled(value: number, base: number, prefixes: string[], unit: string): string {
  let power = 0;
  let rest = value;
  // 999.5 would be shown as 1000: it belongs to the next prefix.
  while (Math.abs(rest) >= base - base / 2000 && power < prefixes.length - 1) {
    rest /= base;
    power += 1;
  }
  // Below the first prefix bytes are whole.
  const text = power === 0 && Math.abs(rest) >= 1 ? trim(rest.toFixed(Math.abs(rest) < 10 ? 1 : 0)) : digits(rest);
  const prefix = prefixes[power] ?? "";
  const tail = prefix + unit;
  return signed(text) + (tail === "" ? "" : tail === "%" ? tail : ` ${tail}`);
}

/** 12.3% */
export function percent(value: Value): string {
  if (!known(value)) return UNKNOWN;
  const text = Math.abs(value) >= 99.95 ? value.toFixed(0) : value.toFixed(1);
  return `${signed(text === "-0.0" ? "0.0" : text)}%`;
}

/** Memory given in KiB: 512 KiB, 1.5 GiB. */
export function kib(value: Value): string {
  if (!known(value)) return UNKNOWN;
  if (Math.abs(value) < 1023.5) return `${signed(digits(value))} KiB`;
  return scaled(value * 1024, 1024, BINARY, "B");
}

/** Bytes at rest (files): 1.5 GiB. */
export function bytes(value: Value): string {
  return known(value) ? scaled(value, 1024, BINARY, "B") : UNKNOWN;
}

/** Bytes a second through a NIC or a disk: 12.3 MB/s. */
export function byteRate(value: Value): string {
  return known(value) ? scaled(value, 1000, DECIMAL, "B/s") : UNKNOWN;
}

/** Memory's growth in KiB/s: +1.5 MiB/s; always with its sign, for it is a direction. */
export function growth(value: Value): string {
  if (!known(value)) return UNKNOWN;
  const text = `${kib(value)}/s`;
  return value > 0 && !text.startsWith("0 ") ? `+${text}` : text;
}

/** Whole things: 1,234 up to 99,999, then 1.23M. */
export function count(value: Value): string {
  if (!known(value)) return UNKNOWN;
  if (Math.abs(value) >= 99_999.5) return scaled(value, 1000, DECIMAL, "").replace(" ", "");
  return signed(thousands(Number.isInteger(value) ? String(value) : digits(value)));
}

/** Things a second: 1.23k/s. */
export function countRate(value: Value, thing = ""): string {
  if (!known(value)) return UNKNOWN;
  const text = scaled(value, 1000, DECIMAL, "").replace(" ", "");
  return thing === "" ? `${text}/s` : `${text} ${thing}/s`;
}

function thousands(text: string): string {
  const [whole = "", part] = text.split(".");
  const grouped = whole.replace(/\B(?=(\d{3})+$)/g, ",");
  return part === undefined ? grouped : `${grouped}.${part}`;
}

/** −90°..90°, one decimal. */
export function degrees(value: Value): string {
  if (!known(value)) return UNKNOWN;
  const text = value.toFixed(1);
  return `${signed(text === "-0.0" ? "0.0" : text)}°`;
}

/** A part of 1, as percent. */
export function ratio(value: Value): string {
  return known(value) ? percent(value * 100) : UNKNOWN;
}

/** A span in ms, its two largest parts: 850 ms, 12 s, 3 min 5 s, 2 h 10 min, 4 d 3 h. */
export function duration(ms: Value): string {
  if (!known(ms)) return UNKNOWN;
  if (ms < 0) return `−${duration(-ms)}`;
  if (ms < 1) return ms === 0 ? "0 s" : `${digits(ms)} ms`;
  if (ms < 999.5) return `${digits(ms)} ms`;
  if (ms < 9_950) return `${trim((ms / 1000).toFixed(1))} s`;
  const seconds = Math.round(ms / 1000);
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return two(Math.floor(seconds / 60), "min", seconds % 60, "s");
  const minutes = Math.floor(seconds / 60);
  if (minutes < 1440) return two(Math.floor(minutes / 60), "h", minutes % 60, "min");
  const hours = Math.floor(minutes / 60);
  return two(Math.floor(hours / 24), "d", hours % 24, "h");
}

function two(large: number, largeUnit: string, small: number, smallUnit: string): string {
  const head = `${thousands(String(large))} ${largeUnit}`;
  return small === 0 ? head : `${head} ${small} ${smallUnit}`;
}

/** How to say a value of a panel's unit. */
export function formatter(unit: string): (value: Value) => string {
  switch (unit) {
    case "percent": return percent;
    case "KiB": return kib;
    case "KiB/s": return growth;
    case "bytes": return bytes;
    case "bytes/s": return byteRate;
    case "count": return count;
    case "count/s": return (value) => countRate(value);
    case "faults/s": return (value) => countRate(value, "faults");
    case "degrees": return degrees;
    // A server newer than this page: the plain number and its own word for the unit.
    default: return (value) => (known(value) ? `${count(value)} ${unit}` : UNKNOWN);
  }
}

/** The same on an axis, whose round numbers need no decimals: 40%, not 40.0%. */
export function tickValue(unit: string): (value: number) => string {
  if (unit === "percent") return (value) => `${signed(digits(value))}%`;
  if (unit === "degrees") return (value) => `${signed(digits(value))}°`;
  return formatter(unit);
}

/** The distance of ticks on an axis counts in 1024s where the unit does. */
export function isBinary(unit: string): boolean {
  return unit === "KiB" || unit === "KiB/s" || unit === "bytes";
}

const clockFormat = lazy(() => new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" }));
const minuteFormat = lazy(() => new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" }));
const dayFormat = lazy(() => new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" }));
const dateFormat = lazy(() => new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric" }));
const fullFormat = lazy(
  () =>
    new Intl.DateTimeFormat("en-GB", {
      weekday: "short", day: "numeric", month: "short", year: "numeric",
      hour: "2-digit", minute: "2-digit", second: "2-digit", timeZoneName: "short",
    }),
);

/** Making a format costs far more than using it, and a page that shows no day needs none. */
function lazy<T>(make: () => T): () => T {
  let made: T | undefined;
  return () => (made ??= make());
}

/** 15:04:05 */
export function clock(ms: Value): string {
  return known(ms) ? clockFormat().format(ms) : UNKNOWN;
}

/** Mon, 30 Nov 2026, 15:04:05 CET */
export function fullTime(ms: Value): string {
  return known(ms) ? fullFormat().format(ms) : UNKNOWN;
}

/** 15:04:05 on the same day as `now`, else 30 Nov 15:04, in another year 30 Nov 2025 15:04. */
export function shortTime(ms: Value, now: number): string {
  if (!known(ms)) return UNKNOWN;
  const [date, today] = [new Date(ms), new Date(now)];
  if (date.getFullYear() !== today.getFullYear()) return `${dateFormat().format(ms)} ${minuteFormat().format(ms)}`;
  const sameDay = date.getMonth() === today.getMonth() && date.getDate() === today.getDate();
  return sameDay ? clock(ms) : `${dayFormat().format(ms)} ${minuteFormat().format(ms)}`;
}

/** "1 Dec 2025", "30 Nov", "15:04" or "15:04:05": what a tick of an axis says, by the distance to the next tick. */
export function tick(ms: number, distance: number): string {
  if (distance >= 28 * 86_400_000) return dateFormat().format(ms);
  if (distance >= 86_400_000) return dayFormat().format(ms);
  const date = new Date(ms);
  if (date.getHours() === 0 && date.getMinutes() === 0 && date.getSeconds() === 0) return dayFormat().format(ms);
  return distance < 60_000 ? clock(ms) : minuteFormat().format(ms);
}

/** The zone in which this page tells times: Europe/Berlin (CET). */
export function zone(ms: number): string {
  const name = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const parts = fullFormat().formatToParts(ms);
  const short = parts.find((part) => part.type === "timeZoneName")?.value ?? "";
  return name === short || short === "" ? name : `${name} (${short})`;
}

/** What `<input type=datetime-local>` takes and gives: the person's own zone, without saying it. */
export function toLocalInput(ms: number): string {
  const date = new Date(ms);
  const pad = (value: number) => String(value).padStart(2, "0");
  return (
    `${String(date.getFullYear()).padStart(4, "0")}-${pad(date.getMonth() + 1)}-${pad(date.getDate())}` +
    `T${pad(date.getHours())}:${pad(date.getMinutes())}:${pad(date.getSeconds())}`
  );
}

const STATES = ["no state", "running", "blocked", "paused", "shutting down", "shut off", "crashed", "suspended"];

/** The word for a domain's state. */
export function stateName(state: Value): string {
  if (!known(state)) return "unknown";
  return STATES[state] ?? `state ${state}`;
}
