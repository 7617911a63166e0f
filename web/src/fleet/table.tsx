// Every VM, one row each, of which only those in sight are in the document: a thousand cost what forty do. It stays a table for
// screen readers (aria-rowcount, aria-rowindex tell the rest), and the arrow keys walk through all of it.
import { useLayoutEffect, useRef, useState } from "preact/hooks";
import type { Fleet, Vm } from "../api.ts";
import { vmLink } from "../route.ts";
import { useStore } from "../store.ts";
import { colours } from "../ui/colours.ts";
import { State } from "../ui/state.tsx";
import { byteRate, count, duration, growth, kib, percent, shortTime } from "../units.ts";
import { descendingByDefault, isLate, type Key, type Sort } from "./order.ts";
import type { To } from "./page.tsx";
import { draw } from "./spark.ts";
import { sparks } from "./state.ts";

/** Rows drawn beyond the edges, so that a quick scroll meets no hole. */
const OVERSCAN = 6;

interface Column {
  key: Key | null;
  title: string;
  hint: string;
  class: string;
}

const COLUMNS: Column[] = [
  { key: "name", title: "VM", hint: "name", class: "name" },
  { key: "state", title: "State", hint: "state, as libvirt numbers them", class: "state-col" },
  { key: "host", title: "Host", hint: "hypervisor", class: "host" },
  { key: "cpu", title: "CPU", hint: "percent of its vCPUs", class: "num meter" },
  { key: null, title: "15 min", hint: "CPU of the last 15 minutes", class: "spark" },
  { key: "cpus", title: "vCPUs", hint: "virtual CPUs", class: "num" },
  { key: "used", title: "Mem used", hint: "memory used", class: "num meter" },
  { key: "assigned", title: "Mem has", hint: "memory that it has", class: "num" },
  { key: "growth", title: "Growth", hint: "change of used memory", class: "num" },
  { key: "rx", title: "Net in", hint: "received", class: "num" },
  { key: "tx", title: "Net out", hint: "sent", class: "num" },
  { key: "rd", title: "Read", hint: "read from disks", class: "num" },
  { key: "wr", title: "Written", hint: "written to disks", class: "num" },
  { key: "errors", title: "Errors", hint: "network and disk errors, 15 min", class: "num" },
  { key: "drops", title: "Drops", hint: "packets dropped, 15 min", class: "num" },
];

export function Table({ fleet, vms, sort, to }: { fleet: Fleet; vms: Vm[]; sort: Sort; to: To }) {
  const box = useRef<HTMLDivElement>(null);
  const [top, setTop] = useState(0);
  const [height, setHeight] = useState(800);
  const [sizes, setSizes] = useState(readSizes);
  const { row } = sizes;
  // The row that the Tab key meets: one, not a thousand.
  const [cursor, setCursor] = useState(0);
  const wanted = useRef<number | null>(null);

  useLayoutEffect(() => {
    const element = box.current;
    if (element === null) return undefined;
    const watch = new ResizeObserver(() => {
      setHeight(element.clientHeight);
      setSizes(readSizes());
    });
    watch.observe(element);
    return () => watch.disconnect();
  }, []);
  // Another filter or order begins at its top.
  useLayoutEffect(() => {
    if (box.current !== null) box.current.scrollTop = 0;
    setCursor(0);
  }, [sort.key, sort.descending]);
  useLayoutEffect(() => {
    if (wanted.current === null) return;
    const link = box.current?.querySelector<HTMLElement>(`tr[aria-rowindex="${wanted.current + 2}"] a`);
    if (link) {
      link.focus({ preventScroll: true });
      wanted.current = null;
    }
  });

  const first = Math.max(0, Math.min(Math.floor(top / row) - OVERSCAN, vms.length - 1));
  const last = Math.min(vms.length, Math.ceil((top + height) / row) + OVERSCAN);
  const tabbed = cursor >= first && cursor < last ? cursor : first;

  const keys = (event: KeyboardEvent) => {
    const page = Math.max(1, Math.floor(height / row) - 2);
    const steps: Record<string, number> = {
      ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -vms.length, End: vms.length,
    };
    const step = steps[event.key];
    if (step === undefined || !(event.target as Element).closest("tbody")) return;
    event.preventDefault();
    const next = Math.max(0, Math.min(vms.length - 1, tabbed + step));
    const element = box.current;
    // The head, one row high, lies over the first of what is scrolled to.
    if (element !== null) {
      if (next * row < element.scrollTop) element.scrollTop = next * row;
      else if ((next + 2) * row > element.scrollTop + height) element.scrollTop = (next + 2) * row - height;
      setTop(element.scrollTop);
    }
    wanted.current = next;
    setCursor(next);
  };

  return (
    <div class="vms" ref={box} tabIndex={0} role="region" aria-label="VMs" onKeyDown={keys}
      onScroll={(event) => setTop(event.currentTarget.scrollTop)}>
      <table aria-rowcount={vms.length + 1}>
        <caption class="unseen">VMs; arrow keys go from row to row, Enter opens one</caption>
        <thead>
          <tr aria-rowindex={1}>{COLUMNS.map((column) => <Head key={column.title} column={column} sort={sort} to={to} />)}</tr>
        </thead>
        <tbody>
          {first > 0 && <tr class="space" aria-hidden="true"><td colSpan={COLUMNS.length} style={{ height: `${first * row}px` }} /></tr>}
          {vms.slice(first, last).map((vm, i) => (
            <Row key={vm.uuid} vm={vm} fleet={fleet} size={sizes.spark} index={first + i} tabbed={first + i === tabbed} focused={() => setCursor(first + i)} />
          ))}
          {last < vms.length && <tr class="space" aria-hidden="true"><td colSpan={COLUMNS.length} style={{ height: `${(vms.length - last) * row}px` }} /></tr>}
        </tbody>
      </table>
      {vms.length === 0 && <p class="none">No VM fits the filter. <a href={to({ q: "", host: "", state: "" })}>Show all</a></p>}
    </div>
  );
}

interface Sizes {
  row: number;
  spark: { width: number; height: number };
}

/** From the style sheet: on a wall rows are higher. A canvas leaves 3 px above and below. */
function readSizes(): Sizes {
  const style = getComputedStyle(document.documentElement);
  const row = parseFloat(style.getPropertyValue("--row"));
  return { row, spark: { width: parseFloat(style.getPropertyValue("--spark")), height: row - 6 } };
}

function Head({ column, sort, to }: { column: Column; sort: Sort; to: To }) {
  const { key } = column;
  if (key === null) return <th scope="col" class={column.class} title={column.hint}>{column.title}</th>;
  const sorted = sort.key === key;
  const descending = sorted ? !sort.descending : descendingByDefault(key);
  return (
    <th scope="col" class={column.class} aria-sort={sorted ? (sort.descending ? "descending" : "ascending") : undefined}>
      <a href={to({ sort: key, dir: descending ? "desc" : "asc" })} title={`Sort by ${column.hint}`}>
        {column.title}<i aria-hidden="true">{sorted ? (sort.descending ? "▾" : "▴") : ""}</i>
      </a>
    </th>
  );
}

interface RowProps {
  vm: Vm;
  fleet: Fleet;
  size: Sizes["spark"];
  index: number;
  tabbed: boolean;
  focused: () => void;
}

function Row({ vm, fleet, size, index, tabbed, focused }: RowProps) {
  const late = isLate(vm, fleet.now);
  const since = !vm.ok && vm.age !== null ? fleet.now - vm.age * 1000 : late ? vm.at : null;
  const full = vm.used !== null && vm.assigned ? (100 * vm.used) / vm.assigned : null;
  return (
    <tr class={!vm.ok ? "stuck" : late ? "late" : undefined} aria-rowindex={index + 2}>
      <th scope="row" class="name">
        <a href={vmLink(vm.uuid)} tabIndex={tabbed ? 0 : -1} onFocus={focused} title={vm.name}>{vm.name}</a>
      </th>
      <td class="state-col">
        <State vm={vm} now={fleet.now} />
        {since !== null && <small title={`for ${duration(fleet.now - since)}`}> since {shortTime(since, fleet.now)}</small>}
      </td>
      <td class="host">{vm.host}</td>
      <td class="num meter"><Meter value={vm.cpu} />{percent(vm.cpu)}</td>
      <td class="spark"><Spark vm={vm} at={fleet.at ?? vm.at} size={size} /></td>
      <td class="num">{count(vm.cpus)}</td>
      <td class="num meter" title={vm.source === "rss" ? "resident memory of the QEMU process: the guest tells nothing" : vm.source === "guest" ? "the guest's own figure" : undefined}>
        <Meter value={full} />{kib(vm.used)}{vm.source === "rss" && <small> rss</small>}
      </td>
      <td class="num">{kib(vm.assigned)}</td>
      <td class="num">{growth(vm.growth)}</td>
      <td class="num">{byteRate(vm.rx)}</td>
      <td class="num">{byteRate(vm.tx)}</td>
      <td class="num">{byteRate(vm.rd)}</td>
      <td class="num">{byteRate(vm.wr)}</td>
      <td class={vm.errors ? "num bad" : "num"}>{vm.errors ? "✕ " : ""}{count(vm.errors)}</td>
      <td class={vm.drops ? "num warn" : "num"}>{count(vm.drops)}</td>
    </tr>
  );
}

/** How full something is, behind its number; the number says it too. */
function Meter({ value }: { value: number | null }) {
  if (value === null) return null;
  return <i class={value >= 90 ? "fill high" : "fill"} aria-hidden="true" style={{ transform: `scaleX(${Math.min(1, value / 100).toFixed(3)})` }} />;
}

function Spark({ vm, at, size }: { vm: Vm; at: number; size: Sizes["spark"] }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const { spark } = useStore(colours);
  useLayoutEffect(() => {
    if (canvas.current !== null) draw(canvas.current, size, sparks.values(vm.uuid, at), spark);
  });
  return <canvas ref={canvas} aria-hidden="true" />;
}
