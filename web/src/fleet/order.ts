// Which VMs are listed and in what order. The order is kept while values move: a list that jumps cannot be read.
import type { Vm } from "../api.ts";
import { stateName } from "../units.ts";

export type Key =
  | "name" | "host" | "state" | "cpu" | "cpus" | "used" | "assigned" | "growth"
  | "rx" | "tx" | "rd" | "wr" | "errors" | "drops"
  /** sums that the top talkers rank by */
  | "cores" | "net" | "disk" | "faults";

export interface Sort {
  key: Key;
  descending: boolean;
}

export interface Filter {
  text: string;
  host: string;
  /** a state's name, or "stuck", "late", "trouble" */
  state: string;
}

/** What a list is sorted by, in words. */
export const NAMES: Record<Key, string> = {
  name: "name", host: "host", state: "state", cpu: "CPU", cpus: "vCPUs", used: "memory used", assigned: "memory it has", growth: "memory growth",
  rx: "network in", tx: "network out", rd: "disk reads", wr: "disk writes", errors: "errors", drops: "drops",
  cores: "busy vCPUs", net: "network in and out", disk: "disk reads and writes", faults: "errors and drops",
};

type Rank = (vm: Vm) => number | string | null;

const RANKS: Record<Key, Rank> = {
  name: (vm) => vm.name.toLowerCase(),
  host: (vm) => vm.host,
  state: (vm) => vm.state,
  cpu: (vm) => vm.cpu,
  cpus: (vm) => vm.cpus,
  used: (vm) => vm.used,
  assigned: (vm) => vm.assigned,
  growth: (vm) => vm.growth,
  rx: (vm) => vm.rx,
  tx: (vm) => vm.tx,
  rd: (vm) => vm.rd,
  wr: (vm) => vm.wr,
  errors: (vm) => vm.errors,
  drops: (vm) => vm.drops,
  cores: (vm) => (vm.cpu === null || vm.cpus === null ? null : (vm.cpu / 100) * vm.cpus),
  net: (vm) => sum(vm.rx, vm.tx),
  disk: (vm) => sum(vm.rd, vm.wr),
  faults: (vm) => sum(vm.errors, vm.drops),
};

export function isKey(text: string): text is Key {
  return Object.hasOwn(RANKS, text);
}

/** Names begin at A, numbers at the largest. */
export function descendingByDefault(key: Key): boolean {
  return key !== "name" && key !== "host";
}

export function rank(vm: Vm, key: Key): number | string | null {
  return RANKS[key](vm);
}

/** No reading for three intervals of its host. */
export function isLate(vm: Vm, now: number): boolean {
  return now - vm.at > 3 * vm.interval;
}

export function matches(vm: Vm, filter: Filter, now: number): boolean {
  if (filter.host !== "" && vm.host !== filter.host) return false;
  if (filter.text !== "") {
    const text = filter.text.toLowerCase();
    if (!vm.name.toLowerCase().includes(text) && !vm.uuid.includes(text) && !vm.host.toLowerCase().includes(text)) return false;
  }
  switch (filter.state) {
    case "": return true;
    case "stuck": return !vm.ok;
    case "late": return isLate(vm, now);
    case "trouble": return !vm.ok || isLate(vm, now) || vm.state === 6 || (vm.errors ?? 0) > 0;
    default: return stateName(vm.state) === filter.state;
  }
}

/** Stuck VMs come first, unless the list goes by name or host: their values are missing, and they would end up last. What else is not
 *  known comes last in both directions. Equal ones stand by name, so that an order is one order. */
export function comparator({ key, descending }: Sort): (a: Vm, b: Vm) => number {
  const of = RANKS[key];
  const stuckFirst = key !== "name" && key !== "host";
  return (a, b) => {
    if (stuckFirst && a.ok !== b.ok) return a.ok ? 1 : -1;
    const [x, y] = [of(a), of(b)];
    if (x === null || y === null) return x === y ? byName(a, b) : x === null ? 1 : -1;
    if (x === y) return byName(a, b);
    return x < y === descending ? 1 : -1;
  };
}

function byName(a: Vm, b: Vm): number {
  if (a.name !== b.name) return a.name < b.name ? -1 : 1;
  return a.uuid < b.uuid ? -1 : 1;
}

function sum(a: number | null, b: number | null): number | null {
  return a === null && b === null ? null : (a ?? 0) + (b ?? 0);
}

/** A list that keeps its order from cycle to cycle. */
export class Order {
  #uuids: string[] = [];
  #rule = "";
  /** when it was sorted last, by the server's clock */
  sortedAt = 0;
  /** values have moved since: the list is not in order any more */
  moved = false;

  /** The VMs in the kept order; sorted anew if the rule changed, if a row came or went, or if it is asked for. */
  arrange(vms: Vm[], sort: Sort, now: number, again = false): Vm[] {
    const rule = `${sort.key} ${sort.descending}`;
    const byUuid = new Map(vms.map((vm) => [vm.uuid, vm]));
    const kept = this.#rule === rule && !again && this.#uuids.length === byUuid.size && this.#uuids.every((uuid) => byUuid.has(uuid));
    const compare = comparator(sort);
    if (!kept) {
      this.#rule = rule;
      this.sortedAt = now;
      this.moved = false;
      const sorted = [...byUuid.values()].sort(compare);
      this.#uuids = sorted.map((vm) => vm.uuid);
      return sorted;
    }
    const listed = this.#uuids.map((uuid) => byUuid.get(uuid)).filter((vm) => vm !== undefined);
    this.moved = listed.some((vm, i) => i > 0 && compare(listed[i - 1] as Vm, vm) > 0);
    return listed;
  }
}
