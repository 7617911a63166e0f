// Single-key shortcuts: never while a person types, and never at all once they are switched off (the help dialog has the switch),
// as speech input needs it.
import { useLayoutEffect, useRef } from "preact/hooks";

export type Shortcuts = Record<string, (event: KeyboardEvent) => void>;

const SETTING = "kvmetry-shortcuts";

let on = stored();

export function shortcutsOn(): boolean {
  return on;
}

export function setShortcuts(wanted: boolean): void {
  on = wanted;
  try {
    localStorage.setItem(SETTING, wanted ? "on" : "off");
  } catch {
    // A browser that keeps nothing (blocked by policy): it holds for this tab.
  }
}

function stored(): boolean {
  try {
    return localStorage.getItem(SETTING) !== "off";
  } catch {
    return true;
  }
}

/** Listens while the component is there. */
export function useShortcuts(keys: Shortcuts): void {
  // The newest ones as of the last drawing: of two quick keys the second must see what the first did.
  const latest = useRef(keys);
  latest.current = keys;
  // With the drawing, not some time after it: what is seen can be used.
  useLayoutEffect(() => {
    const heard = (event: KeyboardEvent) => {
      if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || !shortcutsOn()) return;
      const target = event.target as Element | null;
      if (target?.closest("input, select, textarea, dialog") !== null) return;
      const act = latest.current[event.key];
      if (act === undefined) return;
      event.preventDefault();
      act(event);
    };
    document.addEventListener("keydown", heard);
    return () => document.removeEventListener("keydown", heard);
  }, []);
}
