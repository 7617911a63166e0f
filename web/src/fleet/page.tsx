// The fleet: what to do now, who does most, what each host does, and every VM in one table.
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import type { Fleet, Vm } from "../api.ts";
import { go, link } from "../route.ts";
import { useStore } from "../store.ts";
import { useShortcuts } from "../ui/shortcuts.ts";
import { Warnings } from "../ui/warnings.tsx";
import { byteRate, clock, count, kib, percent, stateName } from "../units.ts";
import { NoFleet, NoVms } from "./empty.tsx";
import { Hosts } from "./hosts.tsx";
import { descendingByDefault, isKey, isLate, matches, NAMES, Order, type Filter, type Sort } from "./order.ts";
import { showSparks, updateBegan, view } from "./state.ts";
import { Table } from "./table.tsx";
import { Talkers } from "./talkers.tsx";
import { totals, type Total } from "./totals.ts";

/** Typing changes the address once the person pauses, so that back does not go letter by letter. */
const TYPING_MS = 250;

const DEFAULT_SORT: Sort = { key: "cpu", descending: true };

export function FleetPage({ query }: { query: URLSearchParams }) {
  const { fleet, up } = useStore(view);
  const measured = useRef(0);

  useEffect(() => {
    showSparks(true);
    return () => showSparks(false);
  }, []);

  useLayoutEffect(() => {
    if (updateBegan === measured.current) return;
    measured.current = updateBegan;
    performance.measure("fleet-update", { start: updateBegan, end: performance.now() });
    // Observers have it; kept, they would pile up for as long as the tab is open.
    performance.clearMeasures("fleet-update");
  });

  if (fleet === null) return up ? <p class="loading">Waiting for the first cycle…</p> : <p class="loading">Connecting…</p>;
  if (fleet.hosts.length === 0 && fleet.vms.length === 0) return <NoFleet fleet={fleet} />;
  if (fleet.vms.length === 0) return <NoVms fleet={fleet} />;
  return <Loaded fleet={fleet} query={query} />;
}

function Loaded({ fleet, query }: { fleet: Fleet; query: URLSearchParams }) {
  const filter: Filter = { text: query.get("q") ?? "", host: query.get("host") ?? "", state: query.get("state") ?? "" };
  const sort = sortOf(query);
  const order = useRef(new Order());
  const [again, setAgain] = useState(0);
  const asked = useRef(0);
  const sums = useMemo(() => totals(fleet), [fleet]);

  const vms = useMemo(() => {
    const fits = fleet.vms.filter((vm) => matches(vm, filter, fleet.now));
    const anew = asked.current !== again;
    asked.current = again;
    return order.current.arrange(fits, sort, fleet.now, anew);
  }, [fleet, filter.text, filter.host, filter.state, sort.key, sort.descending, again]);

  const stuck = vms[0]?.ok === false && sort.key !== "name" && sort.key !== "host";
  const to = (change: Record<string, string>) => fleetLink(query, change);
  useShortcuts({ r: () => setAgain(again + 1) });

  return (
    <div class="fleet">
      <h1 class="unseen">Fleet</h1>
      <div class="fleet-head">
        <Warnings warnings={fleet.warnings} />
        <Summary fleet={fleet} total={sums.all} to={to} />
      </div>
      <Talkers fleet={fleet} to={to} />
      <section class="fleet-list" aria-labelledby="list-title">
        <h2 id="list-title" class="unseen">All VMs</h2>
        <Filters fleet={fleet} filter={filter} to={to} shown={vms.length} />
        <p class="order-hint">
          {order.current.moved
            ? <>Sorted by {NAMES[sort.key]} at {clock(order.current.sortedAt)}; values have moved since. <button type="button" onClick={() => setAgain(again + 1)}>Sort again <kbd>r</kbd></button></>
            : <>In order of {NAMES[sort.key]}{stuck ? ", stuck VMs first" : ""}. Rows keep their place while values move.</>}
        </p>
        <Table fleet={fleet} vms={vms} sort={sort} to={to} />
      </section>
      <Hosts hosts={sums.hosts} fleet={fleet} chosen={filter.host} to={to} />
    </div>
  );
}

/** The address of this view with something changed. */
export type To = (change: Record<string, string>) => string;

function sortOf(query: URLSearchParams): Sort {
  const key = query.get("sort") ?? "";
  if (!isKey(key)) return DEFAULT_SORT;
  const direction = query.get("dir");
  return { key, descending: direction === null ? descendingByDefault(key) : direction === "desc" };
}

function fleetLink(query: URLSearchParams, change: Record<string, string>): string {
  const kept: Record<string, string> = {};
  for (const key of ["q", "host", "state", "sort", "dir"]) kept[key] = change[key] ?? query.get(key) ?? "";
  return link("", kept);
}

function Summary({ fleet, total, to }: { fleet: Fleet; total: Total; to: To }) {
  const stuck = fleet.vms.filter((vm) => !vm.ok).length;
  const late = fleet.vms.filter((vm) => vm.ok && isLate(vm, fleet.now)).length;
  const silent = fleet.hosts.filter((host) => host.silent);
  // Where nothing is read there is no sum: 0 would be one.
  const sum = (value: number) => (total.vms === 0 && fleet.vms.length > 0 ? null : value);
  return (
    <dl class="summary" aria-label="Totals">
      <div><dt>VMs</dt><dd>{count(fleet.vms.length)} <small>on {count(fleet.hosts.length)} {fleet.hosts.length === 1 ? "host" : "hosts"}</small></dd></div>
      <div><dt>CPU</dt><dd>{percent(total.cpus === 0 ? null : (100 * total.cores) / total.cpus)} <small>{total.cores.toFixed(1)} of {count(total.cpus)} vCPUs</small></dd></div>
      <div><dt>Memory used</dt><dd>{kib(sum(total.used))} <small>of {kib(sum(total.assigned))}</small></dd></div>
      <div><dt>Network</dt><dd>{byteRate(sum(total.rx))} <small>in</small> {byteRate(sum(total.tx))} <small>out</small></dd></div>
      <div><dt>Disks</dt><dd>{byteRate(sum(total.rd))} <small>read</small> {byteRate(sum(total.wr))} <small>written</small></dd></div>
      {stuck > 0 && <div class="alarm bad"><dt>Stuck</dt><dd><a href={to({ state: "stuck", q: "", host: "" })}>▲ {count(stuck)}</a></dd></div>}
      {silent.length > 0 && (
        <div class="alarm bad">
          <dt>Silent {silent.length === 1 ? "host" : "hosts"}</dt>
          <dd>✕ <a href={to({ host: silent[0]?.name ?? "", q: "", state: "" })}>{silent[0]?.name}</a>{silent.length > 1 && ` and ${count(silent.length - 1)} more`}</dd>
        </div>
      )}
      {late > 0 && <div class="alarm warn"><dt>Late VMs</dt><dd><a href={to({ state: "late", q: "", host: "" })}>◷ {count(late)}</a></dd></div>}
    </dl>
  );
}

function Filters({ fleet, filter, to, shown }: { fleet: Fleet; filter: Filter; to: To; shown: number }) {
  const input = useRef<HTMLInputElement>(null);
  const typing = useRef<ReturnType<typeof setTimeout> | undefined>(undefined);
  // When typing has paused, the rest of the address is that of then: a host may have been chosen meanwhile.
  const latest = useRef({ filter, to });
  latest.current = { filter, to };
  useShortcuts({ "/": () => input.current?.focus() });
  // Back and forward change the filter too; what is just being typed is ahead of the address and left alone.
  useEffect(() => {
    if (input.current === null || typing.current !== undefined) return;
    // The address has no spaces at the ends; a word that is to be followed by another keeps its own.
    if (input.current.value.trim() !== filter.text) input.current.value = filter.text;
  }, [filter.text]);
  useEffect(() => () => clearTimeout(typing.current), []);
  const states = useMemo(() => [...new Set(fleet.vms.map((vm: Vm) => stateName(vm.state)))].sort(), [fleet]);
  const some = filter.text !== "" || filter.host !== "" || filter.state !== "";

  return (
    <form class="filters" role="search" aria-label="Filter VMs" onSubmit={(event) => event.preventDefault()}>
      <input ref={input} type="search" aria-label="Name, UUID or host" placeholder="Filter: name, UUID, host  ( / )" defaultValue={filter.text}
        spellcheck={false} autocomplete="off" onInput={(event) => {
          const text = event.currentTarget.value;
          clearTimeout(typing.current);
          typing.current = setTimeout(() => {
            typing.current = undefined;
            const now = latest.current;
            go(now.to({ q: text.trim() }), { replace: now.filter.text !== "" && text !== "" });
          }, TYPING_MS);
        }} />
      <select aria-label="Host" value={filter.host} onChange={(event) => go(to({ host: event.currentTarget.value }))}>
        <option value="">all hosts</option>
        {filter.host !== "" && !fleet.hosts.some((host) => host.name === filter.host) && <option value={filter.host}>{filter.host}</option>}
        {fleet.hosts.map((host) => <option key={host.name} value={host.name}>{host.name}</option>)}
      </select>
      <select aria-label="State" value={filter.state} onChange={(event) => go(to({ state: event.currentTarget.value }))}>
        <option value="">all states</option>
        <option value="trouble">any trouble</option>
        <option value="stuck">stuck</option>
        <option value="late">late</option>
        {states.map((state) => <option key={state} value={state}>{state}</option>)}
        {filter.state !== "" && !["trouble", "stuck", "late", ...states].includes(filter.state) && <option value={filter.state}>{filter.state}</option>}
      </select>
      <span class="shown">{some ? `${count(shown)} of ${count(fleet.vms.length)} VMs` : `${count(shown)} VMs`}</span>
      {some && <a class="button" href={to({ q: "", host: "", state: "" })}>Clear</a>}
    </form>
  );
}
