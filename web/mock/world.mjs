// A made-up fleet, the same for the same seed: every value is a function of the VM and the time, so that any range can be
// asked for and nothing is kept. The shapes of the answers are those of src/api.ts.

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;

/** The older the store is, the less there is to see: nothing before this. */
const AGE = 60 * DAY;
/** Readings of one answer: what the contract allows. */
const MIN_POINTS = 100;
const MAX_POINTS = 4000;
/** Samples taken of each bucket for its min, mean and max. */
const SAMPLES = 6;

const ROLES = ["web", "db", "cache", "build", "mail", "queue", "ci-runner", "proxy", "metrics", "backup"];

export class World {
  constructor({ vms = 24, hosts, seed = 1, interval = 5000, start = Date.now() } = {}) {
    this.seed = seed;
    this.interval = interval;
    this.start = start;
    this.now = start;
    this.scenario = "normal";
    const hostCount = hosts ?? Math.max(4, Math.ceil(vms / 50));
    this.hosts = Array.from({ length: hostCount }, (_, i) => `kvm-${String(i + 1).padStart(2, "0")}`);
    this.vms = Array.from({ length: vms }, (_, i) => this.makeVm(i));
    this.made = vms;
  }

  makeVm(index) {
    const seed = this.seed * 100_003 + index * 7919;
    const pick = (salt, n) => Math.floor(hash(seed, salt) * n);
    const role = ROLES[index % ROLES.length];
    const number = Math.floor(index / ROLES.length) + 1;
    const vm = {
      seed,
      uuid: uuidOf(seed),
      names: [`${role}-${String(number).padStart(2, "0")}`],
      host: this.hosts[index % this.hosts.length],
      vmid: String(index + 3),
      cpus: [1, 2, 2, 4, 4, 8, 16][pick(1, 7)],
      assigned: [1, 2, 4, 4, 8, 16, 64][pick(2, 7)] * 1024 * 1024,
      busy: hash(seed, 3) ** 3,
      nics: Array.from({ length: 1 + pick(4, 2) }, (_, i) => `vnet${index * 2 + i}`),
      disks: ["vda", ...(pick(5, 3) === 0 ? ["vdb"] : [])],
      source: pick(6, 5) === 0 ? "rss" : "guest",
      state: 1,
      stuck: false,
      troubled: false,
    };
    // The first few are the cases that the pages must show.
    if (index === 1) Object.assign(vm, { troubled: true, cpus: 4, busy: 0.25, disks: ["vda", "vdb"], source: "guest" });
    if (index === 2) vm.stuck = true;
    if (index === 9) vm.names = ["<img src=x onerror=alert(1)>"];
    if (index === 4) vm.names = ["mail-01", "mail-old"];
    if (index === 5) vm.state = 3;
    if (index === 6) {
      vm.nics = Array.from({ length: 12 }, (_, i) => `vnet${900 + i}`);
      vm.disks = Array.from({ length: 18 }, (_, i) => `vd${String.fromCharCode(97 + i)}`);
    }
    if (index === 8) vm.names = ['db,prod=1 "ü" with a name that is far longer than any column would ever want to be'];
    return vm;
  }

  /** The moment since which things go wrong: what a person at 3 a.m. is looking for. */
  get trouble() {
    return this.start - 22 * MINUTE;
  }

  silentHost() {
    return this.scenario === "normal" && this.hosts.length > 2 ? this.hosts.at(-1) : null;
  }

  silentSince() {
    return this.start - 4 * MINUTE;
  }

  /** When a VM was read last. */
  lastAt(vm) {
    const tick = Math.floor(this.now / this.interval) * this.interval;
    return vm.host === this.silentHost() ? Math.min(tick, this.silentSince()) : tick;
  }

  /** Nothing was collected in these spans: a night's upgrade, and two minutes of a restarted libvirtd. */
  gap(t) {
    const sinceStart = this.start - t;
    return (sinceStart > 9 * MINUTE && sinceStart < 11 * MINUTE) || (sinceStart > 7 * HOUR && sinceStart < 7.7 * HOUR) ||
      (sinceStart > 12 * DAY && sinceStart < 13 * DAY);
  }

  cpu(vm, t) {
    if (vm.state !== 1) return 0;
    const day = 0.5 + 0.5 * Math.sin(((t % DAY) / DAY - 0.3) * 2 * Math.PI);
    let load = vm.busy * (0.4 + 0.6 * day) * 80 + wave(vm.seed, 11, t, 4 * MINUTE) * 14 + hash(vm.seed, Math.floor(t / 5000)) * 4;
    if (vm.troubled && t > this.trouble) load += 55 + wave(vm.seed, 12, t, MINUTE) * 12;
    if (hash(vm.seed, Math.floor(t / HOUR) + 77) > 0.9 && t % HOUR < 90_000) load += 35;
    return Math.max(0.1, Math.min(100, load));
  }

  used(vm, t) {
    const base = vm.assigned * (0.35 + 0.3 * hash(vm.seed, 21) + 0.06 * wave(vm.seed, 22, t, 20 * MINUTE));
    const leak = vm.troubled && t > this.trouble ? (t - this.trouble) / 1000 * 320 : 0;
    return Math.round(Math.min(vm.assigned * 0.985, base + leak));
  }

  flow(vm, device, salt, t, size) {
    if (vm.state !== 1) return 0;
    const seed = vm.seed + nameSeed(device);
    let rate = size * (0.02 + hash(seed, salt) ** 4) * (0.3 + wave(seed, salt + 1, t, 3 * MINUTE)) * (0.8 + 0.4 * hash(seed + salt, Math.floor(t / 5000)));
    if (vm.troubled && t > this.trouble && device.startsWith("vd")) rate = rate * 4 + size * 0.4;
    return rate;
  }

  sum(vm, devices, salt, t, size) {
    return devices.reduce((total, device) => total + this.flow(vm, device, salt, t, size), 0);
  }

  vmNow(vm) {
    const at = this.lastAt(vm);
    const late = at < this.now - 3 * this.interval;
    const troubled = vm.troubled && at > this.trouble;
    const hidden = vm.stuck || this.gap(at);
    return {
      uuid: vm.uuid,
      name: vm.names[0],
      host: vm.host,
      vmid: vm.vmid,
      at,
      interval: this.interval,
      state: vm.state,
      cpus: vm.cpus,
      cpu: hidden ? null : round(this.cpu(vm, at), 2),
      assigned: vm.assigned,
      used: hidden ? null : this.used(vm, at),
      source: hidden ? null : vm.source,
      growth: hidden ? null : round((this.used(vm, at) - this.used(vm, at - 30_000)) / 30, 2),
      rx: round(this.sum(vm, vm.nics, 31, at, 4e7), 1),
      tx: round(this.sum(vm, vm.nics, 33, at, 3e7), 1),
      rd: hidden ? null : round(this.sum(vm, vm.disks, 35, at, 6e7), 1),
      wr: hidden ? null : round(this.sum(vm, vm.disks, 37, at, 5e7), 1),
      errors: troubled ? 14 : 0,
      drops: hash(vm.seed, 41) > 0.93 ? Math.floor(hash(vm.seed, Math.floor(at / MINUTE)) * 90) : 0,
      ok: !vm.stuck,
      age: vm.stuck ? Math.round((this.now - this.start) / 1000) + 43 : late ? Math.round((this.now - at) / 1000) : 0,
    };
  }

  /** Why each of this process's hypervisors cannot be read, as kvmetry says it. */
  problem(host) {
    if (this.scenario === "empty") {
      return "unix:/var/run/libvirt/libvirt-sock-ro: no libvirt daemon here, there is no /var/run/libvirt/virtqemud-sock-ro and no " +
        '/var/run/libvirt/libvirt-sock-ro: start it with "systemctl start libvirtd" (or virtqemud.socket)';
    }
    if (this.scenario === "no-permission") {
      return "unix:/var/run/libvirt/libvirt-sock-ro: permission refused: mode 0770, user 0, group 112; this socket is normally open " +
        "to all: see unix_sock_ro_perms in libvirtd.conf";
    }
    if (host === null || host !== this.silentHost()) return null;
    return `tls:${host}:16514: no answer from 192.0.2.9:16514: is the host up, and does a firewall let us through?`;
  }

  warnings() {
    if (this.scenario === "no-vms" || this.scenario === "fresh") return [];
    const bare = this.isBare();
    const host = bare ? "qemu:///system" : this.silentHost();
    const warnings = [];
    if (host !== null) {
      warnings.push({ level: "error", text: `${host} cannot be read: ${this.problem(host)}`,
        advice: "once that is mended it is read again by itself, within half a minute; kvmetry check tells more" });
    }
    if (!bare) {
      const blind = this.vms.find((vm) => vm.source === "rss") ?? this.vms[0];
      warnings.push({ level: "warning", text: `the memory that guests use inside is not known of 7 VMs: ${blind.names[0]}, …`,
        advice: `with a balloon driver in the guest: virsh dommemstat ${blind.uuid} --period 5 --live; or, for all of them, [collect] ` +
          'balloon_period = "5s"' });
    }
    return warnings;
  }

  isBare() {
    return this.scenario !== "normal";
  }

  fleet() {
    const vms = this.isBare() ? [] : this.vms.map((vm) => this.vmNow(vm));
    const hosts = this.isBare() && this.scenario !== "no-vms" ? [] : this.hosts.map((name) => {
      const silent = name === this.silentHost();
      const own = vms.filter((vm) => vm.host === name);
      return {
        name,
        interval: this.interval,
        at: silent ? this.silentSince() : Math.floor(this.now / this.interval) * this.interval,
        silent,
        vms: own.length,
        stuck: own.filter((vm) => !vm.ok).length,
        cycle: silent ? null : round(3 + 9 * hash(nameSeed(name), Math.floor(this.now / this.interval)), 1),
      };
    });
    const at = hosts.length === 0 ? null : Math.max(...hosts.map((host) => host.at));
    return { now: this.now, at, interval: this.interval, hosts, vms, warnings: this.warnings() };
  }

  history(points) {
    const step = Math.ceil((15 * MINUTE) / points / 1000) * 1000;
    const from = Math.floor((this.now - 15 * MINUTE) / step) * step;
    const cpu = {};
    if (!this.isBare()) {
      for (const vm of this.vms) {
        const last = this.lastAt(vm);
        cpu[vm.uuid] = Array.from({ length: Math.ceil((this.now - from) / step) }, (_, i) => {
          const t = from + i * step;
          return this.gap(t) || vm.stuck || t > last ? null : round(this.cpu(vm, t + step / 2), 2);
        });
      }
    }
    return { from, step, cpu };
  }

  marks(vm, from, to) {
    const all = [];
    const add = (at, kind, text) => all.push({ at: Math.round(at), kind, text });
    if (vm.troubled) {
      add(this.trouble, "device_added", "disk vdb was plugged in");
      add(this.trouble + 3 * MINUTE, "io_error", "vdb: write failed, no space left (reported)");
      add(this.trouble + 15 * MINUTE, "balloon", "memory now 3.50 GiB");
    }
    if (vm.names.length > 1) add(this.start - 31 * MINUTE, "renamed", `${vm.names[1]} is now ${vm.names[0]}`);
    if (vm.state === 3) add(this.start - 13 * MINUTE, "paused", "by the user");
    add(this.start - 38 * MINUTE, "restarted", `new id ${vm.vmid}, booted`);
    add(this.start - 5 * DAY, "migrated", `from ${this.hosts[0]}`);
    add(this.start - 20 * DAY, "started", "booted");
    return all.filter((mark) => mark.at >= from && mark.at <= to).sort((a, b) => a.at - b.at);
  }

  page(vm, query) {
    const to = Math.round(query.to ?? this.now);
    const from = Math.round(query.from ?? to - query.span);
    const points = Math.max(MIN_POINTS, Math.min(MAX_POINTS, query.points));
    const step = query.step ?? ((to - from) / this.interval > points ? Math.ceil((to - from) / points / this.interval) * this.interval : null);
    const first = Math.max(from, this.start - AGE);
    const last = Math.min(to, this.lastAt(vm));
    const width = step ?? this.interval;
    const times = [];
    for (let t = Math.ceil(first / width) * width; t <= last; t += width) times.push(t);

    const series = (id, label, value) => {
      const mean = [];
      const min = step === null ? null : [];
      const max = step === null ? null : [];
      for (const t of times) {
        if (this.gap(t)) {
          mean.push(null);
          min?.push(null);
          max?.push(null);
        } else if (step === null) {
          mean.push(round(value(t), 3));
        } else {
          let low = Infinity, high = -Infinity, total = 0, taken = 0;
          for (let i = 0; i < SAMPLES; i += 1) {
            const x = value(t + ((i + hash(i, t)) * step) / SAMPLES);
            if (x === null) continue;
            low = Math.min(low, x);
            high = Math.max(high, x);
            total += x;
            taken += 1;
          }
          mean.push(taken === 0 ? null : round(total / taken, 3));
          min.push(taken === 0 ? null : round(low, 3));
          max.push(taken === 0 ? null : round(high, 3));
        }
      }
      return { id, label, mean, min, max };
    };
    const table = to - from > 30 * DAY ? "1h" : to - from > 2 * DAY ? "1m" : "raw";
    const sql = (columns) =>
      `SELECT time, ${columns}\nFROM ${table === "raw" ? "vm_totals" : `vm_totals_${table}`}\nWHERE uuid = '${vm.uuid}'\n  AND time >= ${from}000000 AND time < ${to}000000\nORDER BY time`;
    const panel = (id, title, unit, columns, list) => ({ id, title, unit, times, series: list, sql: sql(columns) });
    const alive = (value) => (t) => (vm.stuck && t > this.start - 43_000 ? null : value(t));
    const cpu = (t) => this.cpu(vm, t);

    const panels = [
      panel("cpu", "CPU", "percent", "cputime, timeusr, timesys", [
        series("user", "user", alive((t) => cpu(t) * 0.62)),
        series("system", "system", alive((t) => cpu(t) * (0.2 + 0.1 * wave(vm.seed, 51, t, MINUTE)))),
        series("other", "other", alive((t) => cpu(t) * 0.08)),
      ]),
      panel("memory", "Memory", "KiB", "memactual, memrss, memavailable, memusable, memdisk_cache", [
        series("assigned", "assigned", () => vm.assigned),
        series("rss", "resident (QEMU)", alive((t) => this.used(vm, t) * 1.04)),
        series("used", "used by the guest", alive((t) => (vm.source === "guest" ? this.used(vm, t) : null))),
        series("usable", "usable", alive((t) => (vm.source === "guest" ? vm.assigned * 0.97 - this.used(vm, t) : null))),
        series("cache", "disk cache", alive((t) => vm.assigned * (0.12 + 0.05 * wave(vm.seed, 52, t, 10 * MINUTE)))),
      ]),
      panel("swap", "Swap", "bytes/s", "memswap_in, memswap_out", [
        series("in", "in", alive((t) => (vm.troubled && t > this.trouble + 10 * MINUTE ? 2e5 * wave(vm.seed, 53, t, MINUTE) : 0))),
        series("out", "out", alive((t) => (vm.troubled && t > this.trouble + 10 * MINUTE ? 9e5 * wave(vm.seed, 54, t, MINUTE) : 0))),
      ]),
      panel("faults", "Page faults", "faults/s", "memmajor_fault, memminor_fault", [
        series("major", "major", alive((t) => 3 * wave(vm.seed, 55, t, MINUTE))),
        series("minor", "minor", alive((t) => 700 * wave(vm.seed, 56, t, 2 * MINUTE))),
      ]),
      panel("trend", "Memory trend", "KiB/s", "memory_rate_kb_per_sec", [
        series("rate", "growth", alive((t) => (this.used(vm, t) - this.used(vm, t - 30_000)) / 30)),
      ]),
      panel("angle", "Memory trend as an angle", "degrees", "memory_angle_deg", [
        series("angle", "angle", alive((t) => (Math.atan((this.used(vm, t) - this.used(vm, t - 30_000)) / 30 / 1024) * 180) / Math.PI)),
      ]),
      ...this.flows(vm, "net", "Network", vm.nics, panel, series, "nic"),
      ...this.flows(vm, "disk", "Disks", vm.disks, panel, series, "disk", alive),
    ];
    for (const nic of vm.nics) panels.push(...this.flows(vm, `nic:${nic}`, nic, [nic], panel, series, "nic"));
    for (const disk of vm.disks) panels.push(...this.flows(vm, `disk:${disk}`, disk, [disk], panel, series, "disk", alive));
    return {
      names: vm.names,
      uuid: vm.uuid,
      host: vm.host,
      from,
      to,
      step,
      table,
      now: this.vmNow(vm),
      panels,
      marks: this.marks(vm, from, to),
      notes: from < this.start - AGE ? ["the store's oldest reading of this VM is 60 days old"] : [],
    };
  }

  /** The panels of all NICs or disks together (ids net, net-packets, …), or of one (nic:vnet0:bytes, …). */
  flows(vm, id, title, devices, panel, series, kind, alive = (value) => value) {
    const one = id.includes(":");
    const sub = (name, joined) => (one ? `${id}:${name}` : joined);
    const call = (salt, size) => (t) => this.sum(vm, devices, salt, t, size);
    const faulty = (rate) => (t) => (vm.troubled && t > this.trouble + 3 * MINUTE ? rate * wave(vm.seed, 61, t, MINUTE) : 0);
    if (kind === "nic") {
      return [
        panel(sub("bytes", "net"), one ? "Bytes" : title, "bytes/s", "net_rxbytes, net_txbytes", [
          series("rx", "received", call(31, 4e7)), series("tx", "sent", call(33, 3e7)),
        ]),
        panel(sub("packets", "net-packets"), one ? "Packets" : "Network packets", "count/s", "net_rxpackets, net_txpackets", [
          series("rx", "received", call(31, 4e4)), series("tx", "sent", call(33, 3e4)),
        ]),
        panel(sub("faults", "net-faults"), one ? "Errors and drops" : "Network errors and drops", "count/s", "net_rxerrors, net_rxdrops, net_txerrors, net_txdrops", [
          series("rxerrors", "receive errors", () => 0), series("rxdrops", "receive drops", (t) => (hash(vm.seed, 41) > 0.93 ? 0.3 * wave(vm.seed, 62, t, MINUTE) : 0)),
          series("txerrors", "send errors", () => 0), series("txdrops", "send drops", () => 0),
        ]),
      ];
    }
    return [
      panel(sub("bytes", "disk"), one ? "Bytes" : title, "bytes/s", "disk_rd_bytes, disk_wr_bytes", [
        series("rd", "read", alive(call(35, 6e7))), series("wr", "written", alive(call(37, 5e7))),
      ]),
      panel(sub("requests", "disk-requests"), one ? "Requests" : "Disk requests", "count/s", "disk_rd_req, disk_wr_reqs", [
        series("rd", "reads", alive(call(35, 2e3))), series("wr", "writes", alive(call(37, 3e3))),
      ]),
      panel(sub("errors", "disk-errors"), one ? "Errors" : "Disk errors", "count/s", "disk_errors", [
        series("errors", "errors", alive(faulty(0.2))),
      ]),
    ];
  }

  collector() {
    const bare = this.isBare() && this.scenario !== "no-vms";
    return {
      version: "0.4.0",
      source: "the embedded store",
      since: this.start - 3 * DAY,
      hypervisors: bare
        ? [{ host: "qemu:///system", uri: "qemu:///system", connectedSince: null, libvirt: null, cycle: null, interval: this.interval, vms: 0,
            stuck: 0, abandoned: 0, failures: 12, cacheHits: null, problem: this.problem("qemu:///system") }]
        : this.hosts.map((host, i) => {
            const silent = host === this.silentHost();
            // One is read by another collector, which writes here.
            const foreign = !silent && i === 2;
            return {
              host,
              uri: foreign ? null : `qemu+tls://${host}/system`,
              connectedSince: silent || foreign ? null : this.start - (i + 1) * 7 * HOUR,
              libvirt: silent || foreign ? null : "9.0.0",
              cycle: silent ? null : i === 1 ? 4200 : round(3 + 9 * hash(i, Math.floor(this.now / this.interval)), 1),
              interval: this.interval,
              vms: this.vms.filter((vm) => vm.host === host).length,
              stuck: this.vms.filter((vm) => vm.host === host && vm.stuck).length,
              abandoned: i === 0 ? 1 : 0,
              failures: i,
              cacheHits: 0.998,
              problem: this.problem(host),
            };
          }),
      journal: { entries: 1204, bytes: 18_874_368, max: 1_073_741_824, oldest: this.now - 9 * MINUTE },
      deliveries: bare ? [] : [
        { name: "central", url: "https://influx.example:8181", state: "ok", waitingEntries: 0, deliveredLines: 18_204_551, refusedLines: 0, lostLines: 0, trouble: null },
        { name: "archive", url: "https://archive.example:8181", state: "failing", waitingEntries: 1204, deliveredLines: 9_120_004, refusedLines: 17, lostLines: 0,
          trouble: "503 Service Unavailable since 9 min: the journal holds what waits for 21 h more" },
      ],
      store: { bytes: 3_865_470_566, max: 10_737_418_240, free: 88_046_829_568, minFree: 2_147_483_648, files: 212, rows: 96_410_233, memoryRows: 48_112 },
      points: bare ? 0 : this.vms.length * 1.6,
      warnings: this.isBare() || this.hosts.length < 2 ? this.warnings() : [...this.warnings(),
        { level: "warning", text: `${this.hosts[1]}: the last cycle took 4.2s, more than 80 % of the interval (5s)`,
          advice: "see whether VMs do not answer there; if all do, raise the interval" }],
    };
  }
}

function round(value, places) {
  if (value === null) return null;
  const factor = 10 ** places;
  return Math.round(value * factor) / factor;
}

/** 0..1 of two numbers, the same for ever. */
function hash(a, b) {
  let h = (Math.imul(a | 0, 0x9e3779b1) ^ Math.imul(Math.floor(b) | 0, 0x85ebca6b) ^ Math.imul(Math.floor(b / 4294967296) | 0, 0xc2b2ae35)) >>> 0;
  h = Math.imul(h ^ (h >>> 16), 0x21f0aaad) >>> 0;
  h = Math.imul(h ^ (h >>> 15), 0x735a2d97) >>> 0;
  return ((h ^ (h >>> 15)) >>> 0) / 4294967296;
}

/** 0..1, smooth, with turns about every `period` ms. */
function wave(seed, salt, t, period) {
  const x = t / period;
  const i = Math.floor(x);
  const f = x - i;
  const s = f * f * (3 - 2 * f);
  return hash(seed + salt * 131, i) * (1 - s) + hash(seed + salt * 131, i + 1) * s;
}

function nameSeed(name) {
  let sum = 17;
  for (const letter of name) sum = (Math.imul(sum, 31) + letter.codePointAt(0)) | 0;
  return sum;
}

function uuidOf(seed) {
  const hex = [1, 2, 3, 4].map((salt) => Math.floor(hash(seed, salt + 500) * 4294967296).toString(16).padStart(8, "0")).join("");
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-4${hex.slice(13, 16)}-a${hex.slice(17, 20)}-${hex.slice(20)}`;
}
