// The entry: starts the live stream and mounts the frame.
import { render } from "preact";
import { App } from "./app.tsx";
import { askOnce, hear, view } from "./fleet/state.ts";
import { checkSession } from "./http.ts";
import { listen } from "./live/client.ts";
import { route } from "./route.ts";
import { firstLoad } from "./vm/load.ts";
import "./style.css";

/** The first event comes at once; if not within this, the fleet is asked for without the stream. */
const FIRST_EVENT_MS = 2_000;
/** Charts go first: the stream's worker is a process of its own in some browsers, and takes its time to start. */
const DRAWN_AFTER_MS = 200;
const LOADED_WITHIN_MS = 1_000;

let reopen = () => {};
const root = document.getElementById("app");
if (root !== null) render(<App reopen={() => reopen()} />, root);
void checkSession();
let streams = false;
if (route().value.page === "vm") {
  void firstLoad.then(() => setTimeout(stream, DRAWN_AFTER_MS));
  setTimeout(stream, LOADED_WITHIN_MS);
} else stream();

function stream(): void {
  if (streams) return;
  streams = true;
  reopen = listen(hear);
  setTimeout(() => {
    if (view.value.fleet === null) void askOnce();
  }, FIRST_EVENT_MS);
}
