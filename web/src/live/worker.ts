// The SharedWorker: holds the one stream of this browser while any tab is looked at, and passes on what it says.
// What a tab is told is the event's text: parsing it in the tab costs less than a structured clone of thousands of objects.
import { Stream, type News } from "./stream.ts";

/** What a tab says to the worker. `show` is repeated while the tab is seen, for one that crashed says nothing. */
export type Wish = { kind: "show"; url: string } | { kind: "hide" } | { kind: "reopen" };

/** A tab that has not repeated `show` for so long is gone (they repeat it every 20 s). */
const GONE_MS = 60_000;
const SWEEP_MS = 15_000;

const scope = globalThis as unknown as { onconnect: (event: MessageEvent) => void };
const seen = new Map<MessagePort, number>();
let stream: Stream | null = null;

scope.onconnect = (event) => {
  const port = event.ports[0];
  if (port === undefined) return;
  port.onmessage = ({ data }: MessageEvent<Wish>) => {
    if (data.kind === "show") show(port, data.url);
    else if (data.kind === "hide") hide(port);
    else stream?.reopen();
  };
};

function show(port: MessagePort, url: string): void {
  const known = seen.has(port);
  seen.set(port, Date.now());
  if (known) return;
  if (stream === null) {
    stream = new Stream(url, tell);
    stream.open();
  } else {
    for (const news of stream.recall()) port.postMessage(news);
  }
}

function hide(port: MessagePort): void {
  seen.delete(port);
  if (seen.size > 0) return;
  stream?.close();
  stream = null;
}

function tell(news: News): void {
  for (const port of seen.keys()) port.postMessage(news);
}

setInterval(() => {
  for (const [port, at] of seen) if (Date.now() - at > GONE_MS) hide(port);
}, SWEEP_MS);
