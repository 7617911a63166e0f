// Top talkers: short lists of who does most, each VM a link, each title sorts the table by it.
import { useMemo } from "preact/hooks";
import type { Fleet, Vm } from "../api.ts";
import { vmLink } from "../route.ts";
import { byteRate, count, growth } from "../units.ts";
import { isLate, rank, type Key } from "./order.ts";
import type { To } from "./page.tsx";
import { talkers } from "./totals.ts";

const LENGTH = 5;

interface Ranking {
  by: Key;
  title: string;
  what: string;
  none: string;
  say: (value: number) => string;
}

const RANKINGS: Ranking[] = [
  { by: "cores", title: "CPU", what: "busy vCPUs", none: "all idle", say: (value) => `${value.toFixed(1)} vCPUs` },
  { by: "growth", title: "Memory growth", what: "change of used memory", none: "none grows", say: (value) => growth(value) },
  { by: "net", title: "Network", what: "in and out together", none: "no traffic", say: (value) => byteRate(value) },
  { by: "disk", title: "Disks", what: "read and written together", none: "no traffic", say: (value) => byteRate(value) },
  { by: "faults", title: "Errors and drops", what: "in the last 15 minutes", none: "none in 15 min", say: (value) => count(value) },
];

export function Talkers({ fleet, to }: { fleet: Fleet; to: To }) {
  const vms = useMemo(() => fleet.vms.filter((vm) => !isLate(vm, fleet.now)), [fleet]);
  return (
    <section class="talkers" aria-labelledby="talkers-title">
      <h2 id="talkers-title">Top VMs</h2>
      <div class="lists">{RANKINGS.map((ranking) => <List key={ranking.by} vms={vms} to={to} ranking={ranking} />)}</div>
    </section>
  );
}

function List({ vms, to, ranking }: { vms: Vm[]; to: To; ranking: Ranking }) {
  const top = useMemo(() => talkers(vms, ranking.by, LENGTH), [vms]);
  const most = top[0] === undefined ? 1 : Number(rank(top[0], ranking.by));
  return (
    <div class="talker">
      <h3><a href={to({ sort: ranking.by, dir: "desc" })} title={`Sort the table by ${ranking.what}`}>{ranking.title}</a></h3>
      {top.length === 0 && <p class="none">{ranking.none}</p>}
      <ol>
        {top.map((vm) => {
          const value = Number(rank(vm, ranking.by));
          return (
            <li key={vm.uuid}>
              <i class="share" aria-hidden="true" style={{ width: `${Math.max(1, (value / most) * 100).toFixed(1)}%` }} />
              <a href={vmLink(vm.uuid)} title={`${vm.name} on ${vm.host}`}>{vm.name}</a>
              <span>{ranking.say(value)}</span>
            </li>
          );
        })}
      </ol>
    </div>
  );
}
