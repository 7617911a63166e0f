// One panel drawn with uPlot: means as lines, min and max as a band behind them, gaps left empty, marks across. The cursor is
// shared by all charts of the page.
//
// In uPlot's data the means come first, so that a series' number is its place in the panel; the bounds of the bands follow.
import uPlot from "uplot";
import type { Mark, Panel } from "../api.ts";
import type { Colours } from "../ui/colours.ts";
import { isBinary, tick, tickValue } from "../units.ts";

export interface ChartEvents {
  zoom: (from: number, to: number) => void;
  /** while the person drags; `done` at the end */
  pan: (from: number, to: number, done: boolean) => void;
  back: () => void;
  /** the point under the cursor, null outside */
  point: (index: number | null) => void;
}

/** All charts of a page share their cursor by this name. */
const SYNC = "vm";
/** Widths in letters' heights; the same for all panels, so that times stand above each other. */
const AXIS_EMS = 6.7;
const TIMES_EMS = 2.3;
/** A drag of less is a click. */
const DRAG_PX = 5;
/** What is labelled first where there is no room for all. */
const GRAVE = new Set(["crashed", "io_error", "stopped", "restarted", "migrated"]);

/** Steps of an axis that counts in 1024s: 1, 2, 4 … of each. */
const BINARY_STEPS = Array.from({ length: 64 }, (_, i) => 2 ** (i - 6));

export class Chart {
  readonly #plot: uPlot;
  /** the height of its text, from the style sheet */
  readonly #em: number;
  #panel: Panel;
  #from: number;
  #to: number;
  #marks: Mark[];

  constructor(
    readonly box: HTMLElement,
    panel: Panel,
    span: { from: number; to: number },
    marks: Mark[],
    hidden: Set<string>,
    readonly colours: Colours,
    readonly events: ChartEvents,
  ) {
    this.#panel = panel;
    this.#from = span.from;
    this.#to = span.to;
    this.#marks = marks;
    this.#em = parseFloat(getComputedStyle(box).getPropertyValue("--chart-text"));
    this.#plot = new uPlot(this.#options(hidden), data(panel), box);
  }

  update(panel: Panel, span: { from: number; to: number }, marks: Mark[], hidden: Set<string>): void {
    const moved = span.from !== this.#from || span.to !== this.#to;
    this.#from = span.from;
    this.#to = span.to;
    this.#marks = marks;
    this.#plot.batch(() => {
      if (panel !== this.#panel) {
        this.#panel = panel;
        this.#plot.setData(data(panel), false);
      }
      panel.series.forEach((series, i) => this.#toggle(i, series.id, hidden));
      if (moved) this.#plot.setScale("x", { min: this.#from, max: this.#to });
      else this.#plot.redraw(true, false);
    });
  }

  resize(width: number): void {
    if (width > 0 && width !== this.#plot.width) this.#plot.setSize({ width, height: this.box.clientHeight });
  }

  /** Moves the cursor by points, from the newest one if it is not on the chart. */
  step(by: number): void {
    const times = this.#panel.times;
    const current = this.#plot.cursor.idx ?? times.length;
    const next = Math.max(0, Math.min(times.length - 1, current + by));
    const left = this.#plot.valToPos(times[next] ?? this.#to, "x");
    this.#plot.setCursor({ left, top: this.#plot.over.clientHeight / 2 }, true);
  }

  leave(): void {
    this.#plot.setCursor({ left: -10, top: -10 }, true);
  }

  destroy(): void {
    this.#plot.destroy();
  }

  #toggle(place: number, id: string, hidden: Set<string>): void {
    const show = !hidden.has(id);
    this.#plot.series.forEach((series, i) => {
      if (i > 0 && ownerOf(i - 1, this.#panel) === place && series.show !== show) this.#plot.setSeries(i, { show });
    });
  }

  #options(hidden: Set<string>): uPlot.Options {
    const { colours } = this;
    const panel = this.#panel;
    const say = tickValue(panel.unit);
    const em = this.#em;
    const font = `${em}px ${getComputedStyle(document.body).fontFamily}`;
    const axis = {
      stroke: colours.axis,
      font,
      grid: { stroke: colours.grid, width: 1 },
      ticks: { stroke: colours.grid, width: 1, size: 4 },
    };
    const colour = (list: string[], place: number) => list[place % list.length] ?? colours.axis;
    const means = panel.series.map((series, place): uPlot.Series => ({
      label: series.label,
      stroke: colour(colours.series, place),
      width: 1.5,
      show: !hidden.has(series.id),
      // A reading between two gaps has no line: it is a dot.
      points: { show: true, size: 4, fill: colour(colours.series, place), filter: lonely },
    }));
    const bounds = banded(panel).flatMap((place): uPlot.Series[] => {
      const edge: uPlot.Series = { stroke: "transparent", width: 0, points: { show: false }, show: !hidden.has(panel.series[place]?.id ?? "") };
      return [{ ...edge }, { ...edge }];
    });
    const bands = banded(panel).map((place, i): uPlot.Band => {
      const upper = 1 + means.length + 2 * i + 1;
      return { series: [upper, upper - 1], fill: colour(colours.bands, place) };
    });

    return {
      width: Math.max(100, this.box.clientWidth),
      height: this.box.clientHeight,
      ms: 1,
      padding: [em * 1.3, 8, 0, 0],
      legend: { show: false },
      focus: { alpha: 1 },
      scales: {
        x: { time: true, range: () => [this.#from, this.#to] },
        y: { range: (_, low, high) => verticalRange(panel.unit, low, high) },
      },
      series: [{}, ...means, ...bounds],
      bands,
      axes: [
        {
          ...axis,
          size: em * TIMES_EMS,
          space: em * 6.5,
          values: (_, splits, __, ___, distance) => splits.map((split) => tick(split, distance)),
        },
        {
          ...axis,
          size: em * AXIS_EMS,
          space: em * 2.7,
          values: (_, splits) => splits.map(say),
          ...(isBinary(panel.unit) ? { incrs: BINARY_STEPS } : {}),
          ...(panel.unit === "degrees" ? { splits: [-90, -45, 0, 45, 90] } : {}),
        },
      ],
      cursor: {
        drag: { x: true, y: false, setScale: false, dist: DRAG_PX },
        points: { size: 7 },
        sync: {
          key: SYNC,
          setSeries: false,
          scales: ["x", null],
          // The position is shared; a drag is one chart's own.
          filters: { pub: (type) => type === "mousemove" || type === "mouseleave" },
        },
        bind: {
          mousedown: (_, __, handler) => (event: MouseEvent) => {
            if (event.shiftKey && event.button === 0) this.#pan(event);
            else handler(event);
            return null;
          },
          dblclick: () => () => {
            this.events.back();
            return null;
          },
        },
      },
      hooks: {
        setSelect: [(plot) => this.#selected(plot)],
        setCursor: [(plot) => this.events.point(plot.cursor.idx ?? null)],
        draw: [(plot) => this.#drawMarks(plot)],
      },
    };
  }

  #selected(plot: uPlot): void {
    const { left, width } = plot.select;
    if (width < DRAG_PX) return;
    const [from, to] = [plot.posToVal(left, "x"), plot.posToVal(left + width, "x")];
    plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    this.events.zoom(from, to);
  }

  #pan(start: MouseEvent): void {
    const [from, to] = [this.#from, this.#to];
    const perPixel = (to - from) / this.#plot.over.clientWidth;
    let by = 0;
    const move = (event: MouseEvent) => {
      by = (start.clientX - event.clientX) * perPixel;
      this.events.pan(from + by, to + by, false);
    };
    const end = () => {
      removeEventListener("mousemove", move);
      removeEventListener("mouseup", end);
      this.events.pan(from + by, to + by, true);
    };
    addEventListener("mousemove", move);
    addEventListener("mouseup", end);
  }

  /** A dashed line a mark; of labels that would lie on one another the graver one is written (the list of events has them all). */
  #drawMarks(plot: uPlot): void {
    const { ctx, bbox } = plot;
    const ratio = devicePixelRatio || 1;
    ctx.save();
    ctx.strokeStyle = this.colours.mark;
    ctx.fillStyle = this.colours.markText;
    ctx.lineWidth = ratio;
    ctx.setLineDash([4 * ratio, 3 * ratio]);
    ctx.font = `${this.#em * ratio}px ${getComputedStyle(document.body).fontFamily}`;
    ctx.textBaseline = "bottom";
    ctx.textAlign = "left";
    const seen = this.#marks.filter((mark) => mark.at >= this.#from && mark.at <= this.#to);
    const taken: [number, number][] = [];
    for (const mark of seen.sort((a, b) => Number(GRAVE.has(b.kind)) - Number(GRAVE.has(a.kind)) || a.at - b.at)) {
      const x = Math.round(plot.valToPos(mark.at, "x", true));
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      const text = mark.kind.replaceAll("_", " ");
      const width = ctx.measureText(text).width;
      const begin = Math.min(x, bbox.left + bbox.width - width);
      const end = begin + width + 6 * ratio;
      if (taken.some(([from, to]) => begin < to && from < end)) continue;
      taken.push([begin, end]);
      ctx.fillText(text, begin, bbox.top - ratio);
    }
    ctx.restore();
  }
}

/** The places of the series that have a band. */
function banded(panel: Panel): number[] {
  return panel.series.flatMap((series, place) => (series.min !== null && series.max !== null ? [place] : []));
}

/** Which series of the panel a column of the data belongs to. */
function ownerOf(column: number, panel: Panel): number {
  const means = panel.series.length;
  return column < means ? column : (banded(panel)[(column - means) >> 1] ?? -1);
}

function data(panel: Panel): uPlot.AlignedData {
  const bounds = banded(panel).flatMap((place) => {
    const series = panel.series[place];
    return [series?.min ?? [], series?.max ?? []];
  });
  return [panel.times, ...panel.series.map((series) => series.mean), ...bounds];
}

/** Zero is always in sight, except for percent and what stands still; a flat zero has room above. */
function verticalRange(unit: string, low: number | null, high: number | null): [number, number] {
  if (unit === "degrees") return [-90, 90];
  const least = unit === "percent" ? 5 : 1;
  const bottom = Math.min(0, low ?? 0);
  const top = Math.max(0, high ?? 0);
  if (top === 0 && bottom === 0) return [0, least];
  const room = (top - bottom) * 0.08;
  const upper = top === 0 ? 0 : Math.max(top + room, bottom < 0 ? 0 : least * 0.02);
  if (unit === "percent") return [0, top <= 100 ? Math.min(100, Math.max(least, upper)) : upper];
  return [bottom === 0 ? 0 : bottom - room, upper];
}

/** The points that stand alone between gaps. */
function lonely(plot: uPlot, place: number): number[] | null {
  const values = plot.data[place];
  if (values === undefined) return null;
  const [begin, end] = plot.series[0]?.idxs ?? [0, values.length - 1];
  const alone: number[] = [];
  const missing = (i: number) => values[i] === null || values[i] === undefined;
  for (let i = begin; i <= end; i += 1) if (!missing(i) && missing(i - 1) && missing(i + 1)) alone.push(i);
  return alone;
}
