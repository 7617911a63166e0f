// The last 15 minutes of one value of each VM: a ring of buckets a VM, filled from history and then from the stream. What it
// holds does not grow with time, and goes when its VM does.
import type { FleetHistory, Vm } from "../api.ts";

export const POINTS = 60;
const SPAN_MS = 15 * 60_000;
/** Until history says otherwise. */
const DEFAULT_STEP_MS = SPAN_MS / POINTS;

class Ring {
  readonly means = new Float32Array(POINTS).fill(NaN);
  /** the newest bucket, counted in steps since 1970 */
  head = 0;
  /** readings in the newest bucket */
  taken = 0;

  /** Moves the newest bucket on; those that are skipped are gaps. */
  advance(bucket: number): void {
    if (bucket <= this.head) return;
    const skipped = Math.min(bucket - this.head, POINTS);
    for (let i = 0; i < skipped; i += 1) this.means[(bucket - i) % POINTS] = NaN;
    this.head = bucket;
    this.taken = 0;
  }

  add(bucket: number, value: number | null): void {
    this.advance(bucket);
    if (bucket !== this.head || value === null) return;
    const slot = bucket % POINTS;
    const mean = this.taken === 0 ? 0 : (this.means[slot] ?? 0);
    this.taken += 1;
    this.means[slot] = mean + (value - mean) / this.taken;
  }
}

export class Sparks {
  #rings = new Map<string, Ring>();
  #step = DEFAULT_STEP_MS;

  get size(): number {
    return this.#rings.size;
  }

  /** Starts anew from what the server has. */
  seed(history: FleetHistory): void {
    this.#rings.clear();
    this.#step = history.step;
    const first = Math.floor(history.from / history.step);
    for (const [uuid, values] of Object.entries(history.cpu)) {
      const ring = new Ring();
      this.#rings.set(uuid, ring);
      values.forEach((value, i) => ring.add(first + i, value));
      // The newest bucket's mean is of a number of readings that is not known: what the stream adds now counts as much as it.
      ring.taken = Math.min(ring.taken, 1);
    }
  }

  /** A reading of every VM; rings of those that are no more are dropped. */
  add(vms: Vm[]): void {
    for (const vm of vms) {
      let ring = this.#rings.get(vm.uuid);
      if (ring === undefined) this.#rings.set(vm.uuid, (ring = new Ring()));
      ring.add(Math.floor(vm.at / this.#step), vm.cpu);
    }
    if (this.#rings.size > vms.length) {
      const live = new Set(vms.map((vm) => vm.uuid));
      for (const uuid of this.#rings.keys()) if (!live.has(uuid)) this.#rings.delete(uuid);
    }
  }

  /** The values of the 15 minutes up to `at`, oldest first; NaN is a gap. */
  values(uuid: string, at: number): Float32Array {
    // Where VMs are read seldom, a bucket is longer, and there are fewer.
    const points = Math.max(2, Math.min(POINTS, Math.round(SPAN_MS / this.#step)));
    const values = new Float32Array(points).fill(NaN);
    const ring = this.#rings.get(uuid);
    if (ring === undefined) return values;
    const newest = Math.floor(at / this.#step);
    for (let i = 0; i < points; i += 1) {
      const bucket = newest - points + 1 + i;
      if (bucket <= ring.head && bucket > ring.head - POINTS) values[i] = ring.means[bucket % POINTS] ?? NaN;
    }
    return values;
  }
}

/** Draws values of 0..100 as a filled line; a gap stays empty, and a lone reading is a dot. The size in CSS pixels is told, for
 *  reading it from the document in the middle of an update would lay the whole page out. */
export function draw(canvas: HTMLCanvasElement, size: { width: number; height: number }, values: Float32Array, colour: { line: string; fill: string }): void {
  const ratio = devicePixelRatio || 1;
  const width = Math.round(size.width * ratio);
  const height = Math.round(size.height * ratio);
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  const context = canvas.getContext("2d");
  if (context === null) return;
  context.clearRect(0, 0, width, height);
  context.lineWidth = ratio;
  context.strokeStyle = colour.line;
  context.fillStyle = colour.fill;
  const x = (i: number) => (i / (values.length - 1)) * width;
  const y = (value: number) => height - ratio - (Math.min(100, value) / 100) * (height - 2 * ratio);
  for (let start = 0; start < values.length; start += 1) {
    if (Number.isNaN(values[start])) continue;
    let end = start;
    while (end + 1 < values.length && !Number.isNaN(values[end + 1])) end += 1;
    if (end === start) {
      context.fillStyle = colour.line;
      context.fillRect(x(start) - ratio, y(values[start] ?? 0) - ratio, 2 * ratio, 2 * ratio);
      context.fillStyle = colour.fill;
      continue;
    }
    context.beginPath();
    for (let i = start; i <= end; i += 1) context.lineTo(x(i), y(values[i] ?? 0));
    context.stroke();
    context.lineTo(x(end), height);
    context.lineTo(x(start), height);
    context.fill();
    start = end;
  }
}
