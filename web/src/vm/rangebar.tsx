// The range picker: named ranges, live, earlier and later, closer and wider, or two moments.
import { useState } from "preact/hooks";
import type { Progress } from "../parts.ts";
import { Dialog } from "../ui/dialog.tsx";
import { clock, count, duration, fullTime, shortTime, toLocalInput, zone } from "../units.ts";
import { fixed, RANGES, scaled, shifted, type Range } from "./range.ts";

export interface RangeBarProps {
  range: Range;
  from: number;
  to: number;
  now: number;
  loading: boolean;
  parts: Progress | null;
  /** the address of this page with another range */
  link: (range: Range) => string;
  change: (range: Range) => void;
  toggleLive: () => void;
}

export function RangeBar({ range, from, to, now, loading, parts, link, change, toggleLive }: RangeBarProps) {
  const [choosing, setChoosing] = useState(false);
  return (
    <div class="rangebar" role="toolbar" aria-label="Range of time">
      <div class="ranges">
        {RANGES.map((one) => {
          const here = range.live && range.name === one.name;
          return (
            <a key={one.name} class="button" href={link({ live: true, name: one.name, span: one.span })} aria-current={here ? "true" : undefined}
              title={`the last ${one.words}`}>{one.short}</a>
          );
        })}
      </div>
      <button type="button" aria-pressed={range.live} onClick={toggleLive} title="Follow the newest reading (l)">
        <i class={range.live ? "dot up" : "dot off"} aria-hidden="true" />Live
      </button>
      <div class="ranges">
        <button type="button" onClick={() => change(shifted(range, now, -0.5))} aria-label="Earlier" title="Earlier (←)">←</button>
        <button type="button" onClick={() => change(shifted(range, now, 0.5))} aria-label="Later" title="Later (→)" disabled={to >= now - 1000}>→</button>
        <button type="button" onClick={() => change(scaled(range, now, 0.5))} aria-label="Closer" title="Closer (+)">+</button>
        <button type="button" onClick={() => change(scaled(range, now, 2))} aria-label="Wider" title="Wider (−)">−</button>
      </div>
      <button type="button" class="span" onClick={() => setChoosing(true)} title={`${fullTime(from)} to ${fullTime(to)}: choose other moments`}>
        {shortTime(from, now)} – {range.live ? clock(to) : shortTime(to, now)}
      </button>
      <span class="note">{duration(to - from)} · {zone(to)}{loading && (parts === null ? " · loading…" : <> · loading: <Parts parts={parts} /></>)}</span>
      {choosing && <Moments from={from} to={to} change={change} close={() => setChoosing(false)} />}
    </div>
  );
}

/** 3 of 15 parts, and the same as a bar. */
export function Parts({ parts: { done, of } }: { parts: Progress }) {
  return <>{count(done)} of {count(of)} parts <progress aria-label="Parts loaded" value={done} max={of} /></>;
}

function Moments({ from, to, change, close }: { from: number; to: number; change: (range: Range) => void; close: () => void }) {
  const [begin, setBegin] = useState(toLocalInput(from));
  const [end, setEnd] = useState(toLocalInput(to));
  const [first, last] = [Date.parse(begin), Date.parse(end)];
  const problem = Number.isNaN(first) || Number.isNaN(last) ? "both moments are needed" : last <= first ? "the end must be after the beginning" : "";
  return (
    <Dialog title="From and to" close={close}>
      <form class="moments" onSubmit={(event) => {
        event.preventDefault();
        if (problem !== "") return;
        close();
        change(fixed(first, last));
      }}>
        <label>From <input type="datetime-local" step={1} value={begin} onInput={(event) => setBegin(event.currentTarget.value)} /></label>
        <label>To <input type="datetime-local" step={1} value={end} onInput={(event) => setEnd(event.currentTarget.value)} /></label>
        <p class="note">Times are in {zone(to)}.</p>
        <p class="problem" role="alert">{problem}</p>
        <p class="row"><button type="submit" class="primary" disabled={problem !== ""}>Show</button></p>
      </form>
    </Dialog>
  );
}
