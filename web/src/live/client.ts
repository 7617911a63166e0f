// A tab's end of the live stream: takes part while it is seen, gives up its share while it is hidden.
import { Election } from "./leader.ts";
import type { News } from "./stream.ts";
import type { Wish } from "./worker.ts";

/** The worker's file, put in by the build. */
declare const WORKER_FILE: string;

const REPEAT_MS = 20_000;

interface Line {
  show(): void;
  hide(): void;
  reopen(): void;
}

/** Starts listening. What is returned asks for the stream anew, as after a login. */
export function listen(tell: (news: News) => void): () => void {
  const url = new URL("api/live", document.baseURI).href;
  let line: Line = "SharedWorker" in window ? viaWorker(url, tell, fallBack) : new Election(url, tell);

  /** A worker that cannot be loaded (an old page behind a new server, say) must not cost the stream. */
  function fallBack(): void {
    line = new Election(url, tell);
    update();
  }

  function update(): void {
    if (document.visibilityState === "visible") line.show();
    else line.hide();
  }

  document.addEventListener("visibilitychange", update);
  addEventListener("pagehide", () => line.hide());
  addEventListener("pageshow", update);
  update();
  return () => line.reopen();
}

function viaWorker(url: string, tell: (news: News) => void, failed: () => void): Line {
  const worker = new SharedWorker(new URL(WORKER_FILE, document.baseURI), { name: "kvmetry-live" });
  const say = (wish: Wish) => worker.port.postMessage(wish);
  let repeat: ReturnType<typeof setInterval> | undefined;
  worker.onerror = () => {
    clearInterval(repeat);
    failed();
  };
  worker.port.onmessage = ({ data }: MessageEvent<News>) => tell(data);
  return {
    show() {
      clearInterval(repeat);
      say({ kind: "show", url });
      repeat = setInterval(() => say({ kind: "show", url }), REPEAT_MS);
    },
    hide() {
      clearInterval(repeat);
      say({ kind: "hide" });
    },
    reopen: () => say({ kind: "reopen" }),
  };
}
