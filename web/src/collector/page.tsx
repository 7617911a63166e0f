// How the collector itself fares: each hypervisor, what waits to be delivered, how full the store is, and what to do about it.
import { Fragment } from "preact";
import { useEffect, useState } from "preact/hooks";
import type { Collector, Delivery, Hypervisor } from "../api.ts";
import { serverNow, view } from "../fleet/state.ts";
import { get } from "../http.ts";
import { link } from "../route.ts";
import { useStore } from "../store.ts";
import { Warnings } from "../ui/warnings.tsx";
import { bytes, count, countRate, duration, fullTime, ratio, shortTime } from "../units.ts";

const PACE_MS = 5_000;
/** A cycle that takes longer than this part of the interval leaves no room for trouble. */
const SLOW = 0.5;

export function CollectorPage() {
  const { up } = useStore(view);
  const { collector, error } = useCollector(up);
  const now = serverNow();
  if (collector === null) {
    return error === null ? <p class="loading">Loading…</p> : <section class="empty"><h1>Collector</h1><p role="alert">{error}</p></section>;
  }
  return (
    <div class="collector">
      <header class="heading">
        <div>
          <h1>Collector</h1>
          <p class="ids">
            kvmetry {collector.version} · answers from {collector.source} · runs since {shortTime(collector.since, now)} ({duration(now - collector.since)})
          </p>
        </div>
        <dl class="summary now">
          <div><dt>Points</dt><dd>{countRate(collector.points)}</dd></div>
          <div><dt>Hypervisors</dt><dd>{count(collector.hypervisors.length)}</dd></div>
          <div><dt>VMs</dt><dd>{count(collector.hypervisors.reduce((sum, one) => sum + one.vms, 0))}</dd></div>
        </dl>
      </header>
      {error !== null && <p class="failed" role="alert">{error}</p>}
      <Warnings warnings={collector.warnings} />
      <Hypervisors list={collector.hypervisors} now={now} />
      <div class="what">
        <Journal journal={collector.journal} now={now} />
        <StoreCard store={collector.store} />
      </div>
      <Deliveries list={collector.deliveries} />
    </div>
  );
}

/** Asks at a steady pace, for a collector that cannot read anything has no cycles to tell; not while nobody looks. */
function useCollector(up: boolean): { collector: Collector | null; error: string | null } {
  const [state, setState] = useState<{ collector: Collector | null; error: string | null }>({ collector: null, error: null });
  useEffect(() => {
    const control = new AbortController();
    // One question at a time: a browser has six connections to a server, and a slow answer would not be the newest.
    let asking = false;
    const ask = () => {
      if (document.visibilityState !== "visible" || asking) return;
      asking = true;
      get<Collector>("api/collector", control.signal).then(
        (collector) => {
          asking = false;
          setState({ collector, error: null });
        },
        (error: unknown) => {
          asking = false;
          if (!control.signal.aborted) setState((old) => ({ ...old, error: error instanceof Error ? error.message : String(error) }));
        },
      );
    };
    ask();
    const timer = setInterval(ask, PACE_MS);
    document.addEventListener("visibilitychange", ask);
    return () => {
      control.abort();
      clearInterval(timer);
      document.removeEventListener("visibilitychange", ask);
    };
  }, [up]);
  return state;
}

function Hypervisors({ list, now }: { list: Hypervisor[]; now: number }) {
  const sorted = [...list].sort((a, b) => Number(b.problem !== null) - Number(a.problem !== null) || b.stuck - a.stuck || (a.host < b.host ? -1 : 1));
  return (
    <section class="card" aria-labelledby="hypervisors-title">
      <h2 id="hypervisors-title">Hypervisors</h2>
      {list.length === 0 && (
        <p class="none">
          None has been read yet: <code>kvmetry check</code> says why. <code>kvmetry run --uri qemu:///system</code> reads one; a server
          that only keeps what others send shows theirs here.
        </p>
      )}
      {list.length > 0 && (
        <div class="scroll-x" tabIndex={0} role="region" aria-labelledby="hypervisors-title">
          <table class="plain">
            <thead>
              <tr>
                <th scope="col">Host</th><th scope="col">Connected since</th><th scope="col">libvirt</th>
                <th scope="col" class="num">VMs</th><th scope="col" class="num">Stuck</th>
                <th scope="col" class="num">Cycle</th><th scope="col" class="num">of interval</th>
                <th scope="col" class="num" title="calls past their deadline that the host still holds">Given up</th>
                <th scope="col" class="num" title="readings that failed since the start">Failures</th>
                <th scope="col" class="num" title="device names found in the cache">Cache hits</th>
              </tr>
            </thead>
            <tbody>{sorted.map((one) => <HypervisorRow key={`${one.host} ${one.uri}`} one={one} now={now} />)}</tbody>
          </table>
        </div>
      )}
    </section>
  );
}

function HypervisorRow({ one, now }: { one: Hypervisor; now: number }) {
  const part = one.cycle === null ? null : one.cycle / one.interval;
  const slow = part !== null && part > SLOW;
  return (
    <>
      <tr class={one.problem !== null ? "bad-row" : undefined}>
        <th scope="row"><a href={link("", { host: one.host })}>{one.host}</a>{one.uri !== null && one.uri !== one.host && <small> {one.uri}</small>}</th>
        <td title={fullTime(one.connectedSince)}>
          {one.uri === null ? "–" : one.connectedSince === null ? <span class="bad">✕ not connected</span> : <>{shortTime(one.connectedSince, now)} <small>({duration(now - one.connectedSince)})</small></>}
        </td>
        <td>{one.libvirt ?? "–"}</td>
        <td class="num">{count(one.vms)}</td>
        <td class={one.stuck > 0 ? "num bad" : "num"}>{one.stuck > 0 && "▲ "}{one.stuck > 0 ? <a href={link("", { host: one.host, state: "stuck" })}>{count(one.stuck)}</a> : count(one.stuck)}</td>
        <td class="num">{duration(one.cycle)}</td>
        <td class={slow ? "num warn" : "num"} title={slow ? "little room is left: more hosts per collector are too many, or VMs do not answer" : undefined}>{slow && "▲ "}{ratio(part)}</td>
        <td class={one.abandoned > 0 ? "num warn" : "num"}>{count(one.abandoned)}</td>
        <td class="num">{count(one.failures)}</td>
        <td class="num">{ratio(one.cacheHits)}</td>
      </tr>
      {one.problem !== null && <tr class="bad-row"><td /><td colSpan={9} class="problem-text">{one.problem}</td></tr>}
    </>
  );
}

function Journal({ journal, now }: { journal: Collector["journal"]; now: number }) {
  return (
    <section class="card" aria-labelledby="journal-title">
      <h2 id="journal-title">Journal</h2>
      {journal === null ? <p class="none">There is none: nothing is kept here on its way.</p> : (
        <>
          <Bar used={journal.bytes} max={journal.max} words={`${bytes(journal.bytes)} of ${bytes(journal.max)}`} />
          <dl class="facts">
            <div><dt>Entries</dt><dd>{count(journal.entries)}</dd></div>
            <div><dt>Oldest</dt><dd>{journal.oldest === null ? "–" : <>{shortTime(journal.oldest, now)} <small>({duration(now - journal.oldest)} ago)</small></>}</dd></div>
          </dl>
          <p class="note">When it is full the oldest entries go, whether delivered or not; this is counted as lost.</p>
        </>
      )}
    </section>
  );
}

function StoreCard({ store }: { store: Collector["store"] }) {
  return (
    <section class="card" aria-labelledby="store-title">
      <h2 id="store-title">Store</h2>
      {store === null ? <p class="none">The embedded store is off. <code>[store]</code> in the configuration turns it on.</p> : (
        <>
          <Bar used={store.bytes} max={store.max} words={`${bytes(store.bytes)} of ${bytes(store.max)}`} />
          <dl class="facts">
            <div><dt>Rows in files</dt><dd>{count(store.rows)}</dd></div>
            <div><dt>Rows in memory</dt><dd>{count(store.memoryRows)}</dd></div>
            <div><dt>Files</dt><dd>{count(store.files)}</dd></div>
            <div class={store.free < store.minFree ? "bad" : undefined}><dt>Disk free</dt><dd>{store.free < store.minFree && "✕ "}{bytes(store.free)} <small>at least {bytes(store.minFree)}</small></dd></div>
          </dl>
          <p class="note">When it is full, or the disk is, the oldest days go.</p>
        </>
      )}
    </section>
  );
}

function Deliveries({ list }: { list: Delivery[] }) {
  if (list.length === 0) return null;
  return (
    <section class="card" aria-labelledby="deliveries-title">
      <h2 id="deliveries-title">Deliveries</h2>
      <div class="scroll-x" tabIndex={0} role="region" aria-labelledby="deliveries-title">
        <table class="plain">
          <thead>
            <tr>
              <th scope="col">InfluxDB</th><th scope="col">State</th><th scope="col" class="num">Waiting</th><th scope="col" class="num">Delivered</th>
              <th scope="col" class="num" title="kept in the reject file with the server's reason">Refused</th><th scope="col" class="num">Lost</th>
            </tr>
          </thead>
          <tbody>
            {list.map((one) => (
              <Fragment key={one.name}>
                <tr class={one.state === "failing" ? "bad-row" : undefined}>
                  <th scope="row">{one.name} <small>{one.url}</small></th>
                  <td>{one.state === "ok" ? <span class="good">● ok</span> : one.state === "behind" ? <span class="warn">◷ behind</span> : <span class="bad">✕ failing</span>}</td>
                  <td class="num">{count(one.waitingEntries)} <small>entries</small></td>
                  <td class="num">{count(one.deliveredLines)} <small>lines</small></td>
                  <td class={one.refusedLines > 0 ? "num warn" : "num"}>{count(one.refusedLines)}</td>
                  <td class={one.lostLines > 0 ? "num bad" : "num"}>{count(one.lostLines)}</td>
                </tr>
                {one.trouble !== null && <tr class={one.state === "failing" ? "bad-row" : undefined}><td /><td colSpan={5} class="problem-text">{one.trouble}</td></tr>}
              </Fragment>
            ))}
          </tbody>
        </table>
      </div>
    </section>
  );
}

function Bar({ used, max, words }: { used: number; max: number; words: string }) {
  const part = max === 0 ? 0 : Math.min(1, used / max);
  return (
    <div class="bar">
      <div class="track" aria-hidden="true"><i class={part > 0.9 ? "high" : undefined} style={{ width: `${(part * 100).toFixed(1)}%` }} /></div>
      <span>{words} <small>({ratio(part)})</small></span>
    </div>
  );
}
