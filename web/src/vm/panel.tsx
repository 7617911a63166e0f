// A panel: title, chart, legend with the values at the cursor, its SQL and its CSV. The chart exists only while it is in or near
// the window: a VM with thirty devices has a hundred of them.
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import type { Mark, Panel as PanelData, Series } from "../api.ts";
import { useStore } from "../store.ts";
import { colours } from "../ui/colours.ts";
import { Dialog } from "../ui/dialog.tsx";
import { formatter, fullTime, shortTime } from "../units.ts";
import { Chart } from "./chart.ts";
import { csv, fileName } from "./csv.ts";
import { lowerBound, newest } from "./data.ts";

/** Drawn this far before it comes into the window. */
const NEAR_PX = 300;

export interface PanelProps {
  vm: string;
  panel: PanelData;
  from: number;
  to: number;
  marks: Mark[];
  zoom: (from: number, to: number) => void;
  pan: (from: number, to: number, done: boolean) => void;
  back: () => void;
}

export function Panel(props: PanelProps) {
  const { panel, from, to, marks, vm } = props;
  const palette = useStore(colours);
  const box = useRef<HTMLDivElement>(null);
  const chart = useRef<Chart | null>(null);
  // What the chart calls back is the newest props, whenever it was made.
  const latest = useRef(props);
  latest.current = props;
  const [near, setNear] = useState(false);
  const [point, setPoint] = useState<number | null>(null);
  const [hidden, setHidden] = useState<Set<string>>(new Set());
  const [sql, setSql] = useState(false);
  const told = useMemo(() => summary(panel), [panel]);
  const empty = !panel.series.some((series) => series.mean.some((value) => value !== null));
  const shape = panel.series.map((series) => `${series.id}${series.min === null ? "" : "±"}`).join(" ");

  useEffect(() => {
    const element = box.current;
    if (element === null) return undefined;
    const watch = new IntersectionObserver(([entry]) => setNear(entry?.isIntersecting ?? false), { rootMargin: `${NEAR_PX}px 0px` });
    watch.observe(element);
    const size = new ResizeObserver(() => chart.current?.resize(element.clientWidth));
    size.observe(element);
    return () => {
      watch.disconnect();
      size.disconnect();
    };
  }, []);

  useLayoutEffect(() => {
    if (!near || empty || box.current === null) return undefined;
    const made = new Chart(box.current, panel, { from, to }, marks, hidden, palette, {
      zoom: (begin, end) => latest.current.zoom(begin, end),
      pan: (begin, end, done) => latest.current.pan(begin, end, done),
      back: () => latest.current.back(),
      point: setPoint,
    });
    chart.current = made;
    return () => {
      made.destroy();
      chart.current = null;
      setPoint(null);
    };
  }, [near, empty, shape, palette]);

  useLayoutEffect(() => chart.current?.update(panel, { from, to }, marks, hidden), [panel, from, to, marks, hidden]);

  const keys = (event: KeyboardEvent) => {
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      event.preventDefault();
      event.stopPropagation();
      chart.current?.step((event.key === "ArrowLeft" ? -1 : 1) * (event.shiftKey ? 10 : 1));
    } else if (event.key === "Escape") chart.current?.leave();
  };

  const toggle = (id: string) => {
    const next = new Set(hidden);
    if (!next.delete(id)) next.add(id);
    setHidden(next);
  };

  const at = point === null ? null : (panel.times[point] ?? null);
  return (
    <figure class="panel" id={`panel-${panel.id}`} tabIndex={-1}>
      <figcaption>
        <h3>{panel.title}</h3>
        <time title={fullTime(at)}>{at === null ? "" : shortTime(at, to)}</time>
        <span class="tools">
          <button type="button" class="quiet" onClick={() => setSql(true)} aria-label={`SQL of ${panel.title}`}>SQL</button>
          <button type="button" class="quiet" onClick={() => save(panel, vm, from, to)} aria-label={`Save ${panel.title} as CSV`}>CSV</button>
        </span>
      </figcaption>
      <div class="chart" ref={box} tabIndex={0} role="group" aria-label={told} onKeyDown={keys} onBlur={() => chart.current?.leave()}>
        {empty && <p class="none">No reading in this range</p>}
      </div>
      <ul class="legend">
        {panel.series.map((series, place) => (
          <li key={series.id}>
            <button type="button" class="quiet" aria-pressed={!hidden.has(series.id)} title="Show or hide" onClick={() => toggle(series.id)}>
              <i style={{ background: palette.series[place % palette.series.length] ?? "" }} aria-hidden="true" />
              <span>{series.label}</span>
              <b>{valueOf(series, panel.unit, point)}</b>
            </button>
          </li>
        ))}
      </ul>
      {sql && <Sql panel={panel} close={() => setSql(false)} />}
    </figure>
  );
}

/** At the cursor, with its bounds where there are any; else the newest. */
function valueOf(series: Series, unit: string, point: number | null): string {
  const say = formatter(unit);
  if (point === null) return say(newest(series.mean));
  const [mean, min, max] = [series.mean[point] ?? null, series.min?.[point] ?? null, series.max?.[point] ?? null];
  if (min === null || max === null) return say(mean);
  return `${say(mean)} (${say(min)} … ${say(max)})`;
}

/** What a person who does not see the chart is told about it. */
function summary(panel: PanelData): string {
  const say = formatter(panel.unit);
  const parts = panel.series.map((series) => {
    let [low, high] = [Infinity, -Infinity];
    (series.min ?? series.mean).forEach((value) => { if (value !== null) low = Math.min(low, value); });
    (series.max ?? series.mean).forEach((value) => { if (value !== null) high = Math.max(high, value); });
    return `${series.label} ${say(newest(series.mean))}, from ${say(low)} to ${say(high)}`;
  });
  return `Chart of ${panel.title}: ${parts.join("; ")}. Arrow keys move the cursor.`;
}

function save(panel: PanelData, vm: string, from: number, to: number): void {
  const begin = panel.times[lowerBound(panel.times, from)] ?? from;
  const address = URL.createObjectURL(new Blob([csv(panel, from, to)], { type: "text/csv" }));
  const anchor = document.createElement("a");
  anchor.href = address;
  anchor.download = fileName(vm, panel.id, begin);
  anchor.click();
  // Not at once: the browser fetches it after this.
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

function Sql({ panel, close }: { panel: PanelData; close: () => void }) {
  const [copied, setCopied] = useState("");
  const text = useRef<HTMLElement>(null);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(panel.sql);
      setCopied("Copied");
    } catch {
      // Over plain HTTP there is no clipboard: the text is selected, to be copied by hand.
      if (text.current !== null) getSelection()?.selectAllChildren(text.current);
      setCopied("Selected: copy it with Ctrl+C");
    }
  };
  return (
    <Dialog title={`SQL of ${panel.title}`} close={close}>
      <pre><code ref={text}>{panel.sql}</code></pre>
      <p class="row">
        <button type="button" class="primary" onClick={() => void copy()}>Copy SQL</button>
        <span role="status">{copied}</span>
      </p>
      <p class="note">For <code>kvmetry query</code>, Grafana, or any client of InfluxDB 3.</p>
    </Dialog>
  );
}
