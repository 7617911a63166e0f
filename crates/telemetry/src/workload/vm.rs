//! One made-up VM: what it is for, what it does meanwhile, what is read of it.

use super::random::Random;
use super::{NANOS, Options, nanos};
use crate::sample::{DeviceReading, Groups, Held, Memory, Sample};
use crate::units::{Bytes, Count, DomainId, Kib, Nanos, StateCode, Uuid, WallSeconds};

/// Days between two restarts of a VM, on average.
const DAYS_BETWEEN_RESTARTS: f64 = 12.0;
/// Days between two hot-plugged NICs of a VM, on average.
const DAYS_BETWEEN_HOTPLUGS: f64 = 20.0;
const DAY_S: f64 = 86_400.0;

/// What libvirt counts on a host: ids and the numbers of `vnet` interfaces are given once.
#[derive(Debug, Default)]
pub(crate) struct Host {
    ids: i32,
    vnets: u32,
}

impl Host {
    fn new_id(&mut self) -> DomainId {
        self.ids = self.ids.saturating_add(1);
        DomainId(self.ids)
    }

    fn new_vnet(&mut self) -> String {
        self.vnets = self.vnets.wrapping_add(1);
        format!("vnet{}", self.vnets - 1)
    }
}

/// What a VM is for.
#[derive(Debug)]
struct Role {
    name: &'static str,
    vcpus: [u64; 4],
    memory_gib: [u64; 4],
    /// Load of a vCPU when nobody wants anything, and at the height of its day; 1 is all of it.
    idle_load: f64,
    peak_load: f64,
    day: Day,
    bursts_an_hour: f64,
    /// Of a whole vCPU at work.
    user_share: f64,
    /// At a load of 1: requests that come in a second, bytes of a request and of its answer.
    requests_a_s: f64,
    request_bytes: f64,
    answer_bytes: f64,
    /// At a load of 1: disk requests a second.
    reads_a_s: f64,
    writes_a_s: f64,
    /// Guest memory in use, of all.
    used_share: f64,
    swaps: bool,
}

/// When it is at work.
#[derive(Clone, Copy, Debug)]
enum Day {
    Never,
    Office,
    Evening,
    Night,
}

/// What is found on a hypervisor, in the order in which VMs take it: half of them have next to nothing to do, as
/// most VMs do.
const ROLES: [&Role; 10] = [&WEB, &IDLE, &DATABASE, &IDLE, &DESKTOP, &IDLE, &BATCH, &WEB, &IDLE, &IDLE];

const IDLE: Role = Role {
    name: "test",
    vcpus: [1, 1, 2, 2],
    memory_gib: [1, 2, 2, 4],
    idle_load: 0.001,
    peak_load: 0.001,
    day: Day::Never,
    bursts_an_hour: 0.02,
    user_share: 0.45,
    requests_a_s: 30.0,
    request_bytes: 200.0,
    answer_bytes: 1_000.0,
    reads_a_s: 60.0,
    writes_a_s: 60.0,
    used_share: 0.25,
    swaps: false,
};

const WEB: Role = Role {
    name: "web",
    vcpus: [2, 2, 4, 4],
    memory_gib: [4, 4, 8, 8],
    idle_load: 0.01,
    peak_load: 0.45,
    day: Day::Evening,
    bursts_an_hour: 0.5,
    user_share: 0.72,
    requests_a_s: 150.0,
    request_bytes: 900.0,
    answer_bytes: 12_000.0,
    reads_a_s: 8.0,
    writes_a_s: 30.0,
    used_share: 0.45,
    swaps: false,
};

const DATABASE: Role = Role {
    name: "db",
    vcpus: [4, 4, 8, 8],
    memory_gib: [8, 16, 16, 32],
    idle_load: 0.02,
    peak_load: 0.35,
    day: Day::Office,
    bursts_an_hour: 0.3,
    user_share: 0.66,
    requests_a_s: 900.0,
    request_bytes: 350.0,
    answer_bytes: 1_800.0,
    reads_a_s: 700.0,
    writes_a_s: 500.0,
    used_share: 0.7,
    swaps: true,
};

const BATCH: Role = Role {
    name: "batch",
    vcpus: [4, 8, 8, 16],
    memory_gib: [8, 8, 16, 32],
    idle_load: 0.002,
    peak_load: 0.85,
    day: Day::Night,
    bursts_an_hour: 0.2,
    user_share: 0.9,
    requests_a_s: 20.0,
    request_bytes: 60_000.0,
    answer_bytes: 4_000.0,
    reads_a_s: 300.0,
    writes_a_s: 150.0,
    used_share: 0.5,
    swaps: true,
};

const DESKTOP: Role = Role {
    name: "desktop",
    vcpus: [2, 2, 4, 4],
    memory_gib: [4, 8, 8, 8],
    idle_load: 0.008,
    peak_load: 0.2,
    day: Day::Office,
    bursts_an_hour: 4.0,
    user_share: 0.78,
    requests_a_s: 40.0,
    request_bytes: 8_000.0,
    answer_bytes: 1_500.0,
    reads_a_s: 40.0,
    writes_a_s: 40.0,
    used_share: 0.6,
    swaps: false,
};

impl Day {
    /// How much of its work it does at this time, 0 to 1.
    fn height(self, at_s: f64) -> f64 {
        let hour = at_s.rem_euclid(DAY_S) / 3_600.0;
        // The first of January 1970 was a Thursday.
        let weekday = (at_s / DAY_S).floor().rem_euclid(7.0);
        let is_weekend = matches!(weekday as u32, 2 | 3);
        let hill = |from: f64, full: f64, ebb: f64, to: f64| slope(hour, from, full) - slope(hour, ebb, to);
        match self {
            Self::Never => 0.0,
            Self::Office if is_weekend => 0.06 * hill(8.0, 11.0, 16.0, 20.0),
            Self::Office => hill(6.5, 9.5, 16.0, 19.0) - 0.3 * hill(11.5, 12.3, 12.6, 13.5),
            Self::Evening => {
                let height = hill(5.0, 12.0, 20.5, 24.0) * 0.7 + hill(17.0, 20.0, 20.5, 23.5) * 0.3;
                if is_weekend { height * 0.8 } else { height }
            }
            Self::Night => hill(1.0, 1.1, 3.8, 4.2),
        }
    }
}

/// From 0 up to 1 between two hours, smoothly.
fn slope(hour: f64, from: f64, to: f64) -> f64 {
    let part = ((hour - from) / (to - from)).clamp(0.0, 1.0);
    part * part * (3.0 - 2.0 * part)
}

/// A VM.
#[derive(Debug)]
pub(crate) struct Vm {
    random: Random,
    role: &'static Role,
    name: String,
    uuid: Uuid,
    vcpus: u64,
    memory_kib: u64,
    /// Its day is not quite that of the others, s.
    shift_s: f64,
    /// Who its users are: more or less of them.
    scale: f64,
    /// The guest reports so much after a full period, s.
    report_phase_s: i64,

    id: DomainId,
    now_ns: i64,
    /// Shut off until then.
    off_until_ns: Option<i64>,
    /// Load of a vCPU.
    load: f64,
    burst: Option<Burst>,
    /// CPU time in µs: so cgroups count.
    user_us: u64,
    system_us: u64,
    nics: Vec<Nic>,
    disks: Vec<Disk>,
    rss_pages: u64,
    report: Report,
}

#[derive(Debug)]
struct Burst {
    until_ns: i64,
    load: f64,
}

#[derive(Debug, Default)]
struct Nic {
    name: String,
    /// Part of the VM's traffic.
    share: f64,
    unplug_ns: Option<i64>,
    /// In packets.
    rx: Flow,
    tx: Flow,
    rx_drops: u64,
}

#[derive(Debug, Default)]
struct Disk {
    name: String,
    /// In requests.
    read: Flow,
    written: Flow,
}

/// What went one way since the VM's start.
#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    count: u64,
    bytes: u64,
}

impl Flow {
    fn add(&mut self, count: u64, bytes: u64) {
        self.count += count;
        self.bytes += bytes;
    }
}

/// What the guest reports of its memory; pages of 4 KiB.
#[derive(Debug, Default)]
struct Report {
    date_s: i64,
    available_pages: u64,
    usable_pages: u64,
    unused_pages: u64,
    cache_pages: u64,
    swap_in_pages: u64,
    swap_out_pages: u64,
    major_faults: u64,
    minor_faults: u64,
}

const GIB_KIB: u64 = 1024 * 1024;

impl Vm {
    /// A VM that has been running for hours to weeks.
    pub(crate) fn new(number: u32, options: &Options, host: &mut Host, mut random: Random) -> Self {
        const STEPS: i64 = 48;
        let role = ROLES[number as usize % ROLES.len()];
        let mut uuid = [0; 16];
        uuid[..8].copy_from_slice(&random.next().to_be_bytes());
        uuid[8..].copy_from_slice(&random.next().to_be_bytes());
        // RFC 9562: version 4, a random one.
        uuid[6] = uuid[6] & 0x0f | 0x40;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        let period_s = options.balloon_period.as_secs();
        let mut vm = Self {
            role,
            name: format!("{}-{:02}", role.name, number + 1),
            uuid: Uuid(uuid),
            vcpus: random.pick(&role.vcpus),
            memory_kib: random.pick(&role.memory_gib) * GIB_KIB,
            shift_s: random.between(-5_400.0, 5_400.0),
            scale: random.between(0.5, 1.3),
            report_phase_s: random.below(period_s) as i64,
            id: DomainId::NONE,
            now_ns: 0,
            off_until_ns: None,
            load: role.idle_load,
            burst: None,
            user_us: 0,
            system_us: 0,
            nics: Vec::new(),
            disks: Vec::new(),
            rss_pages: 0,
            report: Report::default(),
            random,
        };
        vm.boot(options, host);
        let step_ns = (vm.random.between(0.05, 12.0) * DAY_S) as i64 * NANOS / STEPS;
        vm.now_ns =
            options.start_ns.saturating_sub(STEPS * step_ns).saturating_sub(nanos(options.interval) * 2);
        for _ in 0..STEPS {
            vm.work_until(vm.now_ns + step_ns, options);
        }
        vm
    }

    /// Lets it run up to a moment, with all that may happen to it.
    pub(crate) fn run_until(&mut self, at_ns: i64, options: &Options, host: &mut Host) {
        let days = at_ns.saturating_sub(self.now_ns) as f64 / (DAY_S * NANOS as f64);
        if let Some(until_ns) = self.off_until_ns {
            if at_ns < until_ns {
                self.now_ns = at_ns;
                return;
            }
            self.off_until_ns = None;
            self.now_ns = until_ns;
            self.boot(options, host);
        } else if self.random.chance(days / DAYS_BETWEEN_RESTARTS) {
            self.off_until_ns =
                Some(at_ns.saturating_add((self.random.between(8.0, 90.0) * NANOS as f64) as i64));
            return;
        }
        self.nics.retain(|nic| nic.unplug_ns.is_none_or(|unplug_ns| at_ns < unplug_ns));
        if self.nics.len() == options.nics as usize && self.random.chance(days / DAYS_BETWEEN_HOTPLUGS) {
            let hours = self.random.between(0.5, 6.0);
            let unplug_ns = at_ns.saturating_add((hours * 3_600.0) as i64 * NANOS);
            self.nics.push(Nic {
                name: host.new_vnet(),
                share: 0.1,
                unplug_ns: Some(unplug_ns),
                ..Nic::default()
            });
        }
        self.work_until(at_ns, options);
    }

    /// Puts what can be read of it into a sample; false if it is shut off.
    pub(crate) fn read(&self, sample: &mut Sample, options: &Options) -> bool {
        if self.off_until_ns.is_some() {
            return false;
        }
        let kib = |pages: u64| Some(Kib(pages * 4));
        sample.begin(self.id, self.uuid, &self.name, Groups::ALL);
        sample.state = Some(StateCode(1));
        sample.vcpus = Some(Count(self.vcpus));
        sample.memory_max = Some(Kib(self.memory_kib));
        sample.memory = Memory {
            current: Some(Kib(self.memory_kib)),
            actual: None,
            rss: kib(self.rss_pages),
            available: kib(self.report.available_pages),
            usable: kib(self.report.usable_pages),
            unused: kib(self.report.unused_pages),
            swap_in: kib(self.report.swap_in_pages),
            swap_out: kib(self.report.swap_out_pages),
            major_faults: Some(Count(self.report.major_faults)),
            minor_faults: Some(Count(self.report.minor_faults)),
            disk_caches: kib(self.report.cache_pages),
            last_update: Some(WallSeconds(self.report.date_s.unsigned_abs())),
        };
        sample.balloon_period = Some(options.balloon_period);
        sample.cpu.bulk_time = Some(Nanos((self.user_us + self.system_us) * 1_000));
        sample.cpu.user = Some(Nanos(self.user_us * 1_000));
        sample.cpu.system = Some(Nanos(self.system_us * 1_000));
        sample.held = Held { memory: true, cpu: true };
        sample.nics.listed = true;
        for nic in &self.nics {
            let Some(slot) = sample.nics.add(&nic.name) else { continue };
            slot.reading = DeviceReading::Given;
            slot.rx_bytes = Some(Bytes(nic.rx.bytes));
            slot.rx_packets = Some(Count(nic.rx.count));
            slot.rx_errors = Some(Count(0));
            slot.rx_drops = Some(Count(nic.rx_drops));
            slot.tx_bytes = Some(Bytes(nic.tx.bytes));
            slot.tx_packets = Some(Count(nic.tx.count));
            slot.tx_errors = Some(Count(0));
            slot.tx_drops = Some(Count(0));
        }
        sample.disks.listed = true;
        for disk in &self.disks {
            let Some(slot) = sample.disks.add(&disk.name) else { continue };
            slot.reading = DeviceReading::Given;
            slot.rd_reqs = Some(Count(disk.read.count));
            slot.rd_bytes = Some(Bytes(disk.read.bytes));
            slot.wr_reqs = Some(Count(disk.written.count));
            slot.wr_bytes = Some(Bytes(disk.written.bytes));
        }
        true
    }

    /// Begins anew: a new id, new interfaces, counters from 0.
    fn boot(&mut self, options: &Options, host: &mut Host) {
        self.id = host.new_id();
        self.burst = None;
        (self.user_us, self.system_us) = (0, 0);
        self.nics = (0..options.nics)
            .map(|n| {
                // The first faces the users, the second the other servers, further ones nobody in particular.
                let share = [0.75, 0.25].get(n as usize).copied().unwrap_or(0.002);
                Nic { name: host.new_vnet(), share, ..Nic::default() }
            })
            .collect();
        self.disks = (0..options.disks).map(|n| Disk { name: disk_name(n), ..Disk::default() }).collect();
        let pages = self.memory_kib / 4;
        let available = pages - pages / 32 - self.random.below(pages / 500);
        let used = available / 16 + self.random.below(available / 32);
        let cache = available / 24 + self.random.below(available / 32);
        self.rss_pages = used + cache + self.random.below(9_000);
        self.report = Report {
            available_pages: available,
            usable_pages: available - used,
            unused_pages: available - used - cache,
            cache_pages: cache,
            ..Report::default()
        };
    }

    /// Works, undisturbed.
    fn work_until(&mut self, at_ns: i64, options: &Options) {
        let seconds = at_ns.saturating_sub(self.now_ns).max(0) as f64 / NANOS as f64;
        self.now_ns = at_ns;
        let level = self.level(seconds);
        self.use_cpu(seconds, level);
        self.use_network(seconds, level);
        self.use_disks(seconds, level);
        self.use_memory(seconds, level);
        let period_s = options.balloon_period.as_secs() as i64;
        let since_phase_s = at_ns.div_euclid(NANOS) - self.report_phase_s;
        let date_s = since_phase_s.div_euclid(period_s) * period_s + self.report_phase_s;
        if date_s > self.report.date_s {
            let since_s = (date_s - self.report.date_s) as f64;
            self.report.date_s = date_s;
            self.report_memory(since_s.min(seconds.max(period_s as f64)), level);
        }
    }

    /// How much of a vCPU's time it has had work, 0 to 1.
    fn level(&mut self, seconds: f64) -> f64 {
        /// How long the load takes to follow the day, s.
        const INERTIA_S: f64 = 90.0;
        let height = self.role.day.height(self.now_ns as f64 / NANOS as f64 + self.shift_s);
        let wanted = self.role.idle_load + (self.role.peak_load - self.role.idle_load) * height * self.scale;
        let pull = seconds / (seconds + INERTIA_S);
        self.load += (wanted - self.load) * pull + self.random.noise() * wanted * 0.3 * pull.sqrt();
        self.load = self.load.max(self.role.idle_load * 0.5);
        if self.random.chance(self.role.bursts_an_hour * seconds / 3_600.0) {
            let lasts_s = self.random.between(4.0, 240.0);
            let until_ns = self.now_ns.saturating_add((lasts_s * NANOS as f64) as i64);
            // A step may be longer than the burst.
            let load = self.random.between(0.1, 0.9) * (lasts_s / seconds).min(1.0);
            self.burst = Some(Burst { until_ns, load });
        }
        self.burst = self.burst.take().filter(|burst| self.now_ns < burst.until_ns);
        let burst = self.burst.as_ref().map_or(0.0, |burst| burst.load);
        ((self.load + burst) * self.random.between(0.85, 1.15)).clamp(0.0, 1.0)
    }

    fn use_cpu(&mut self, seconds: f64, level: f64) {
        /// A vCPU that does nothing: timers, and the emulator beside it.
        const UPKEEP: f64 = 0.003;
        let vcpu_us = self.vcpus as f64 * seconds * 1e6;
        let upkeep_us = vcpu_us * UPKEEP * (1.0 + 0.08 * self.random.noise());
        let work_us = vcpu_us * level;
        let user_share = (self.role.user_share + 0.02 * self.random.noise()).clamp(0.0, 1.0);
        let user_us = work_us * user_share + upkeep_us * self.random.between(0.25, 0.4);
        self.user_us += user_us.max(0.0) as u64;
        self.system_us += (work_us + upkeep_us - user_us).max(0.0) as u64;
    }

    fn use_network(&mut self, seconds: f64, level: f64) {
        let role = self.role;
        let random = &mut self.random;
        let requests = role.requests_a_s * level * self.vcpus as f64 / 4.0 * seconds;
        for nic in &mut self.nics {
            let requests = random.count(requests * nic.share);
            if requests > 0 {
                let came = random.sum(requests, role.request_bytes);
                let went = random.sum(requests, role.answer_bytes);
                // Acknowledgements of one are the packets of the other.
                let came_packets = 1 + (came as f64 / random.between(760.0, 840.0)) as u64;
                let went_packets = 1 + (went as f64 / random.between(760.0, 840.0)) as u64;
                nic.rx.add(came_packets + went_packets / 3, came + went_packets / 3 * 66);
                nic.tx.add(went_packets + came_packets / 3, went + came_packets / 3 * 66);
                nic.rx_drops += random.count(came_packets as f64 * 2e-7);
            }
            // Who has this address? Asked of everybody on the network.
            let asked = random.count(0.06 * seconds);
            nic.rx.add(asked, asked * 60);
            // What is the time?
            let synced = random.count(seconds / 256.0);
            nic.tx.add(synced, synced * 90);
            nic.rx.add(synced, synced * 90);
        }
    }

    fn use_disks(&mut self, seconds: f64, level: f64) {
        let role = self.role;
        let random = &mut self.random;
        let of_day_s = (self.now_ns.div_euclid(NANOS) as f64 + self.shift_s / 10.0).rem_euclid(DAY_S);
        let backs_up = (7_800.0..9_000.0).contains(&of_day_s) && seconds < DAY_S / 24.0;
        let data = self.disks.len().saturating_sub(1).min(1);
        for (at, disk) in self.disks.iter_mut().enumerate() {
            let mut reads_a_s = 0.0;
            let mut writes_a_s = 0.0;
            let mut pages = 4.0;
            if at == 0 {
                reads_a_s += 0.004 + 2.0 * level;
                writes_a_s += 0.12 + 3.0 * level;
                pages = 2.0;
            }
            if at == data {
                reads_a_s += role.reads_a_s * level + if backs_up { 40.0 } else { 0.0 };
                writes_a_s += role.writes_a_s * level;
            }
            if at > 1 && backs_up {
                writes_a_s += 40.0;
                pages = 64.0;
            }
            let reads = random.count(reads_a_s * seconds);
            let writes = random.count(writes_a_s * seconds);
            disk.read.add(reads, random.sum(reads, pages * 2.0) * 4_096);
            disk.written.add(writes, random.sum(writes, pages) * 4_096);
        }
    }

    /// The process grows with what the guest touches, and gives nothing back.
    fn use_memory(&mut self, seconds: f64, level: f64) {
        let limit = self.memory_kib / 4 + 12_000;
        let touched = if self.random.chance(0.03) { 1 + self.random.below(12) } else { 0 };
        let grown = self.random.count(level * 400.0 * seconds) + touched;
        if self.rss_pages + grown <= limit {
            self.rss_pages += grown;
        } else if self.random.chance(0.1) {
            // Buffers of the emulator, which do go back.
            self.rss_pages = limit - self.random.below(300);
        }
    }

    fn report_memory(&mut self, seconds: f64, level: f64) {
        let role = self.role;
        let random = &mut self.random;
        let report = &mut self.report;
        let available = report.available_pages as f64;
        let used = available - report.usable_pages as f64;
        let wanted = available * (role.used_share * (0.85 + 0.5 * level)).min(0.95);
        let pull = seconds / (seconds + 1_800.0);
        let moved = (wanted - used) * pull + random.noise() * (25.0 + 4_000.0 * level);
        let used = (used + moved).clamp(available * 0.03, available * 0.97);
        let cached = (report.cache_pages + random.count(seconds * (0.1 + 150.0 * level))) as f64;
        let room = available - used;
        // Where there is no room for it, the kernel takes back more than it must.
        let cached = if cached > room * 0.95 { room * random.between(0.85, 0.94) } else { cached };
        report.usable_pages = room as u64;
        report.cache_pages = cached as u64;
        report.unused_pages = (room - cached).max(0.0) as u64;
        report.minor_faults += random.count(seconds * (14.0 + 5_000.0 * level));
        report.major_faults += random.count(seconds * (0.0005 + 0.02 * level));
        if role.swaps && random.chance(seconds * level / 600.0) {
            report.swap_out_pages += random.below(4_000);
            report.swap_in_pages += random.below(report.swap_out_pages - report.swap_in_pages + 1);
        }
    }
}

/// `vda` to `vdz`, then `vdaa`.
fn disk_name(number: u32) -> String {
    let letter = |n: u32| char::from(b'a' + (n % 26) as u8);
    match number {
        0..26 => format!("vd{}", letter(number)),
        _ => format!("vd{}{}", letter(number / 26 - 1), letter(number)),
    }
}
