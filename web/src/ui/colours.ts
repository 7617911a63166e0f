// Colours for what is drawn on canvas, read from the style sheet, so that they stand in one place; read anew when the system turns
// from light to dark.
import { Store } from "../store.ts";

export interface Colours {
  /** one after the other for the series of a chart; told apart by colour-blind people, at least 3:1 against the panel */
  series: string[];
  /** the same for the band between min and max */
  bands: string[];
  axis: string;
  grid: string;
  mark: string;
  markText: string;
  spark: { line: string; fill: string };
}

const SERIES = 8;

function read(): Colours {
  const style = getComputedStyle(document.documentElement);
  const of = (name: string) => style.getPropertyValue(name).trim();
  const series = Array.from({ length: SERIES }, (_, i) => of(`--series-${i + 1}`));
  return {
    series,
    // Alpha as two hex digits behind #rrggbb: a quarter.
    bands: series.map((colour) => `${colour}40`),
    axis: of("--text-soft"),
    grid: of("--line"),
    mark: of("--mark"),
    markText: of("--mark-text"),
    spark: { line: of("--series-1"), fill: `${of("--series-1")}33` },
  };
}

export const colours = new Store<Colours>(read());

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => colours.set(read()));
