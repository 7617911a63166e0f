// A VM's page as the address asks for it: loaded whole when the range changes, continued by its newest piece while it is live.
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import type { VmPage } from "../api.ts";
import { serverNow, view } from "../fleet/state.ts";
import { Refused, Unreachable } from "../http.ts";
import { getInParts, type Progress } from "../parts.ts";
import { useStore } from "../store.ts";
import { joined, pieceFrom } from "./data.ts";
import { bounds, type Range } from "./range.ts";

export interface Loaded {
  page: VmPage | null;
  /** the span that is to be shown; while an answer is awaited it is ahead of `page` */
  from: number;
  to: number;
  loading: boolean;
  /** how far the answer is, where the server tells it */
  parts: Progress | null;
  error: Error | null;
}

/** A live page asks for its newest piece at most so often, and no more often than four times a bucket. */
const SHORTEST_MS = 5_000;
const LONGEST_MS = 60_000;
/** A piece of more than this part of the span costs as much as the whole. */
const LARGEST_PIECE = 0.25;

let settled = () => {};
/** When the first charts of a VM are there or could not be had. */
export const firstLoad = new Promise<void>((resolve) => {
  settled = resolve;
});

export function useVmPage(uuid: string, range: Range, points: number): Loaded & { retry: () => void } {
  const { fleet, up } = useStore(view);
  const key = range.live ? range.name : `${range.from} ${range.to}`;
  const [state, setState] = useState<Loaded & { key: string }>(() => ({ page: null, ...bounds(range, serverNow()), loading: true, parts: null, error: null, key }));
  const [attempt, setAttempt] = useState(0);
  const piece = useRef<{ control: AbortController | null; at: number }>({ control: null, at: 0 });
  const release = (control: AbortController) => {
    if (piece.current.control === control) piece.current.control = null;
  };

  // Before the drawing: what is asked for then comes a frame or two earlier.
  useLayoutEffect(() => {
    const control = new AbortController();
    piece.current.control?.abort();
    piece.current.control = null;
    const span = bounds(range, serverNow());
    setState((old) => ({ ...old, ...span, loading: true, parts: null, error: null, key }));
    const progress = (parts: Progress) => {
      if (!control.signal.aborted) setState((old) => ({ ...old, parts }));
    };
    getInParts<VmPage>(address(uuid, { ...asked(range), points }), control.signal, progress).then(
      (page) => {
        piece.current.at = performance.now();
        setState({ page, from: page.from, to: page.to, loading: false, parts: null, error: null, key });
        settled();
      },
      (error: unknown) => {
        if (control.signal.aborted) return;
        setState((old) => ({ ...old, loading: false, parts: null, error: known(error) }));
        settled();
      },
    );
    return () => control.abort();
  }, [uuid, key, points, attempt]);

  useEffect(() => {
    const { page } = state;
    // Of another range: the effect before this one has just asked for the whole, and a piece would be joined to that.
    if (state.key !== key) return;
    if (!range.live || page === null || state.loading || fleet === null || piece.current.control !== null) return;
    const pace = Math.min(LONGEST_MS, Math.max(SHORTEST_MS, (page.step ?? 0) / 4));
    // A cycle that comes a moment early is not put off to the next one.
    if (performance.now() - piece.current.at < pace * 0.9) return;
    const { from, to } = bounds(range, serverNow());
    const begin = pieceFrom(page, fleet.interval);
    if (to - begin > LARGEST_PIECE * range.span + 2 * (page.step ?? 0)) {
      setAttempt(attempt + 1);
      return;
    }
    const control = new AbortController();
    piece.current = { control, at: performance.now() };
    // A piece comes when it comes: nobody waits for it.
    getInParts<VmPage>(address(uuid, { from: begin, to, points, ...(page.step === null ? {} : { step: page.step }) }), control.signal, () => undefined).then(
      (more) => {
        release(control);
        setState((old) => (old.page === null || control.signal.aborted ? old : { ...old, page: joined(old.page, more, from, to), from, to, error: null }));
      },
      (error: unknown) => {
        release(control);
        // The next cycle asks again; a lost connection is told by the frame.
        // A VM that has ended has no newest piece: its page stays.
        if (!control.signal.aborted && error instanceof Refused && error.status !== 404) setState((old) => ({ ...old, error }));
      },
    );
  }, [fleet]);

  useEffect(() => () => piece.current.control?.abort(), [key]);

  // What could not be loaded is asked for again once the server is back.
  useEffect(() => {
    if (up && state.error instanceof Unreachable) setAttempt(attempt + 1);
  }, [up]);

  // Effects run after the drawing: a range that was just chosen is being loaded, whatever the state still says.
  const chosen = state.key === key ? {} : { ...bounds(range, serverNow()), loading: true, parts: null, error: null };
  return { ...state, ...chosen, retry: () => setAttempt(attempt + 1) };
}

/** The newest of a span ends where the server's clock is, which is not known here before the first cycle. */
function asked(range: Range): Record<string, number> {
  return range.live ? { span: range.span } : { from: range.from, to: range.to };
}

function address(uuid: string, query: Record<string, number>): string {
  const text = Object.entries(query).map(([name, value]) => `${name}=${value}`);
  return `api/vm/${encodeURIComponent(uuid)}?${text.join("&")}`;
}

function known(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
}
