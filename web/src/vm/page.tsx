// One VM: what it does now, what moved in the range and since when, its events, and all its panels.
import { useEffect, useMemo, useState } from "preact/hooks";
import type { Mark, Panel as PanelData, Vm, VmPage as Page } from "../api.ts";
import { serverNow, view } from "../fleet/state.ts";
import { Refused } from "../http.ts";
import { go, link, trail, vmLink } from "../route.ts";
import { useStore } from "../store.ts";
import { useShortcuts } from "../ui/shortcuts.ts";
import { State } from "../ui/state.tsx";
import { byteRate, count, duration, formatter, fullTime, growth, kib, percent, shortTime } from "../units.ts";
import { grouped, newest, type DeviceGroup } from "./data.ts";
import { useVmPage } from "./load.ts";
import { moved } from "./moved.ts";
import { Panel } from "./panel.tsx";
import { bounds, DEFAULT, fixed, parseRange, rangeQuery, RANGES, scaled, shifted, type Range } from "./range.ts";
import { Parts, RangeBar } from "./rangebar.tsx";

/** More devices than this are folded at first: each is three charts. */
const OPEN_DEVICES = 4;
/** The moves that are listed: more than a person reads at 3 a.m. are no help. */
const MOVES = 6;
/** Points of a chart: about a pixel each; a wide wall needs no more. */
const FEWEST_POINTS = 200;
const MOST_POINTS = 1_600;
/** Around an event or a change that is clicked on. */
const AROUND_MS = 10 * 60_000;

const NICE_KIND: Record<string, string> = { nic: "NIC", disk: "Disk" };

export function VmPage({ uuid, query }: { uuid: string; query: URLSearchParams }) {
  const { fleet } = useStore(view);
  const range = useMemo(() => parseRange(query), [query]);
  const [points] = useState(chartPoints);
  const { page, from, to, loading, parts, error, retry } = useVmPage(uuid, range, points);
  // While a person drags, the charts are ahead of the address.
  const [dragged, setDragged] = useState<{ from: number; to: number } | null>(null);
  const now = serverNow();
  const live = fleet?.vms.find((vm) => vm.uuid === uuid) ?? page?.now ?? null;
  const name = live?.name ?? page?.names[0] ?? uuid;

  useEffect(() => {
    document.title = `${name} · kvmetry`;
  }, [name]);
  useEffect(() => setDragged(null), [query]);

  const address = (to_: Range) => vmLink(uuid, rangeQuery(to_));
  const change = (next: Range) => go(address(next), { zooms: trail().zooms + 1 });
  const zoom = (begin: number, end: number) => change(fixed(begin, end));
  const pan = (begin: number, end: number, done: boolean) => {
    // What ends where it began is no other range.
    const isBack = done && begin === from && end === to;
    setDragged(isBack ? null : { from: begin, to: end });
    if (done && !isBack) change(fixed(begin, end));
  };
  const back = () => {
    if (trail().zooms > 0) history.back();
    else if (!range.live) change(DEFAULT);
  };
  const toggleLive = () => {
    // By the address, not by what is drawn: of two quick keys the charts know only the first.
    const { from: begin, to: end } = bounds(range, serverNow());
    if (range.live) return change(fixed(begin, end));
    const nearest = RANGES.reduce((best, one) => (Math.abs(one.span - (end - begin)) < Math.abs(best.span - (end - begin)) ? one : best));
    return change({ live: true, name: nearest.name, span: nearest.span });
  };

  useShortcuts({
    ...Object.fromEntries(RANGES.map((one, i) => [String(i + 1), () => change({ live: true, name: one.name, span: one.span })])),
    l: toggleLive,
    ArrowLeft: () => change(shifted(range, now, -0.5)),
    ArrowRight: () => change(shifted(range, now, 0.5)),
    "+": () => change(scaled(range, now, 0.5)),
    "-": () => change(scaled(range, now, 2)),
  });

  if (error instanceof Refused && error.status === 404) return <Unknown uuid={uuid} problem={error.message} />;

  return (
    <div class="vm">
      <Heading name={name} uuid={uuid} page={page} vm={live} />
      <RangeBar range={range} from={from} to={to} now={now} loading={loading} parts={parts} link={address} change={change} toggleLive={toggleLive} />
      {error !== null && <p class="failed" role="alert">{error.message} <button type="button" onClick={retry}>Try again</button></p>}
      {page === null && error === null && <p class="loading">{parts === null ? "Loading…" : <>Loading: <Parts parts={parts} /></>}</p>}
      {page !== null && (
        <Content page={page} name={name} span={dragged ?? { from, to }} now={now} around={(at) => address(fixed(at - AROUND_MS, at + AROUND_MS))} zoom={zoom} pan={pan} back={back} />
      )}
    </div>
  );
}

function Heading({ name, uuid, page, vm }: { name: string; uuid: string; page: Page | null; vm: Vm | null }) {
  const { fleet } = useStore(view);
  const now = fleet?.now ?? serverNow();
  const older = (page?.names ?? []).filter((one) => one !== name);
  const host = vm?.host ?? page?.host ?? "";
  const since = vm !== null && !vm.ok && vm.age !== null ? now - vm.age * 1000 : null;
  return (
    <header class="heading">
      <div>
        <h1 title={name}>{name}</h1>
        <p class="ids">
          on <a href={link("", { host })}>{host}</a> · <span class="uuid">{uuid}</span>
          {vm !== null && <> · id {vm.vmid}</>}
          {older.length > 0 && <> · was called {older.join(", ")}</>}
        </p>
      </div>
      {vm === null ? page !== null && <p class="gone">○ Not running: it is not among the VMs that are read now. What is shown is its past.</p> : (
        <dl class="now summary">
          <div class={vm.ok ? undefined : "alarm bad"}>
            <dt>State{since !== null && ` since ${shortTime(since, now)} (${duration(now - since)})`}</dt>
            <dd><State vm={vm} now={now} /></dd>
          </div>
          <div><dt>CPU</dt><dd>{percent(vm.cpu)} <small>of {count(vm.cpus)} vCPUs</small></dd></div>
          <div><dt>Memory {vm.source === "rss" ? "(QEMU's)" : "used"}</dt><dd>{kib(vm.used)} <small>of {kib(vm.assigned)}</small> <small>{growth(vm.growth)}</small></dd></div>
          <div><dt>Network</dt><dd>{byteRate(vm.rx)} <small>in</small> {byteRate(vm.tx)} <small>out</small></dd></div>
          <div><dt>Disks</dt><dd>{byteRate(vm.rd)} <small>read</small> {byteRate(vm.wr)} <small>written</small></dd></div>
          <div class={vm.errors ? "alarm bad" : undefined}><dt>Errors, drops in 15 min</dt><dd>{vm.errors ? "✕ " : ""}{count(vm.errors)} <small>errors</small> {count(vm.drops)} <small>drops</small></dd></div>
        </dl>
      )}
    </header>
  );
}

interface ContentProps {
  page: Page;
  name: string;
  span: { from: number; to: number };
  now: number;
  around: (at: number) => string;
  zoom: (from: number, to: number) => void;
  pan: (from: number, to: number, done: boolean) => void;
  back: () => void;
}

function Content({ page, name, span, now, around, ...drag }: ContentProps) {
  const { whole, devices } = useMemo(() => grouped(page.panels), [page]);
  const draw = (panel: PanelData) => <Panel key={panel.id} vm={name} panel={panel} marks={page.marks} from={span.from} to={span.to} {...drag} />;
  const kinds = [...new Set(devices.map((group) => group.kind))];
  return (
    <>
      <div class="what">
        <Moved page={page} now={now} around={around} />
        <Events marks={page.marks} now={now} around={around} />
      </div>
      {page.notes.map((note) => <p key={note} class="note">{note}</p>)}
      <section class="panels" aria-label="Charts">{whole.map(draw)}</section>
      {kinds.map((kind) => {
        const own = devices.filter((group) => group.kind === kind);
        return (
          <section key={kind} class="devices" aria-label={`${NICE_KIND[kind] ?? kind}s`}>
            <h2>{own.length === 1 ? NICE_KIND[kind] ?? kind : `${count(own.length)} ${NICE_KIND[kind] ?? kind}s`}</h2>
            {own.map((group) => <Device key={group.device} group={group} open={own.length <= OPEN_DEVICES} draw={draw} />)}
          </section>
        );
      })}
      <p class="note">
        {page.step === null ? "Each reading is shown." : `A point is ${duration(page.step)}: the line is its mean, the band behind it its least and most.`}
        {page.table === "1m" && " From the roll-ups by the minute."}
        {page.table === "1h" && " From the roll-ups by the hour."}
      </p>
    </>
  );
}

/** A device's charts exist only while it is unfolded; its newest values stand in its title. */
function Device({ group, open: first, draw }: { group: DeviceGroup; open: boolean; draw: (panel: PanelData) => preact.JSX.Element }) {
  const [open, setOpen] = useState(first);
  const main = group.panels[0];
  const faults = group.panels.filter((panel) => /:(errors|faults)$/.test(panel.id)).flatMap((panel) => panel.series);
  const faulty = faults.some((series) => (newest(series.mean) ?? 0) > 0);
  return (
    <details class="device" open={open} onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>
        <b>{group.device}</b>
        {main?.series.map((series) => <span key={series.id}>{series.label} {formatter(main.unit)(newest(series.mean))}</span>)}
        {faulty && <span class="bad">✕ errors or drops now</span>}
      </summary>
      {open && <div class="panels">{group.panels.map(draw)}</div>}
    </details>
  );
}

function Moved({ page, now, around }: { page: Page; now: number; around: (at: number) => string }) {
  const moves = useMemo(() => moved(page, MOVES), [page]);
  return (
    <section class="card" aria-labelledby="moved-title">
      <h2 id="moved-title">What moved in this range</h2>
      {moves.length === 0 && <p class="none">Nothing changed its level.</p>}
      <ol class="moves">
        {moves.map((move) => {
          const say = formatter(move.panel.unit);
          const up = move.after > move.before;
          return (
            <li key={`${move.panel.id} ${move.series.id}`}>
              <a href={around(move.at)} title={`${fullTime(move.at)}: 10 minutes before and after`}>{shortTime(move.at, now)}</a>
              <button type="button" class="quiet" onClick={() => reveal(move.panel.id)} title="Go to its chart">{move.panel.title}: {move.series.label}</button>
              <span>{say(move.before)} <i aria-hidden="true">{up ? "↗" : "↘"}</i><span class="unseen">{up ? "rose to" : "fell to"}</span> <b>{say(move.after)}</b></span>
            </li>
          );
        })}
      </ol>
    </section>
  );
}

function reveal(panel: string): void {
  const element = document.getElementById(`panel-${panel}`);
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  element?.scrollIntoView({ block: "center", behavior: still ? "auto" : "smooth" });
  element?.focus({ preventScroll: true });
}

function Events({ marks, now, around }: { marks: Mark[]; now: number; around: (at: number) => string }) {
  return (
    <section class="card" aria-labelledby="events-title">
      <h2 id="events-title">Events in this range</h2>
      {marks.length === 0 && <p class="none">None.</p>}
      <ol class="events" tabIndex={marks.length > 6 ? 0 : undefined}>
        {[...marks].reverse().map((mark) => (
          <li key={`${mark.at} ${mark.kind} ${mark.text}`}>
            <a href={around(mark.at)} title={`${fullTime(mark.at)}: 10 minutes before and after`}>{shortTime(mark.at, now)}</a>
            <b class={mark.kind === "crashed" || mark.kind === "io_error" ? "bad" : undefined}>{mark.kind.replaceAll("_", " ")}</b>
            <span>{mark.text}</span>
          </li>
        ))}
      </ol>
    </section>
  );
}

function Unknown({ uuid, problem }: { uuid: string; problem: string }) {
  return (
    <section class="empty">
      <h1>This VM is not known</h1>
      <p><code>{uuid}</code></p>
      <p>{problem}. It may never have been read, or its readings are older than what is kept.</p>
      <pre><code>{`kvmetry query "SELECT DISTINCT name, uuid FROM vm_totals"`}</code></pre>
      <p><a href="./">See the VMs that are</a></p>
    </section>
  );
}

/** A chart's width in points. Found once: a window that is resized is not worth a new query. */
function chartPoints(): number {
  const width = document.documentElement.clientWidth;
  const columns = width >= 2200 ? 3 : width >= 1000 ? 2 : 1;
  return Math.round(Math.min(MOST_POINTS, Math.max(FEWEST_POINTS, width / columns - 80)) / 100) * 100;
}
