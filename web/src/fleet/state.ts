// What is known of the fleet now: the newest cycle, the sparklines, and how the connection fares. Everything that arrives from
// the stream comes through `hear`.
import type { Fleet, FleetHistory } from "../api.ts";
import { checkSession, get, Refused, session, Unreachable } from "../http.ts";
import type { News } from "../live/stream.ts";
import { Store } from "../store.ts";
import { POINTS, Sparks } from "./spark.ts";

interface View {
  fleet: Fleet | null;
  /** this browser's steady clock (performance.now) when the newest cycle arrived */
  arrived: number;
  up: boolean;
  /** since when there is no connection, by this browser's clock */
  downSince: number | null;
  /** why there are no new values though the connection is up, in the server's words */
  trouble: string | null;
}

export const view = new Store<View>({ fleet: null, arrived: 0, up: false, downSince: null, trouble: null });
export const sparks = new Sparks();

/** More than so many intervals between two cycles: the sparklines missed something. */
const MISSED_INTERVALS = 2.5;

/** When the newest update began; the fleet page measures from here to the end of its drawing. */
export let updateBegan = 0;

let waiting: string | null = null;
/** As the news has it: a cycle that waits to be drawn has ended it already. */
let trouble: string | null = null;
/** Somebody looks at sparklines: for others their past is not asked for. */
let shown = false;
/** Their past was asked for, and nothing was missed since. */
let whole = false;
let seeding = false;
/** History was wanted again while its answer was awaited: that one may be from before the hole. */
let seedAgain = false;

/** The server's clock, from its last word and the time that went by since. */
export function serverNow(): number {
  const { fleet, arrived } = view.value;
  return fleet === null ? Date.now() : fleet.now + (performance.now() - arrived);
}

export function hear(news: News): void {
  if (news.kind === "fleet") {
    trouble = null;
    put(news.json);
  } else if (news.kind === "trouble") {
    trouble = news.text;
    view.set({ ...view.value, trouble });
  } else if (news.kind === "hole") {
    lose();
  } else {
    view.set({ ...view.value, up: news.up, downSince: news.since });
    // The stream does not tell why it was refused; and that it is there again may be another tab's login.
    if (!news.up || !session.value.login) void checkSession();
  }
}

/** Cycles that arrive faster than they can be drawn (after a pause) are drawn once. */
function put(json: string): void {
  if (waiting === null) requestAnimationFrame(take);
  waiting = json;
}

/** For a stream that is held back on its way (a proxy that buffers): the page must not stay empty. */
export async function askOnce(): Promise<void> {
  try {
    const fleet = await get<Fleet>("api/fleet");
    // What the stream brought meanwhile is newer.
    if (view.value.fleet === null && waiting === null) put(JSON.stringify(fleet));
  } catch (error) {
    if (!(error instanceof Unreachable || error instanceof Refused)) throw error;
  }
}

/** Sparklines come into view, or leave it. */
export function showSparks(on: boolean): void {
  shown = on;
  if (on && !whole && view.value.fleet !== null) void seed();
}

/** Something was missed. */
function lose(): void {
  whole = false;
  if (shown) void seed();
}

/** Asks for the sparklines' past; what the stream told meanwhile is put behind it. */
async function seed(): Promise<void> {
  seedAgain = true;
  if (seeding) return;
  seeding = true;
  try {
    while (seedAgain) {
      seedAgain = false;
      whole = true;
      await seedOnce();
    }
  } finally {
    seeding = false;
  }
}

async function seedOnce(): Promise<void> {
  try {
    sparks.seed(await get<FleetHistory>(`api/fleet/history?points=${POINTS}`));
    const { fleet } = view.value;
    if (fleet !== null) sparks.add(fleet.vms);
    view.set({ ...view.value });
  } catch (error) {
    // Sparklines then fill from the stream; a lost connection and a refusal are told elsewhere.
    whole = false;
    if (!(error instanceof Unreachable || error instanceof Refused)) throw error;
  }
}

function take(): void {
  if (waiting === null) return;
  updateBegan = performance.now();
  const fleet = JSON.parse(waiting) as Fleet;
  waiting = null;
  const before = view.value.fleet;
  if (before === null || missed(before, fleet)) lose();
  sparks.add(fleet.vms);
  view.set({ ...view.value, fleet, arrived: performance.now(), trouble });
}

function missed(before: Fleet, after: Fleet): boolean {
  return before.at !== null && after.at !== null && after.at - before.at > MISSED_INTERVALS * after.interval;
}
