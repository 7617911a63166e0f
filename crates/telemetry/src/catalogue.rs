//! The catalogue: every field that kvmetry writes, declared once.
//!
//! A [`Field`] says under which name a value is written, in which unit, under which key libvirt's bulk record gives it,
//! which older call gives it, and where it rests in the [`Sample`] between. The reader, the encoder, the sums and
//! docs/METRICS.md are all driven by these tables: to follow `rxbytes` from key to line, read its entry in
//! [`NIC_FIELDS`]; to add a field, add an entry.
//!
//! The order of a table is the order of the fields in a line. The names are a contract: nothing here may be renamed,
//! retyped or dropped.
//!
//! Sources of the facts: libvirt's `virConnectGetAllDomainStats` documentation for the bulk keys, and the headers
//! `libvirt-domain.h` (virDomainInfo, virDomainMemoryStatTags, virDomainInterfaceStatsStruct,
//! virDomainBlockStatsStruct) for the older calls.

use std::fmt;

use crate::derive::Features;
use crate::sample::{Disk, Nic, Sample};
use crate::units::{DomainId, Uuid};

/// One field of a measurement. `T` is where its value rests, `V` the type of the value.
#[derive(Debug)]
pub struct Field<T: 'static, V: 'static = u64> {
    /// Name in the line. A sum has the prefix `net_` or `disk_` before it.
    pub name: &'static str,
    /// Unit of the value as written.
    pub unit: Unit,
    /// How the value behaves.
    pub kind: Kind,
    /// What it tells, in one line.
    pub about: &'static str,
    /// Key in a bulk record, of a device the part behind `net.N.` or `block.N.`. Empty: there is none.
    pub bulk: &'static str,
    /// The older call that tells the same.
    pub legacy: Legacy,
    /// Takes the value out of the sample; `None` where this reading did not give it.
    pub get: fn(&T) -> Option<V>,
    /// Puts a value that was read into the sample. `None` for what is derived, and where another field of the
    /// catalogue keeps the same value.
    pub set: Option<fn(&mut T, V)>,
    /// Whether an absent value was never given, and is thus written as 0; otherwise it is missing now and left out.
    /// (A device's line is written only if the device answered, so there every absent value was never given.)
    pub never_given: fn(&T) -> bool,
}

/// Unit of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// KiB, 1024 bytes.
    Kib,
    /// Nanoseconds.
    Nanos,
    /// Seconds.
    Seconds,
    /// A number of things.
    Count,
    /// A code; its values are listed in the description.
    Code,
    /// KiB per second.
    KibPerSecond,
    /// Degrees, -90 to 90.
    Degrees,
    /// Text.
    Text,
}

/// How a field behaves over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, until what it counts starts anew.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Stands for something.
    Code,
    /// Worked out from readings.
    Derived,
}

/// The older libvirt call that tells a value, where the bulk statistics cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Legacy {
    /// None.
    None,
    /// virDomainGetInfo, and the member's name.
    Info(&'static str),
    /// virDomainMemoryStats: the tag's number and name.
    MemoryStat(i32, &'static str),
    /// virDomainGetCPUStats of all CPUs together: the parameter's name.
    CpuStat(&'static str),
    /// virDomainInterfaceStats: the member's name. The members stand in the order of [`NIC_FIELDS`].
    InterfaceStat(&'static str),
    /// virDomainBlockStats: the member's name. The members stand in the order of [`DISK_FIELDS`].
    BlockStat(&'static str),
}

/// A measurement's name, tags and meaning.
#[derive(Debug)]
pub struct Measurement {
    /// Name in the line.
    pub name: &'static str,
    /// What one line stands for.
    pub about: &'static str,
    /// Its tags, in the default style.
    pub tags: &'static str,
}

/// What domain info tells of a domain.
pub const VM_METRICS: Measurement = Measurement {
    name: "vm_metrics",
    about: "One line a domain: what virDomainGetInfo tells.",
    tags: "VMID, name, uuid, host",
};

/// Fields of `vm_metrics`.
pub static VM_METRICS_FIELDS: [Field<Sample>; 5] = [
    Field::new("state", Unit::Code, Kind::Code, STATE_CODES)
        .bulk("state.state")
        .legacy(Legacy::Info("state"))
        .kept(|s| s.state.map(u64::from), |s, v| s.state = Some(v.into())),
    Field::new("cpu_count", Unit::Count, Kind::Gauge, "virtual CPUs; may be up to 60 s old")
        .bulk("vcpu.current")
        .legacy(Legacy::Info("nrVirtCpu"))
        .kept(|s| s.vcpus.map(u64::from), |s, v| s.vcpus = Some(v.into())),
    Field::new("memory_max_kb", Unit::Kib, Kind::Gauge, "memory that the domain may have at most")
        .bulk("balloon.maximum")
        .legacy(Legacy::Info("maxMem"))
        .kept(|s| s.memory_max.map(u64::from), |s, v| s.memory_max = Some(v.into())),
    Field::new("memory_used_kb", Unit::Kib, Kind::Gauge, "memory that the domain has now")
        .bulk("balloon.current")
        .legacy(Legacy::Info("memory"))
        .kept(|s| s.memory.current.map(u64::from), |s, v| s.memory.current = Some(v.into())),
    Field::new("cputime_ns", Unit::Nanos, Kind::Counter, "CPU time used; one source for a domain's life")
        .bulk("cpu.time")
        .legacy(Legacy::Info("cpuTime"))
        // Read into one place, written from another: the tracker chooses between bulk record and domain info.
        .kept(|s| s.cpu.time.map(u64::from), |s, v| s.cpu.bulk_time = Some(v.into())),
];

const STATE_CODES: &str = "0 no state, 1 running, 2 blocked, 3 paused, 4 shutting down, 5 shut off, 6 crashed, \
                           7 suspended by guest";

/// Counters of one device.
pub const VM_DEVICES: Measurement = Measurement {
    name: "vm_devices",
    about: "One line a NIC and a disk that has counters; counters since the device was created.",
    tags: "VMID, name, uuid, host, devtype (`nic` or `disk`), device (host-side target name: `vnet0`, `vda`)",
};

/// Fields of `vm_devices` with devtype `nic`, in the order of virDomainInterfaceStats.
pub static NIC_FIELDS: [Field<Nic>; 8] = [
    Field::new("rxbytes", Unit::Bytes, Kind::Counter, "received")
        .bulk("rx.bytes")
        .legacy(Legacy::InterfaceStat("rx_bytes"))
        .kept(|n| n.rx_bytes.map(u64::from), |n, v| n.rx_bytes = Some(v.into())),
    Field::new("rxpackets", Unit::Count, Kind::Counter, "packets received")
        .bulk("rx.pkts")
        .legacy(Legacy::InterfaceStat("rx_packets"))
        .kept(|n| n.rx_packets.map(u64::from), |n, v| n.rx_packets = Some(v.into())),
    Field::new("rxerrors", Unit::Count, Kind::Counter, "receive errors")
        .bulk("rx.errs")
        .legacy(Legacy::InterfaceStat("rx_errs"))
        .kept(|n| n.rx_errors.map(u64::from), |n, v| n.rx_errors = Some(v.into())),
    Field::new("rxdrops", Unit::Count, Kind::Counter, "packets dropped when receiving")
        .bulk("rx.drop")
        .legacy(Legacy::InterfaceStat("rx_drop"))
        .kept(|n| n.rx_drops.map(u64::from), |n, v| n.rx_drops = Some(v.into())),
    Field::new("txbytes", Unit::Bytes, Kind::Counter, "sent")
        .bulk("tx.bytes")
        .legacy(Legacy::InterfaceStat("tx_bytes"))
        .kept(|n| n.tx_bytes.map(u64::from), |n, v| n.tx_bytes = Some(v.into())),
    Field::new("txpackets", Unit::Count, Kind::Counter, "packets sent")
        .bulk("tx.pkts")
        .legacy(Legacy::InterfaceStat("tx_packets"))
        .kept(|n| n.tx_packets.map(u64::from), |n, v| n.tx_packets = Some(v.into())),
    Field::new("txerrors", Unit::Count, Kind::Counter, "send errors")
        .bulk("tx.errs")
        .legacy(Legacy::InterfaceStat("tx_errs"))
        .kept(|n| n.tx_errors.map(u64::from), |n, v| n.tx_errors = Some(v.into())),
    Field::new("txdrops", Unit::Count, Kind::Counter, "packets dropped when sending")
        .bulk("tx.drop")
        .legacy(Legacy::InterfaceStat("tx_drop"))
        .kept(|n| n.tx_drops.map(u64::from), |n, v| n.tx_drops = Some(v.into())),
];

/// Fields of `vm_devices` with devtype `disk`, in the order of virDomainBlockStats. The uneven spelling of `rd_req`
/// and `wr_reqs` is the contract.
pub static DISK_FIELDS: [Field<Disk>; 5] = [
    Field::new("rd_req", Unit::Count, Kind::Counter, "read requests")
        .bulk("rd.reqs")
        .legacy(Legacy::BlockStat("rd_req"))
        .kept(|d| d.rd_reqs.map(u64::from), |d, v| d.rd_reqs = Some(v.into())),
    Field::new("rd_bytes", Unit::Bytes, Kind::Counter, "read")
        .bulk("rd.bytes")
        .legacy(Legacy::BlockStat("rd_bytes"))
        .kept(|d| d.rd_bytes.map(u64::from), |d, v| d.rd_bytes = Some(v.into())),
    Field::new("wr_reqs", Unit::Count, Kind::Counter, "write requests")
        .bulk("wr.reqs")
        .legacy(Legacy::BlockStat("wr_req"))
        .kept(|d| d.wr_reqs.map(u64::from), |d, v| d.wr_reqs = Some(v.into())),
    Field::new("wr_bytes", Unit::Bytes, Kind::Counter, "written")
        .bulk("wr.bytes")
        .legacy(Legacy::BlockStat("wr_bytes"))
        .kept(|d| d.wr_bytes.map(u64::from), |d, v| d.wr_bytes = Some(v.into())),
    Field::new(
        "errors",
        Unit::Count,
        Kind::Counter,
        "I/O errors; 0 where the hypervisor does not tell (QEMU)",
    )
    .bulk("errors")
    .legacy(Legacy::BlockStat("errs"))
    .kept(|d| d.errors.map(u64::from), |d, v| d.errors = Some(v.into())),
];

/// Sums and details of a domain.
pub const VM_TOTALS: Measurement = Measurement {
    name: "vm_totals",
    about: "One line a domain: sums over its devices, CPU, memory. A sum is written only when every device of that \
            kind that can give readings gave one in this cycle.",
    tags: "VMID, name, uuid, host",
};

/// What stands before a field of [`NIC_FIELDS`] to name its sum.
pub const NIC_SUM_PREFIX: &str = "net_";
/// What stands before a field of [`DISK_FIELDS`] to name its sum.
pub const DISK_SUM_PREFIX: &str = "disk_";

type DomainField = Field<Sample>;

/// Fields of `vm_totals` that follow the sums.
pub static VM_TOTALS_FIELDS: [Field<Sample>; 14] = [
    DomainField::new("state", Unit::Code, Kind::Code, STATE_CODES)
        .bulk("state.state")
        .legacy(Legacy::Info("state"))
        .taken(|s| s.state.map(u64::from)),
    DomainField::new("cpus", Unit::Count, Kind::Gauge, "virtual CPUs; may be up to 60 s old")
        .bulk("vcpu.current")
        .legacy(Legacy::Info("nrVirtCpu"))
        .taken(|s| s.vcpus.map(u64::from)),
    DomainField::new("cputime", Unit::Nanos, Kind::Counter, "CPU time used; one source for a domain's life")
        .bulk("cpu.time")
        .legacy(Legacy::Info("cpuTime"))
        .taken(|s| s.cpu.time.map(u64::from)),
    DomainField::new("timeusr", Unit::Nanos, Kind::Counter, "CPU time in user mode")
        .bulk("cpu.user")
        .legacy(Legacy::CpuStat("user_time"))
        .kept(|s| s.cpu.user.map(u64::from), |s, v| s.cpu.user = Some(v.into()))
        .zero_if(|s| s.held.cpu),
    DomainField::new("timesys", Unit::Nanos, Kind::Counter, "CPU time in system mode")
        .bulk("cpu.system")
        .legacy(Legacy::CpuStat("system_time"))
        .kept(|s| s.cpu.system.map(u64::from), |s, v| s.cpu.system = Some(v.into()))
        .zero_if(|s| s.held.cpu),
    DomainField::new("memactual", Unit::Kib, Kind::Gauge, "memory that the domain has now, by the balloon")
        .bulk("balloon.current")
        .legacy(Legacy::MemoryStat(6, "actual"))
        // A bulk record has only the one word for it; so has a domain without a balloon.
        .kept(
            |s| s.memory.actual.or(s.memory.current).map(u64::from),
            |s, v| s.memory.actual = Some(v.into()),
        )
        .zero_if(|s| s.held.memory),
    DomainField::new("memrss", Unit::Kib, Kind::Gauge, "resident memory of the hypervisor's process")
        .bulk("balloon.rss")
        .legacy(Legacy::MemoryStat(7, "rss"))
        .kept(|s| s.memory.rss.map(u64::from), |s, v| s.memory.rss = Some(v.into()))
        .zero_if(|s| s.held.memory),
    DomainField::new("memavailable", Unit::Kib, Kind::Gauge, "memory that the guest's kernel sees")
        .bulk("balloon.available")
        .legacy(Legacy::MemoryStat(5, "available"))
        .kept(|s| s.memory.available.map(u64::from), |s, v| s.memory.available = Some(v.into()))
        .zero_if(|s| s.held.memory),
    DomainField::new("memusable", Unit::Kib, Kind::Gauge, "memory that the guest could use without swapping")
        .bulk("balloon.usable")
        .legacy(Legacy::MemoryStat(8, "usable"))
        .kept(|s| s.memory.usable.map(u64::from), |s, v| s.memory.usable = Some(v.into()))
        .zero_if(|s| s.held.memory),
    DomainField::new("memswap_in", Unit::Kib, Kind::Counter, "read from the guest's swap")
        .bulk("balloon.swap_in")
        .legacy(Legacy::MemoryStat(0, "swap_in"))
        .kept(|s| s.memory.swap_in.map(u64::from), |s, v| s.memory.swap_in = Some(v.into()))
        .zero_if(|s| s.held.memory),
    DomainField::new("memswap_out", Unit::Kib, Kind::Counter, "written to the guest's swap")
        .bulk("balloon.swap_out")
        .legacy(Legacy::MemoryStat(1, "swap_out"))
        .kept(|s| s.memory.swap_out.map(u64::from), |s, v| s.memory.swap_out = Some(v.into()))
        .zero_if(|s| s.held.memory),
    DomainField::new("memmajor_fault", Unit::Count, Kind::Counter, "page faults that needed disk I/O")
        .bulk("balloon.major_fault")
        .legacy(Legacy::MemoryStat(2, "major_fault"))
        .kept(|s| s.memory.major_faults.map(u64::from), |s, v| s.memory.major_faults = Some(v.into()))
        .zero_if(|s| s.held.memory),
    DomainField::new("memminor_fault", Unit::Count, Kind::Counter, "page faults that needed no disk I/O")
        .bulk("balloon.minor_fault")
        .legacy(Legacy::MemoryStat(3, "minor_fault"))
        .kept(|s| s.memory.minor_faults.map(u64::from), |s, v| s.memory.minor_faults = Some(v.into()))
        .zero_if(|s| s.held.memory),
    DomainField::new("memdisk_cache", Unit::Kib, Kind::Gauge, "the guest's disk caches")
        .bulk("balloon.disk_caches")
        .legacy(Legacy::MemoryStat(10, "disk_caches"))
        .kept(|s| s.memory.disk_caches.map(u64::from), |s, v| s.memory.disk_caches = Some(v.into()))
        .zero_if(|s| s.held.memory),
];

/// How whole a reading was: the last fields of `vm_totals`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wholeness {
    /// Whether everything that was wanted was read.
    pub ok: bool,
    /// Seconds since the last whole reading, or since the domain was first seen.
    pub age_s: u64,
}

/// Fields of `vm_totals` that tell how whole the reading was.
pub static WHOLENESS_FIELDS: [Field<Wholeness>; 2] = [
    Field::new("collect_ok", Unit::Code, Kind::Derived, "1 the domain was read whole, 0 partly")
        .taken(|w| Some(w.ok.into())),
    Field::new("collect_age_s", Unit::Seconds, Kind::Derived, "time since the last whole reading")
        .taken(|w| Some(w.age_s)),
];

/// What is read but not written: the inputs of [`VM_FEATURES`], and which devices a record lists.
pub static INPUT_FIELDS: [Field<Sample>; 4] = [
    Field::new("(unused)", Unit::Kib, Kind::Gauge, "memory that the guest leaves wholly unused")
        .bulk("balloon.unused")
        .legacy(Legacy::MemoryStat(4, "unused"))
        .kept(|s| s.memory.unused.map(u64::from), |s, v| s.memory.unused = Some(v.into())),
    Field::new("(last_update)", Unit::Seconds, Kind::Gauge, "when the guest last reported its memory")
        .bulk("balloon.last-update")
        .legacy(Legacy::MemoryStat(9, "last_update"))
        .kept(|s| s.memory.last_update.map(u64::from), |s, v| s.memory.last_update = Some(v.into())),
    Field::new("(nics)", Unit::Count, Kind::Gauge, "that the record lists the NICs")
        .bulk("net.count")
        .kept(|s| s.nics.listed.then_some(s.nics.iter().count() as u64), |s, _| s.nics.listed = true),
    Field::new("(disks)", Unit::Count, Kind::Gauge, "that the record lists the disks")
        .bulk("block.count")
        .kept(|s| s.disks.listed.then_some(s.disks.iter().count() as u64), |s, _| s.disks.listed = true),
];

/// What is derived from two readings.
pub const VM_FEATURES: Measurement = Measurement {
    name: "vm_features",
    about: "One line a domain whose memory was read twice: the trend of its used memory.",
    tags: "VMID, name, uuid, host",
};

/// Fields of `vm_features` (floats, always finite).
pub static VM_FEATURES_FIELDS: [Field<Features, f64>; 2] = [
    Field::new("memory_rate_kb_per_sec", Unit::KibPerSecond, Kind::Derived, "change of used memory")
        .taken(|f| Some(f.memory_rate)),
    Field::new(
        "memory_angle_deg",
        Unit::Degrees,
        Kind::Derived,
        "the trend as an angle; 45 is 1 MiB/s by default",
    )
    .taken(|f| Some(f.memory_angle)),
];

/// What happened to a domain.
pub const VM_EVENTS: Measurement = Measurement {
    name: "vm_events",
    about: "One line an event, at the time of its receipt.",
    tags: "VMID (the last live one), name, uuid, host, event (started, stopped, paused, resumed, crashed, migrated, \
           device_added, device_removed, io_error, balloon, …)",
};

/// Something that happened to a domain.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// Whom it happened to.
    pub uuid: Uuid,
    /// Its name, as the event gave it.
    pub name: &'a str,
    /// Its id, as the event gave it: -1 in the event of a stopped domain.
    pub id: DomainId,
    /// What happened: the tag `event`.
    pub event: &'a str,
    /// More about it.
    pub detail: &'a str,
    /// Why.
    pub reason: &'a str,
}

/// Fields of `vm_events`, in the line's order.
pub static VM_EVENTS_FIELDS: [TextField; 2] = [
    TextField {
        name: "detail",
        about: "more about it, such as the device or the new balloon size",
        get: |e| e.detail,
    },
    TextField { name: "reason", about: "why, as libvirt tells it", get: |e| e.reason },
];

/// A text field of `vm_events`.
#[derive(Debug)]
pub struct TextField {
    /// Name in the line.
    pub name: &'static str,
    /// What it tells, in one line.
    pub about: &'static str,
    /// Takes the text out of the event.
    pub get: for<'a> fn(&Event<'a>) -> &'a str,
}

/// What the collector tells about itself.
pub const COLLECTOR: Measurement = Measurement {
    name: "kvmetry_collector",
    about: "One line a hypervisor and cycle: how the collector fared.",
    tags: "host",
};

/// One cycle of one hypervisor, as the collector saw it. Counters are since the collector started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collector {
    /// Wall time of the cycle, ns.
    pub cycle_ns: u64,
    /// Lines written in this cycle.
    pub lines: u64,
    /// Readings that failed.
    pub failures: u64,
    /// Domains whose monitor does not answer.
    pub stuck_vms: u64,
    /// Device names found in the cache.
    pub cache_hits: u64,
    /// Device names that had to be read from XML.
    pub cache_misses: u64,
    /// Calls given up that the server still holds.
    pub abandoned_calls: u64,
    /// Connections made anew.
    pub reconnects: u64,
}

/// Fields of `kvmetry_collector`.
pub static COLLECTOR_FIELDS: [Field<Collector>; 8] = [
    Field::new("cycle_ns", Unit::Nanos, Kind::Gauge, "wall time of the cycle").taken(|c| Some(c.cycle_ns)),
    Field::new("lines", Unit::Count, Kind::Gauge, "lines of VMs in the cycle; without events and this one")
        .taken(|c| Some(c.lines)),
    Field::new("failures", Unit::Count, Kind::Counter, "readings that failed").taken(|c| Some(c.failures)),
    Field::new("stuck_vms", Unit::Count, Kind::Gauge, "domains whose monitor does not answer")
        .taken(|c| Some(c.stuck_vms)),
    Field::new("cache_hits", Unit::Count, Kind::Counter, "device names found in the cache")
        .taken(|c| Some(c.cache_hits)),
    Field::new("cache_misses", Unit::Count, Kind::Counter, "device names that had to be read from XML")
        .taken(|c| Some(c.cache_misses)),
    Field::new("abandoned_calls", Unit::Count, Kind::Gauge, "calls given up that the server still holds")
        .taken(|c| Some(c.abandoned_calls)),
    Field::new("reconnects", Unit::Count, Kind::Counter, "connections made anew")
        .taken(|c| Some(c.reconnects)),
];

impl<T, V> Field<T, V> {
    const fn new(name: &'static str, unit: Unit, kind: Kind, about: &'static str) -> Self {
        Self {
            name,
            unit,
            kind,
            about,
            bulk: "",
            legacy: Legacy::None,
            get: |_| None,
            set: None,
            never_given: |_| false,
        }
    }

    const fn bulk(self, key: &'static str) -> Self {
        Self { bulk: key, ..self }
    }

    const fn legacy(self, legacy: Legacy) -> Self {
        Self { legacy, ..self }
    }

    /// Where the value is kept between reading and writing.
    const fn kept(self, get: fn(&T) -> Option<V>, set: fn(&mut T, V)) -> Self {
        Self { get, set: Some(set), ..self }
    }

    /// The value is worked out, or kept by another field of the catalogue.
    const fn taken(self, get: fn(&T) -> Option<V>) -> Self {
        Self { get, ..self }
    }

    /// When an absent value is written as 0.
    const fn zero_if(self, never_given: fn(&T) -> bool) -> Self {
        Self { never_given, ..self }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bytes => "bytes",
            Self::Kib => "KiB",
            Self::Nanos => "ns",
            Self::Seconds => "s",
            Self::Count => "count",
            Self::Code => "code",
            Self::KibPerSecond => "KiB/s",
            Self::Degrees => "degrees",
            Self::Text => "text",
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Code => "code",
            Self::Derived => "derived",
        })
    }
}

impl fmt::Display for Legacy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => Ok(()),
            Self::Info(member) => write!(f, "virDomainGetInfo `{member}`"),
            Self::MemoryStat(tag, name) => write!(f, "virDomainMemoryStats tag {tag} `{name}`"),
            Self::CpuStat(name) => write!(f, "virDomainGetCPUStats `{name}`"),
            Self::InterfaceStat(member) => write!(f, "virDomainInterfaceStats `{member}`"),
            Self::BlockStat(member) => write!(f, "virDomainBlockStats `{member}`"),
        }
    }
}

/// How a field of a measurement behaves over time; `None` for what is not declared here.
pub fn kind_of(measurement: &str, field: &str) -> Option<Kind> {
    fn of<T, V>(fields: &[Field<T, V>], name: &str) -> Option<Kind> {
        fields.iter().find(|it| it.name == name).map(|it| it.kind)
    }
    let device = || of(&NIC_FIELDS, field).or_else(|| of(&DISK_FIELDS, field));
    let sum = || {
        let nic = field.strip_prefix(NIC_SUM_PREFIX).and_then(|it| of(&NIC_FIELDS, it));
        nic.or_else(|| field.strip_prefix(DISK_SUM_PREFIX).and_then(|it| of(&DISK_FIELDS, it)))
    };
    match measurement {
        _ if measurement == VM_METRICS.name => of(&VM_METRICS_FIELDS, field),
        _ if measurement == VM_DEVICES.name => device(),
        _ if measurement == VM_TOTALS.name => {
            of(&VM_TOTALS_FIELDS, field).or_else(sum).or_else(|| of(&WHOLENESS_FIELDS, field))
        }
        _ if measurement == VM_FEATURES.name => of(&VM_FEATURES_FIELDS, field),
        _ if measurement == COLLECTOR.name => of(&COLLECTOR_FIELDS, field),
        _ => None,
    }
}

/// Whether counters are declared of a measurement.
pub fn has_counters(measurement: &str) -> bool {
    fn any<T, V>(fields: &[Field<T, V>]) -> bool {
        fields.iter().any(|it| it.kind == Kind::Counter)
    }
    match measurement {
        _ if measurement == VM_METRICS.name => any(&VM_METRICS_FIELDS),
        // Totals have sums of those.
        _ if [VM_DEVICES.name, VM_TOTALS.name].contains(&measurement) => any(&NIC_FIELDS),
        _ if measurement == VM_FEATURES.name => any(&VM_FEATURES_FIELDS),
        _ if measurement == COLLECTOR.name => any(&COLLECTOR_FIELDS),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measurements_with_counters_are_told_apart() {
        let found = ["vm_metrics", "vm_devices", "vm_totals", "vm_features", "mine"].map(has_counters);
        assert_eq!(found, [true, true, true, false, false]);
    }

    #[test]
    fn fields_are_found_with_their_kind() {
        for (measurement, field, expect) in [
            ("vm_metrics", "cputime_ns", Some(Kind::Counter)),
            ("vm_metrics", "state", Some(Kind::Code)),
            ("vm_devices", "rxbytes", Some(Kind::Counter)),
            ("vm_devices", "rd_req", Some(Kind::Counter)),
            ("vm_totals", "net_rxbytes", Some(Kind::Counter)),
            ("vm_totals", "disk_rd_req", Some(Kind::Counter)),
            ("vm_totals", "timeusr", Some(Kind::Counter)),
            ("vm_totals", "memrss", Some(Kind::Gauge)),
            ("vm_totals", "rxbytes", None),
            ("mine", "rxbytes", None),
        ] {
            assert_eq!(kind_of(measurement, field), expect, "{measurement} {field}");
        }
        assert!(kind_of("vm_features", "memory_rate_kb_per_sec").is_some_and(|it| it != Kind::Counter));
    }
}
