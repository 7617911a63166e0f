// What hosts and the fleet do in all, and who does most of it.
import type { Fleet, Host, Vm } from "../api.ts";
import { rank, type Key } from "./order.ts";

export interface Total {
  vms: number;
  /** virtual CPUs that the VMs have, and how many of them are busy */
  cpus: number;
  cores: number;
  assigned: number;
  used: number;
  rx: number;
  tx: number;
  rd: number;
  wr: number;
}

export interface HostTotal extends Total {
  host: Host;
}

function nothing(): Total {
  return { vms: 0, cpus: 0, cores: 0, assigned: 0, used: 0, rx: 0, tx: 0, rd: 0, wr: 0 };
}

/** What is not known adds nothing. */
function count(total: Total, vm: Vm): void {
  total.vms += 1;
  total.cpus += vm.cpus ?? 0;
  total.cores += ((vm.cpu ?? 0) / 100) * (vm.cpus ?? 0);
  total.assigned += vm.assigned ?? 0;
  total.used += vm.used ?? 0;
  total.rx += vm.rx ?? 0;
  total.tx += vm.tx ?? 0;
  total.rd += vm.rd ?? 0;
  total.wr += vm.wr ?? 0;
}

/** Hosts with trouble first, then the busiest. VMs of a silent host are its last known ones: they count for it, not for the fleet. */
export function totals(fleet: Fleet): { all: Total; hosts: HostTotal[] } {
  const all = nothing();
  const hosts = new Map<string, HostTotal>(fleet.hosts.map((host) => [host.name, { ...nothing(), host }]));
  for (const vm of fleet.vms) {
    const own = hosts.get(vm.host);
    if (own !== undefined) count(own, vm);
    if (own === undefined || !own.host.silent) count(all, vm);
  }
  const trouble = ({ host }: HostTotal) => (host.silent ? 2 : host.stuck > 0 ? 1 : 0);
  return { all, hosts: [...hosts.values()].sort((a, b) => trouble(b) - trouble(a) || b.cores - a.cores) };
}

/** The `n` VMs with the most of it, largest first; none that have nothing of it. */
export function talkers(vms: Vm[], key: Key, n: number): Vm[] {
  const top: { vm: Vm; value: number }[] = [];
  for (const vm of vms) {
    const value = rank(vm, key);
    if (typeof value !== "number" || value <= 0) continue;
    const last = top[top.length - 1];
    if (top.length === n && last !== undefined && value <= last.value) continue;
    let place = top.length;
    while (place > 0 && (top[place - 1]?.value ?? 0) < value) place -= 1;
    top.splice(place, 0, { vm, value });
    if (top.length > n) top.pop();
  }
  return top.map(({ vm }) => vm);
}
