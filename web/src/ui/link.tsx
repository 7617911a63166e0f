// How fresh is what is shown: the state of the stream in the header, and the bar over everything when it is lost or brings nothing.
import { useEffect, useState } from "preact/hooks";
import { serverNow, view } from "../fleet/state.ts";
import { useStore } from "../store.ts";
import { clock, duration, shortTime, zone } from "../units.ts";

/** Drawn anew each second: what counts seconds. */
function useSecond(): void {
  const [, redraw] = useState({});
  useEffect(() => {
    const timer = setInterval(() => redraw({}), 1000);
    return () => clearInterval(timer);
  }, []);
}

export function LinkState() {
  const { fleet, up, trouble } = useStore(view);
  useSecond();
  if (fleet === null) return <span class="link"><i class="dot wait" aria-hidden="true" />connecting…</span>;
  const age = fleet.at === null ? null : serverNow() - fleet.at;
  const old = age !== null && age > 3 * fleet.interval;
  const state = !up ? "not connected" : trouble !== null ? "no new values" : old ? `last reading ${duration(Math.floor(age / 1000) * 1000)} ago` : "live";
  return (
    <span class="link" title={`Times are in ${zone(fleet.now)}. Hypervisors are read every ${duration(fleet.interval)}.`}>
      <i class={`dot ${!up ? "down" : old || trouble !== null ? "wait" : "up"}`} aria-hidden="true" />
      <span>{state}</span>
      {fleet.at !== null && <time class="wide">{clock(fleet.at)}</time>}
      <span class="wide zone">{zone(fleet.now)}</span>
    </span>
  );
}

export function Lost({ since, hasValues }: { since: number; hasValues: boolean }) {
  useSecond();
  const gone = Date.now() - since;
  return (
    <div class="lost">
      <strong>Not connected since {shortTime(since, Date.now())}</strong>
      <span>
        {gone >= 1000 ? ` (${duration(Math.floor(gone / 1000) * 1000)})` : ""}; trying again.
        {hasValues ? " All values are from before." : " Is the server running? Try: "}
        {!hasValues && <code>systemctl status kvmetry</code>}
      </span>
    </div>
  );
}

/** The connection is up, but the server has no values to tell: its own words say why. */
export function Troubled({ at, words }: { at: number | null; words: string }) {
  return (
    <div class="troubled">
      <strong>▲ {silence(at)}:</strong> {words}
    </div>
  );
}

/** Since when nothing new came, as the bar and the announcement say it. */
export function silence(at: number | null): string {
  return at === null ? "No values" : `No new values since ${shortTime(at, serverNow())}`;
}
