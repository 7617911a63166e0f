// The entry: starts the live stream and mounts the frame.
import { render } from "preact";
import { App } from "./app.tsx";
import { askOnce, hear, view } from "./fleet/state.ts";
import { checkSession } from "./http.ts";
import { listen } from "./live/client.ts";
import "./style.css";

/** The first event comes at once; if not within this, the fleet is asked for without the stream. */
const FIRST_EVENT_MS = 2_000;

let reopen = () => {};
const root = document.getElementById("app");
// What the page itself asks for goes out first.
if (root !== null) render(<App reopen={() => reopen()} />, root);
void checkSession();
reopen = listen(hear);
setTimeout(() => {
  if (view.value.fleet === null) void askOnce();
}, FIRST_EVENT_MS);
