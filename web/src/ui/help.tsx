// What the keys and the mouse do, and the switch for single-key shortcuts.
import { useState } from "preact/hooks";
import { Dialog } from "./dialog.tsx";
import { setShortcuts, shortcutsOn } from "./shortcuts.ts";

const SECTIONS: [string, [string, string][]][] = [
  ["Everywhere", [["?", "this help"], ["f", "fleet"], ["c", "collector"]]],
  ["Fleet", [
    ["/", "filter"], ["r", "sort again"], ["↓ ↑ PgDn PgUp Home End", "from row to row, once a row has the focus"], ["Enter", "open the VM"],
  ]],
  ["VM", [
    ["1 … 8", "15 min, 1 h, 6 h, 24 h, 7, 30, 90, 400 days"], ["l", "live on and off"], ["← →", "earlier, later"], ["+ −", "closer, wider"],
    ["drag", "zoom"], ["Shift + drag", "pan"], ["double-click", "back from the zoom"], ["← → on a chart", "move the cursor"],
  ]],
];

export function Help({ close }: { close: () => void }) {
  const [on, setOn] = useState(shortcutsOn());
  return (
    <Dialog title="Keys and mouse" close={close}>
      <div class="help">
        {SECTIONS.map(([title, keys]) => (
          <section key={title}>
            <h3>{title}</h3>
            <dl>{keys.map(([key, what]) => <div key={key}><dt><kbd>{key}</kbd></dt><dd>{what}</dd></div>)}</dl>
          </section>
        ))}
      </div>
      <label class="check">
        <input type="checkbox" checked={on} onChange={(event) => {
          setShortcuts(event.currentTarget.checked);
          setOn(event.currentTarget.checked);
        }} />
        single-key shortcuts (arrow keys in lists work without them)
      </label>
      <p class="note">
        Memory is counted in 1024s (KiB, MiB), network and disks in 1000s (kB/s, MB/s). CPU is percent of a VM's own vCPUs. “–” is not
        known, and a gap in a chart is a time without readings.
      </p>
    </Dialog>
  );
}
