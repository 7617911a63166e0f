// A fleet page without a fleet says what to do next.
import type { Fleet } from "../api.ts";
import { Warnings } from "../ui/warnings.tsx";
import { count, duration } from "../units.ts";

/** No host gave a reading and the store holds none. */
export function NoFleet({ fleet }: { fleet: Fleet }) {
  const troubled = fleet.warnings.some((warning) => warning.level === "error");
  return (
    <section class="empty">
      <h1>{troubled ? "No hypervisor can be read" : "Nothing has been collected yet"}</h1>
      <Warnings warnings={fleet.warnings} />
      <p>
        {troubled
          ? "Once that is mended this page fills by itself. What works and what does not, and what to type about it:"
          : `Hypervisors are read every ${duration(fleet.interval)}; this page fills by itself. If nothing comes, ask what is missing:`}
      </p>
      <pre><code>kvmetry check</code></pre>
      <p>A server that only keeps what others send (<code>kvmetry serve</code>) shows VMs once a collector writes to it:</p>
      <pre><code>kvmetry run --influxdb {location.origin}</code></pre>
      <p><a href="collector">See how the collector fares</a></p>
    </section>
  );
}

/** Hosts are read, but nothing runs on them. */
export function NoVms({ fleet }: { fleet: Fleet }) {
  const hosts = fleet.hosts.length;
  return (
    <section class="empty">
      <h1>No VM is running on {hosts === 1 ? fleet.hosts[0]?.name : `${count(hosts)} hosts`}</h1>
      <Warnings warnings={fleet.warnings} />
      <p>Only running and paused VMs are read. A VM that is started shows up here within two cycles ({duration(2 * fleet.interval)}).</p>
      <pre><code>virsh list --all{"\n"}virsh start NAME</code></pre>
      <p>
        If VMs do run, they may be another user's or on another connection (<code>qemu:///session</code>): <code>kvmetry check</code> tells
        what is read. <a href="collector">See how the collector fares</a>
      </p>
    </section>
  );
}
