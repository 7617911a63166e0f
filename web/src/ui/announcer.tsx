// What a screen reader is told without being asked: new warnings, a lost connection, and a server without new values. Values that move are not announced.
import { useRef } from "preact/hooks";
import { view } from "../fleet/state.ts";
import { useStore } from "../store.ts";
import { silence } from "./link.tsx";

export function Announcer() {
  const { fleet, up, downSince, trouble } = useStore(view);
  const told = useRef(new Set<string>());
  const text = useRef("");
  // By what each is about: a trouble whose words change is still the same one.
  const now = new Map((fleet?.warnings ?? []).map((warning) => [`warning ${warning.text}`, warning.text]));
  if (!up && downSince !== null) now.set("lost", "The connection to the server is lost; the values shown are old.");
  if (trouble !== null) now.set("trouble", `${silence(fleet?.at ?? null)}: ${trouble}`);
  const fresh = [...now].filter(([about]) => !told.current.has(about));
  if (fresh.length > 0) text.current = fresh.map(([, words]) => words).join(" ");
  else if (told.current.has("lost") && !now.has("lost")) text.current = "Connected again.";
  told.current = new Set(now.keys());
  return <div class="unseen" role="status" aria-live="polite">{text.current}</div>;
}
