// What a screen reader is told without being asked: new warnings and a lost connection. Values that move are not announced.
import { useRef } from "preact/hooks";
import { view } from "../fleet/state.ts";
import { useStore } from "../store.ts";

export function Announcer() {
  const { fleet, up, downSince } = useStore(view);
  const told = useRef(new Set<string>());
  const text = useRef("");
  const now = new Set((fleet?.warnings ?? []).map((warning) => warning.text));
  if (!up && downSince !== null) now.add("The connection to the server is lost; the values shown are old.");
  const fresh = [...now].filter((warning) => !told.current.has(warning));
  if (fresh.length > 0) text.current = fresh.join(" ");
  told.current = now;
  return <div class="unseen" role="status" aria-live="polite">{text.current}</div>;
}
