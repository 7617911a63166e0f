// What each host carries; silent ones and those with stuck VMs first. A host's name filters the table.
import { useState } from "preact/hooks";
import type { Fleet } from "../api.ts";
import { byteRate, clock, count, duration, kib, percent, shortTime } from "../units.ts";
import type { To } from "./page.tsx";
import type { HostTotal } from "./totals.ts";

/** Of a thousand hosts these are drawn at each cycle until the person asks for all. */
const SHOWN = 8;

export function Hosts({ hosts, fleet, chosen, to }: { hosts: HostTotal[]; fleet: Fleet; chosen: string; to: To }) {
  const [all, setAll] = useState(false);
  const shown = all ? hosts : hosts.slice(0, SHOWN);
  return (
    <section class="hosts" aria-labelledby="hosts-title">
      <h2 id="hosts-title">Hosts</h2>
      <div class="scroll-x" tabIndex={0} role="region" aria-labelledby="hosts-title">
        <table>
          <thead>
            <tr>
              <th scope="col">Host</th><th scope="col">VMs</th><th scope="col">CPU</th><th scope="col">Memory</th>
              <th scope="col">Net</th><th scope="col">Disk</th><th scope="col">Cycle</th>
            </tr>
          </thead>
          <tbody>
            {shown.map((total) => <Row key={total.host.name} total={total} fleet={fleet} chosen={chosen === total.host.name} to={to} />)}
          </tbody>
        </table>
      </div>
      {hosts.length > SHOWN && (
        <button type="button" onClick={() => setAll(!all)} aria-expanded={all}>{all ? "Show fewer" : `Show all ${count(hosts.length)}`}</button>
      )}
    </section>
  );
}

function Row({ total, fleet, chosen, to }: { total: HostTotal; fleet: Fleet; chosen: boolean; to: To }) {
  const { host } = total;
  const name = (
    <th scope="row">
      <a href={to({ host: chosen ? "" : host.name })} aria-current={chosen ? "true" : undefined}
        title={chosen ? "Show all hosts" : `Show only VMs of ${host.name}`}>{host.name}</a>
    </th>
  );
  if (host.silent) {
    const gone = host.at === null ? "" : ` (${duration(fleet.now - host.at)})`;
    return (
      <tr class="bad">
        {name}
        <td>{count(host.vms)}</td>
        <td colSpan={5} class="says" title={clock(host.at)}>✕ silent since {host.at === null ? "the start" : shortTime(host.at, fleet.now)}{gone}</td>
      </tr>
    );
  }
  const slow = host.cycle !== null && host.cycle > host.interval / 2;
  return (
    <tr>
      {name}
      <td>{count(host.vms)}{host.stuck > 0 && <span class="bad" title={`${host.stuck} stuck`}> ▲{host.stuck}</span>}</td>
      <td>{percent(total.cpus === 0 ? null : (100 * total.cores) / total.cpus)}</td>
      <td title={`of ${kib(total.assigned)} assigned`}>{kib(total.used)}</td>
      <td title={`in ${byteRate(total.rx)}, out ${byteRate(total.tx)}`}>{byteRate(total.rx + total.tx)}</td>
      <td title={`read ${byteRate(total.rd)}, written ${byteRate(total.wr)}`}>{byteRate(total.rd + total.wr)}</td>
      <td class={slow ? "warn" : undefined} title={slow ? "more than half of the interval" : undefined}>{slow && "▲ "}{duration(host.cycle)}</td>
    </tr>
  );
}
