// Which rows are shown, in what order, and when that order may change.
import { test } from "node:test";
import assert from "node:assert/strict";
import type { Vm } from "../api.ts";
import { comparator, matches, Order, type Filter, type Sort } from "./order.ts";
import { talkers, totals } from "./totals.ts";

function vm(name: string, change: Partial<Vm> = {}): Vm {
  return {
    uuid: `uuid-${name}`, name, host: "kvm-01", vmid: "1", at: 100_000, interval: 5_000, state: 1, cpus: 2, cpu: 10, assigned: 1024, used: 512, source: "guest",
    growth: 0, rx: 0, tx: 0, rd: 0, wr: 0, errors: 0, drops: 0, ok: true, age: 0, ...change,
  };
}

const byCpu: Sort = { key: "cpu", descending: true };
const names = (vms: Vm[]) => vms.map((one) => one.name).join(" ");

test("what is not known comes last in both directions, stuck VMs first", () => {
  const vms = [vm("a", { cpu: null }), vm("b", { cpu: 5 }), vm("c", { cpu: 50 }), vm("d", { cpu: null, ok: false })];
  assert.equal(names([...vms].sort(comparator(byCpu))), "d c b a");
  assert.equal(names([...vms].sort(comparator({ key: "cpu", descending: false }))), "d b c a");
  assert.equal(names([...vms].sort(comparator({ key: "name", descending: false }))), "a b c d");
});

test("equal ones stand by name in both directions", () => {
  const vms = [vm("b"), vm("a"), vm("c")];
  assert.equal(names([...vms].sort(comparator(byCpu))), "a b c");
  assert.equal(names([...vms].sort(comparator({ key: "cpu", descending: false }))), "a b c");
});

test("rows keep their place while values move, and it is told", () => {
  const order = new Order();
  assert.equal(names(order.arrange([vm("a", { cpu: 9 }), vm("b", { cpu: 5 })], byCpu, 1)), "a b");
  assert.equal(order.moved, false);
  const swapped = [vm("a", { cpu: 1 }), vm("b", { cpu: 5 })];
  assert.equal(names(order.arrange(swapped, byCpu, 2)), "a b");
  assert.equal(order.moved, true);
  assert.equal(order.sortedAt, 1);
  assert.equal(names(order.arrange(swapped, byCpu, 3, true)), "b a");
  assert.equal(order.moved, false);
  assert.equal(order.sortedAt, 3);
});

test("it is sorted anew when a row comes or goes, and by another rule", () => {
  const order = new Order();
  order.arrange([vm("a", { cpu: 9 }), vm("b", { cpu: 5 })], byCpu, 1);
  assert.equal(names(order.arrange([vm("a", { cpu: 1 }), vm("b", { cpu: 5 }), vm("c", { cpu: 3 })], byCpu, 2)), "b c a");
  assert.equal(names(order.arrange([vm("a", { cpu: 9 }), vm("c", { cpu: 3 })], byCpu, 3)), "a c");
  // One went and one came: as many as before, but not the same.
  assert.equal(names(order.arrange([vm("a", { cpu: 1 }), vm("d", { cpu: 3 })], byCpu, 4)), "d a");
  assert.equal(names(order.arrange([vm("a", { cpu: 1 }), vm("d", { cpu: 3 })], { key: "cpu", descending: false }, 5)), "a d");
});

test("filters", () => {
  const none: Filter = { text: "", host: "", state: "" };
  const check = (one: Vm, filter: Partial<Filter>, expected: boolean) =>
    assert.equal(matches(one, { ...none, ...filter }, 116_000), expected, JSON.stringify(filter));
  check(vm("Web-01"), { text: "web" }, true);
  check(vm("Web-01"), { text: "uuid-web" }, false);
  check(vm("web"), { text: "UUID-W" }, true);
  check(vm("web"), { text: "kvm-01" }, true);
  check(vm("web"), { host: "kvm-02" }, false);
  check(vm("web", { state: 3 }), { state: "paused" }, true);
  check(vm("web"), { state: "stuck" }, false);
  check(vm("web", { ok: false }), { state: "stuck" }, true);
  check(vm("web", { at: 100_999 }), { state: "late" }, true);
  check(vm("web", { at: 101_000 }), { state: "late" }, false);
  check(vm("web", { at: 116_000, errors: 1 }), { state: "trouble" }, true);
  check(vm("web", { at: 116_000 }), { state: "trouble" }, false);
});

test("top talkers: the most, largest first, none that have nothing", () => {
  const vms = [vm("a", { rx: 1, tx: 1 }), vm("b", { rx: 9, tx: null }), vm("c"), vm("d", { rx: null, tx: null }), vm("e", { rx: 2, tx: 3 })];
  assert.equal(names(talkers(vms, "net", 2)), "b e");
  assert.equal(names(talkers(vms, "net", 9)), "b e a");
  assert.equal(names(talkers(vms, "disk", 9)), "");
});

test("totals leave out what is not known and the VMs of a silent host; trouble comes first", () => {
  const host = (name: string, silent: boolean) => ({ name, at: 1, silent, vms: 1, stuck: 0, cycle: 1 });
  const { all, hosts } = totals({
    now: 1, at: 1, interval: 5000, warnings: [], hosts: [host("kvm-01", false), host("kvm-02", true)],
    vms: [vm("a", { cpu: 50, cpus: 4 }), vm("b", { cpu: null }), vm("c", { host: "kvm-02", cpu: 100, cpus: 8 })],
  });
  assert.equal(all.vms, 2);
  assert.equal(all.cores, 2);
  assert.equal(all.cpus, 6);
  assert.deepEqual(hosts.map((one) => [one.host.name, one.cores]), [["kvm-02", 8], ["kvm-01", 2]]);
});
