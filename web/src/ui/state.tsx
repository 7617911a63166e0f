// A domain's state as a sign and a word: the shape says it where the colour does not.
import type { Vm } from "../api.ts";
import { isLate } from "../fleet/order.ts";
import { stateName } from "../units.ts";

const SIGNS: Record<number, [string, string]> = {
  1: ["●", "good"], 2: ["◐", "good"], 3: ["‖", "dim"], 4: ["▽", "dim"], 5: ["○", "dim"], 6: ["✕", "bad"], 7: ["◌", "dim"],
};

export function State({ vm, now }: { vm: Vm; now: number }) {
  if (!vm.ok) return <span class="state bad"><i aria-hidden="true">▲</i>stuck</span>;
  if (isLate(vm, now)) return <span class="state warn"><i aria-hidden="true">◷</i>late</span>;
  const [sign, tone] = SIGNS[vm.state ?? 0] ?? ["?", "dim"];
  return <span class={`state ${tone}`}><i aria-hidden="true">{sign}</i>{stateName(vm.state)}</span>;
}
