// The JSON of the dashboard's API, made from crates/kvmetry/src/serve/dashboard/types.rs by its test (KVMETRY_WRITE_DOCS=1).
//
// All times: whole milliseconds since 1970 UTC. What is not known is null, never 0. Rates are computed by the server.
//
// GET api/live: server-sent events. `id:` numbers pushes.
//   event: fleet  data: Fleet  at each cycle, whole; the first one at once
//   event: hole   data: {}     pushes were missed: ask for history again
//   event: trouble  data: {"error": "…"}  there is no newer fleet; without an id, over with the next one
//   event: beat   data: {}     every 15 s, without an id
//
// GET api/session: Session. POST api/session {"token": "…"}: 204 with a cookie, or 401. DELETE api/session: 204.
// Any other answer may be 401: show the login. Errors: {"error": "what and what to do"}.
//
// A long range of api/vm may be answered as application/x-ndjson: lines {"done": 3, "of": 15}, then the VmPage or an error.

/**
 * `GET /api/fleet`, and the event `fleet` of `/api/live`: every VM's newest reading.
 */
export type Fleet = { 
/**
 * This server's clock when it was made: "since" and "ago" are counted from it, as a browser's may be off.
 */
now: number, 
/**
 * The newest reading of all; null in an empty store.
 */
at: number | null, 
/**
 * How often most VMs are read, ms; each host may have its own.
 */
interval: number, hosts: Array<Host>, vms: Array<Vm>, 
/**
 * What a person should do now, worst first.
 */
warnings: Array<Warning>, };

/**
 * A hypervisor.
 */
export type Host = { name: string, 
/**
 * Its newest reading.
 */
at: number | null, 
/**
 * How often it is read, ms.
 */
interval: number, 
/**
 * No reading for three intervals.
 */
silent: boolean, vms: number, 
/**
 * VMs whose monitor does not answer.
 */
stuck: number, 
/**
 * Wall time of its last cycle, ms.
 */
cycle: number | null, };

/**
 * A VM's newest reading.
 */
export type Vm = { uuid: string, name: string, host: string, 
/**
 * libvirt's domain id; it changes with each start.
 */
vmid: string, at: number, 
/**
 * How often its host is read, ms.
 */
interval: number, 
/**
 * 0 no state, 1 running, 2 blocked, 3 paused, 4 shutting down, 5 shut off, 6 crashed, 7 suspended by guest.
 */
state: number | null, cpus: number | null, 
/**
 * Percent of all its vCPUs, 0 to 100.
 */
cpu: number | null, 
/**
 * Memory that it has, KiB.
 */
assigned: number | null, 
/**
 * Memory that it uses, KiB.
 */
used: number | null, 
/**
 * Whose figure `used` is.
 */
source: MemorySource | null, 
/**
 * Change of used memory, KiB/s.
 */
growth: number | null, 
/**
 * Received, bytes/s.
 */
rx: number | null, 
/**
 * Sent, bytes/s.
 */
tx: number | null, 
/**
 * Read from disks, bytes/s.
 */
rd: number | null, 
/**
 * Written to disks, bytes/s.
 */
wr: number | null, 
/**
 * Of its NICs and disks, in the last 15 minutes.
 */
errors: number | null, 
/**
 * Packets that its NICs dropped in the last 15 minutes.
 */
drops: number | null, 
/**
 * Whether it was read whole in its last cycle; if not, its monitor does not answer.
 */
ok: boolean, 
/**
 * Seconds since it was read whole.
 */
age: number | null, };

/**
 * Whose figure of used memory it is.
 */
export type MemorySource = "guest" | "rss";

/**
 * Something that a person should know.
 */
export type Warning = { level: Level, 
/**
 * What is wrong, in a sentence.
 */
text: string, 
/**
 * What to do about it, where that can be said.
 */
advice: string | null, };

/**
 * How bad it is.
 */
export type Level = "error" | "warning";

/**
 * `GET /api/fleet/history`: the CPU of each VM over the last 15 minutes.
 */
export type FleetHistory = { 
/**
 * The start of the first bucket.
 */
from: number, 
/**
 * The width of a bucket, ms.
 */
step: number, 
/**
 * Percent of all vCPUs by VM, a value a bucket; null is a gap.
 */
cpu: { [key in string]: Array<number | null> }, };

/**
 * `GET /api/vm/{uuid}?from=&to=&points=&step=`: the charts of one VM. `points`: how many of them a chart has room for.
 *
 * Where there are more readings, each point is a bucket of them, and its time the bucket's beginning, a multiple of `step`.
 * With `step` (that of an earlier answer) buckets are that wide whatever the points: a live view asks so for its newest
 * piece. The first rate is counted from the reading before `from`, so that pieces join without a gap.
 */
export type VmPage = { uuid: string, 
/**
 * The newest first.
 */
names: Array<string>, host: string, from: number, to: number, 
/**
 * The width of a bucket, ms; null where every reading is shown.
 */
step: number | null, 
/**
 * Where the points come from.
 */
table: Table, 
/**
 * Its newest reading, if it lives.
 */
now: Vm | null, panels: Array<Panel>, marks: Array<Mark>, 
/**
 * What is to be known of this answer: what is left out, where to get it.
 */
notes: Array<string>, };

/**
 * Where points come from.
 */
export type Table = "raw" | "1m" | "1h";

/**
 * A chart.
 */
export type Panel = { 
/**
 * `cpu`, `memory`, …; of a device `nic:vnet0:bytes`, `disk:vda:requests`, …
 */
id: string, title: string, 
/**
 * `percent`, `KiB`, `KiB/s`, `bytes/s`, `count/s`, `degrees`.
 */
unit: string, 
/**
 * The moments of all its points.
 */
times: Array<number>, series: Array<Series>, 
/**
 * What it was asked with, to be asked again elsewhere.
 */
sql: string, };

/**
 * A line of a chart.
 */
export type Series = { id: string, label: string, 
/**
 * Null is a gap.
 */
mean: Array<number | null>, 
/**
 * The least and the greatest of each bucket; null where a point is one reading.
 */
min: Array<number | null> | null, max: Array<number | null> | null, };

/**
 * A moment that all charts show.
 */
export type Mark = { at: number, 
/**
 * An event of `vm_events`, or `restarted`, `renamed`, `moved`; `state` where no event tells a change of it.
 */
kind: string, text: string, };

/**
 * `GET /api/collector`.
 */
export type Collector = { version: string, 
/**
 * What answers: the embedded store, or a server.
 */
source: string, 
/**
 * Since when this process runs.
 */
since: number, hypervisors: Array<Hypervisor>, journal: JournalState | null, deliveries: Array<Delivery>, store: StoreState | null, 
/**
 * Points a second over the last minute.
 */
points: number | null, warnings: Array<Warning>, };

/**
 * How one hypervisor is read.
 */
export type Hypervisor = { host: string, 
/**
 * As configured, without what may be secret; null of a hypervisor that another collector reads.
 */
uri: string | null, 
/**
 * Null while there is no connection, or another collector's.
 */
connectedSince: number | null, 
/**
 * libvirt's version there, when it was connected last.
 */
libvirt: string | null, 
/**
 * Wall time of the last cycle, ms.
 */
cycle: number | null, interval: number, vms: number, stuck: number, 
/**
 * Calls given up that its daemon still holds.
 */
abandoned: number, 
/**
 * Readings that failed, since its collector began.
 */
failures: number, 
/**
 * Part of the device names that were in the cache, 0 to 1.
 */
cacheHits: number | null, 
/**
 * Why it was not read in its last cycle.
 */
problem: string | null, };

/**
 * How full the journal is.
 */
export type JournalState = { entries: number, bytes: number, max: number, 
/**
 * When its oldest entry was appended.
 */
oldest: number | null, };

/**
 * How a server gets its points.
 */
export type Delivery = { name: string, url: string, state: DeliveryState, waitingEntries: number, deliveredLines: number, refusedLines: number, lostLines: number, 
/**
 * Why it does not get on.
 */
trouble: string | null, };

/**
 * How a delivery fares.
 */
export type DeliveryState = "ok" | "behind" | "failing";

/**
 * How full the store is.
 */
export type StoreState = { files: number, bytes: number, max: number, free: number, minFree: number, rows: number, memoryRows: number, };

/**
 * `GET /api/session`.
 */
export type Session = { 
/**
 * Whether a token is needed here.
 */
needed: boolean, 
/**
 * Whether this browser has shown one that may read.
 */
login: boolean, };
