// What a person should do now. Advice may contain a command: it is shown as it came, to be copied.
import type { Warning } from "../api.ts";

/** More than these are folded, so that the page below stays in sight. */
const SHOWN = 3;

export function Warnings({ warnings }: { warnings: Warning[] }) {
  if (warnings.length === 0) return null;
  return (
    <section class="warnings" aria-label="Warnings">
      <ul>{warnings.slice(0, SHOWN).map((warning) => <Item key={warning.text} warning={warning} />)}</ul>
      {warnings.length > SHOWN && (
        <details>
          <summary>{warnings.length - SHOWN} more</summary>
          <ul>{warnings.slice(SHOWN).map((warning) => <Item key={warning.text} warning={warning} />)}</ul>
        </details>
      )}
    </section>
  );
}

function Item({ warning }: { warning: Warning }) {
  return (
    <li class={warning.level}>
      <span class="level">{warning.level === "error" ? "✕ Error" : "▲ Warning"}</span>
      <span>{warning.text}</span>
      {warning.advice !== null && <span class="advice">{linked(warning.advice)}</span>}
    </li>
  );
}

/** The same text, a VM's page in it as a link. */
function linked(text: string) {
  return text.split(/(vm\/[0-9a-f-]{36})/).map((part, i) => (i % 2 === 1 ? <a href={part}>{part}</a> : part));
}
