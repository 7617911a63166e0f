// The JSON of the dashboard's API. Later this file is generated from the Rust types (ts-rs); until then it is the contract.
// All times: whole milliseconds since 1970 UTC. Missing values: null (never 0). Rates are computed by the server.

/** GET api/fleet : every VM's newest reading. Also the payload of the live stream's `fleet` event. */
export interface Fleet {
  /** the server's clock when this was made: "since" and "ago" are counted from it, for a browser's clock may be off */
  now: number;
  /** newest reading of all; null in an empty store */
  at: number | null;
  /** how often hypervisors are read, ms (a VM or host without a reading for 3 of them is late) */
  interval: number;
  hosts: Host[];
  vms: Vm[];
  /** what a person should do now, worst first */
  warnings: Warning[];
}
export interface Host {
  name: string;
  /** its newest reading; */
  at: number | null;
  /** no reading for 3 intervals */
  silent: boolean;
  vms: number;
  stuck: number;
  /** wall time of its last cycle, ms */
  cycle: number | null;
}
export interface Vm {
  uuid: string;
  name: string;
  host: string;
  /** libvirt's domain id; changes with each start */
  vmid: string;
  at: number;
  /** 0 no state, 1 running, 2 blocked, 3 paused, 4 shutting down, 5 shut off, 6 crashed, 7 suspended by guest */
  state: number | null;
  cpus: number | null;
  /** percent of all its vCPUs, 0..100 */
  cpu: number | null;
  /** memory that it has, KiB */
  assigned: number | null;
  /** memory that it uses, KiB */
  used: number | null;
  /** what `used` is: the guest's own figure, or the QEMU process's resident memory */
  source: "guest" | "rss" | null;
  /** change of used memory, KiB/s */
  growth: number | null;
  /** bytes/s */
  rx: number | null;
  tx: number | null;
  rd: number | null;
  wr: number | null;
  /** network errors and drops, and disk errors, of the last 15 minutes */
  errors: number | null;
  drops: number | null;
  /** read whole in the last cycle (collect_ok); false: its monitor does not answer */
  ok: boolean;
  /** seconds since it was read whole last */
  age: number | null;
}
export interface Warning {
  level: "error" | "warning";
  /** one sentence: what is wrong */
  text: string;
  /** what to do, if that can be said; may contain a command */
  advice: string | null;
}

/** GET api/fleet/history?points=60 : the last 15 minutes of each VM for sparklines; columnar. */
export interface FleetHistory {
  from: number;
  /** width of a bucket, ms */
  step: number;
  /** by uuid; each array has the same length; null is a gap */
  cpu: Record<string, (number | null)[]>;
}

/** GET api/vm/{uuid}?from=&to=&points=&step= : one VM's charts. from and to in ms; points: how many pixels wide (100..4000).
 *  Of ranges with more readings than points each bucket has min, mean and max; else min and max are left out (null).
 *  A bucket's time is its beginning, a multiple of `step` since 1970. With `step` (the answer's own, of an earlier page) the
 *  buckets are that wide whatever the points: a live view asks so for its newest piece and puts it behind what it has.
 *  The first rate of an answer is counted from the reading before `from`, so that pieces join without a gap.
 *  404: no such VM in the store. */
export interface VmPage {
  /** the newest of its names first */
  names: string[];
  uuid: string;
  host: string;
  from: number;
  to: number;
  /** width of a bucket, ms; null where each reading is shown */
  step: number | null;
  /** which table answered: raw, 1m, 1h */
  table: "raw" | "1m" | "1h";
  /** the newest reading, as on the fleet page; null if it is not among the live ones */
  now: Vm | null;
  panels: Panel[];
  marks: Mark[];
  /** what was told of asking in pieces, of bounds */
  notes: string[];
}
export interface Panel {
  /** cpu, memory, swap, faults, trend, net, net-packets, net-faults, disk, disk-requests, disk-errors; those of one device: "nic:vnet0:bytes" … */
  id: string;
  title: string;
  /** how to format: percent, KiB, bytes/s, count/s, count, KiB/s, degrees, faults/s */
  unit: string;
  /** times of the points: the same for all series of the panel */
  times: number[];
  series: Series[];
  /** the SQL behind it, to be copied */
  sql: string;
}
export interface Series {
  id: string;
  label: string;
  /** null is a gap: nothing is drawn across it */
  mean: (number | null)[];
  min: (number | null)[] | null;
  max: (number | null)[] | null;
}
/** A moment to be marked on all charts: an event of vm_events, a restart (new VMID), a rename. */
export interface Mark {
  at: number;
  /** started, stopped, paused, resumed, crashed, migrated, device_added, device_removed, io_error, balloon, restarted, renamed, moved, state … */
  kind: string;
  text: string;
}

/** GET api/collector */
export interface Collector {
  version: string;
  /** what answers: the embedded store, or an InfluxDB server */
  source: string;
  /** since when this process runs */
  since: number;
  hypervisors: Hypervisor[];
  journal: { entries: number; bytes: number; max: number; oldest: number | null } | null;
  deliveries: Delivery[];
  store: { bytes: number; max: number; free: number; minFree: number; files: number; rows: number; memoryRows: number } | null;
  /** points a second, over the last minute */
  points: number | null;
  warnings: Warning[];
}
export interface Hypervisor {
  host: string;
  uri: string | null;
  connectedSince: number | null;
  libvirt: string | null;
  /** ms */
  cycle: number | null;
  interval: number;
  vms: number;
  stuck: number;
  abandoned: number;
  failures: number;
  /** 0..1 */
  cacheHits: number | null;
  problem: string | null;
}
export interface Delivery {
  name: string;
  url: string;
  state: "ok" | "behind" | "failing";
  waitingEntries: number;
  deliveredLines: number;
  refusedLines: number;
  lostLines: number;
  trouble: string | null;
}

/** GET api/live : text/event-stream. `id:` numbers every event.
 *  event: fleet  data: Fleet      at each cycle, whole; the first one at once
 *  event: hole   data: {}         what was missed is no longer there: ask for history again
 *  event: beat   data: {}         every 15 s, without an id: keeps the connection open, and tells a browser, which never hears of
 *                                 comments, that it is not dead (cycles may be minutes apart, or none come) */

/** GET api/session -> {"login": boolean, "needed": boolean}; POST api/session {"token": "..."} -> 204 with a cookie, 401; DELETE api/session -> 204.
 *  Every other answer may be 401: show the login form.
 *  Errors: {"error": "what and what to do"}. */
export interface Session { login: boolean; needed: boolean }
