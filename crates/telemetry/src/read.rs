//! From libvirt's replies into a [`Sample`]: the bulk record, parameter by parameter, and the older calls.
//!
//! ```text
//!  state.state = 1          ─┐
//!  cpu.time    = 710137000   ├─ whole key      ─▶ KeyTable, made from the catalogue ─▶ Sample
//!  balloon.rss = 48280      ─┘
//!  net.0.name  = "vnet401"  ─┐
//!  net.0.rx.bytes = 180      ├─ kind, position, rest ─▶ NIC_FIELDS, DISK_FIELDS     ─▶ Sample.nics[0], .disks[0]
//!  block.0.rd.reqs = 2      ─┘
//! ```
//!
//! A position (`net.0`) is only where a device stands in this reply; its name is its identity. Unknown keys are
//! skipped, so is a value of an unexpected type. A negative number is libvirt's "unknown" and stays absent.
//! No parameter costs an allocation, but for a device name longer than any before in its place.
//!
//! Limits: [`MAX_DEVICES`](crate::sample::MAX_DEVICES), [`MAX_DEVICE_NAME`],
//! [`MAX_DOMAIN_NAME`](crate::sample::MAX_DOMAIN_NAME); what is beyond them is counted in [`Sample::skipped`].

use crate::catalogue::{
    DISK_FIELDS, Field, INPUT_FIELDS, Legacy, NIC_FIELDS, VM_METRICS_FIELDS, VM_TOTALS_FIELDS,
};
use crate::sample::{Device, DeviceReading, Devices, Groups, MAX_DEVICE_NAME, Sample};
use crate::units::Nanos;

/// A typed parameter's value (virTypedParameter).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// Signed, 32 or 64 bits on the wire.
    Int(i64),
    /// Unsigned, 32 or 64 bits on the wire.
    UInt(u64),
    /// Floating point.
    Double(f64),
    /// Yes or no.
    Bool(bool),
    /// Text.
    Str(&'a str),
}

/// Which hypervisor driver answers; it decides what a record tells about the domain's job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// QEMU: with NOWAIT a record may come from a domain whose job could not be had; such a record lacks `balloon.rss`.
    Qemu,
    /// Any other: a record is taken for whole.
    Other,
}

/// Domain info, as virDomainGetInfo gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainInfo {
    /// State code.
    pub state: u8,
    /// Memory that the domain may have at most, KiB.
    pub max_memory_kib: u64,
    /// Memory that it has, KiB.
    pub memory_kib: u64,
    /// Number of vCPUs.
    pub vcpus: u16,
    /// CPU time used, ns.
    pub cpu_time_ns: u64,
}

/// Reads bulk records into samples. One reader serves any number of records and domains.
#[derive(Debug)]
pub struct SampleReader {
    keys: KeyTable,
}

impl Default for SampleReader {
    fn default() -> Self {
        Self::new()
    }
}

impl SampleReader {
    /// A reader for all keys of the catalogue.
    pub fn new() -> Self {
        Self { keys: KeyTable::new() }
    }

    /// Takes one parameter of the record that `sample` was begun for.
    pub fn param(&self, sample: &mut Sample, key: &str, value: Value<'_>) {
        let taken = if let Some(rest) = key.strip_prefix("block.") {
            device_param(&mut sample.disks, &DISK_FIELDS, rest, value)
        } else if let Some(rest) = key.strip_prefix("net.") {
            device_param(&mut sample.nics, &NIC_FIELDS, rest, value)
        } else {
            Taken::NotADevice
        };
        match taken {
            Taken::Done => {}
            Taken::BeyondLimit => sample.skipped = sample.skipped.saturating_add(1),
            Taken::NotADevice => {
                if let (Some(entry), Some(number)) = (self.keys.find(key), number(value)) {
                    entry.set.iter().flatten().for_each(|set| set(sample, number));
                }
            }
        }
    }

    /// Ends a record, before anything from older calls is added: judges whether it was read with the domain's job
    /// held, and thus what its gaps mean.
    pub fn finish(&self, sample: &mut Sample, driver: Driver) {
        // QEMU adds the process's resident memory to every memory reading that held the job, and block counters come
        // only from a monitor that answered (qemuDomainGetStatsBalloon, qemuDomainGetStatsBlock).
        let memory_held = match driver {
            Driver::Qemu => sample.memory.rss.is_some(),
            Driver::Other => sample.memory.current.is_some(),
        };
        let a_disk_gave = sample.disks.iter().any(|disk| disk.reading == DeviceReading::Given);
        let could_tell = sample.wanted.contains(Groups::MEMORY)
            || sample.wanted.contains(Groups::DISKS) && sample.disks.iter().next().is_some();
        sample.busy = could_tell && !memory_held && !a_disk_gave;

        sample.held.memory |= memory_held;
        // User and system time need no job; they come with cpu.time, or this server gives none of the three.
        sample.held.cpu |= sample.cpu.bulk_time.is_some();

        // Interface counters need no job either: a NIC with a name and without counters was asked and had none.
        settle(&mut sample.nics, DeviceReading::NoCounters);
        // One disk's counters show that the table of all disks was there; a disk that is not in it (vhost-user) has
        // none. If none gave any, the table may have failed.
        settle(
            &mut sample.disks,
            if a_disk_gave {
                DeviceReading::Unsupported
            } else if memory_held {
                DeviceReading::NoCounters
            } else {
                DeviceReading::NotRead
            },
        );
    }
}

/// The older calls, one function each. What could not be read is simply not called for.
impl Sample {
    /// What virDomainGetInfo told in this cycle. (From an older info take only the vCPU count: set
    /// [`Sample::vcpus`], since its CPU time is old.)
    pub fn domain_info(&mut self, info: &DomainInfo) {
        self.state = Some(u64::from(info.state).into());
        self.memory_max = Some(info.max_memory_kib.into());
        self.memory.current = Some(info.memory_kib.into());
        self.vcpus = Some(u64::from(info.vcpus).into());
        self.cpu.info_time = Some(Nanos(info.cpu_time_ns));
    }

    /// What a call of virDomainMemoryStats that succeeded told: tags and values. Tags that it lacks were never given.
    pub fn memory_stats(&mut self, stats: impl IntoIterator<Item = (i32, u64)>) {
        self.held.memory = true;
        for (tag, value) in stats {
            let is_it = |field: &&Field<Sample>| matches!(field.legacy, Legacy::MemoryStat(t, _) if t == tag);
            let field = VM_TOTALS_FIELDS.iter().chain(&INPUT_FIELDS).find(is_it);
            if let Some(set) = field.and_then(|field| field.set) {
                set(self, value);
            }
        }
    }

    /// What virDomainGetCPUStats told for all CPUs together, in ns. A domain whose hypervisor has no such statistics
    /// gives `None`: these were never given.
    pub fn cpu_stats(&mut self, user_ns: Option<u64>, system_ns: Option<u64>) {
        self.held.cpu = true;
        self.cpu.user = user_ns.map(Nanos);
        self.cpu.system = system_ns.map(Nanos);
    }

    /// That the NICs are listed, however many follow by [`Sample::nic`] and [`Sample::nic_lacks`].
    pub fn list_nics(&mut self) {
        self.nics.listed = true;
    }

    /// That the disks are listed, however many follow by [`Sample::disk`] and [`Sample::disk_lacks`].
    pub fn list_disks(&mut self) {
        self.disks.listed = true;
    }

    /// One NIC's virDomainInterfaceStats: received bytes, packets, errors, drops, then sent. -1 is unknown.
    pub fn nic(&mut self, name: &str, stats: &[i64; NIC_FIELDS.len()]) {
        self.skipped += u32::from(!device_stats(&mut self.nics, &NIC_FIELDS, name, stats));
    }

    /// One disk's virDomainBlockStats: read requests and bytes, write requests and bytes, errors. -1 is unknown.
    pub fn disk(&mut self, name: &str, stats: &[i64; DISK_FIELDS.len()]) {
        self.skipped += u32::from(!device_stats(&mut self.disks, &DISK_FIELDS, name, stats));
    }

    /// A NIC that is there, but gave no counters, and what that means.
    pub fn nic_lacks(&mut self, name: &str, reading: DeviceReading) {
        self.skipped += u32::from(!device_lacks(&mut self.nics, name, reading));
    }

    /// A disk that is there, but gave no counters, and what that means.
    pub fn disk_lacks(&mut self, name: &str, reading: DeviceReading) {
        self.skipped += u32::from(!device_lacks(&mut self.disks, name, reading));
    }
}

fn device_stats<T: Device>(
    devices: &mut Devices<T>,
    fields: &'static [Field<T>],
    name: &str,
    stats: &[i64],
) -> bool {
    let Some(device) = devices.add(name) else { return false };
    *device.reading_mut() = DeviceReading::Given;
    for (field, value) in fields.iter().zip(stats) {
        if let (Some(set), Ok(value)) = (field.set, u64::try_from(*value)) {
            set(device, value);
        }
    }
    true
}

fn device_lacks<T: Device>(devices: &mut Devices<T>, name: &str, reading: DeviceReading) -> bool {
    devices.add(name).map(|device| *device.reading_mut() = reading).is_some()
}

/// What became of a parameter that looked like a device's.
enum Taken {
    /// It was read, or its rest is of no interest.
    Done,
    /// Its position or its name is beyond a limit.
    BeyondLimit,
    /// There is no position in it, as in `net.count`.
    NotADevice,
}

/// Takes `N.rest` of a device's key.
fn device_param<T: Device>(
    devices: &mut Devices<T>,
    fields: &'static [Field<T>],
    rest: &str,
    value: Value<'_>,
) -> Taken {
    let Some((position, suffix)) = position(rest) else { return Taken::NotADevice };
    if let Some(field) = fields.iter().find(|field| field.bulk == suffix) {
        let (Some(set), Some(number)) = (field.set, number(value)) else { return Taken::Done };
        let Some(device) = devices.slot(position) else { return Taken::BeyondLimit };
        set(device, number);
        *device.reading_mut() = DeviceReading::Given;
    } else if let ("name", Value::Str(name)) = (suffix, value) {
        if name.len() > MAX_DEVICE_NAME {
            return Taken::BeyondLimit;
        }
        let Some(device) = devices.slot(position) else { return Taken::BeyondLimit };
        device.name_mut().clear();
        device.name_mut().push_str(name);
    }
    Taken::Done
}

/// Splits `12.rx.bytes` into 12 and `rx.bytes`. A position too large for any limit comes out as a large one.
fn position(rest: &str) -> Option<(usize, &str)> {
    let mut position = 0_usize;
    for (at, byte) in rest.bytes().enumerate() {
        match byte {
            b'0'..=b'9' => position = position.saturating_mul(10).saturating_add(usize::from(byte - b'0')),
            b'.' if at > 0 => return Some((position, &rest[at + 1..])),
            _ => return None,
        }
    }
    None
}

/// The number in a value; `None` for what is no number that can be counted with, libvirt's negative "unknown" too.
fn number(value: Value<'_>) -> Option<u64> {
    match value {
        Value::UInt(number) => Some(number),
        Value::Int(number) => u64::try_from(number).ok(),
        Value::Double(_) | Value::Bool(_) | Value::Str(_) => None,
    }
}

/// Says of every device that gave nothing what that means.
fn settle<T: Device>(devices: &mut Devices<T>, meaning: DeviceReading) {
    for device in devices.iter_mut().filter(|device| device.reading() == DeviceReading::NotRead) {
        *device.reading_mut() = meaning;
    }
}

/// The whole keys of the catalogue, sorted, each with the places that it is kept in: `balloon.current` is both what
/// the domain has and the balloon's word for it.
#[derive(Debug)]
struct KeyTable(Vec<KeyEntry>);

type Setter = fn(&mut Sample, u64);

#[derive(Debug)]
struct KeyEntry {
    key: &'static str,
    set: [Option<Setter>; 2],
}

impl KeyTable {
    fn new() -> Self {
        let mut entries: Vec<KeyEntry> = Vec::new();
        for field in VM_METRICS_FIELDS.iter().chain(&VM_TOTALS_FIELDS).chain(&INPUT_FIELDS) {
            if field.set.is_none() || field.bulk.is_empty() {
                continue;
            }
            match entries.iter_mut().find(|entry| entry.key == field.bulk) {
                Some(entry) => entry.set[1] = field.set,
                None => entries.push(KeyEntry { key: field.bulk, set: [field.set, None] }),
            }
        }
        entries.sort_unstable_by_key(|entry| entry.key);
        Self(entries)
    }

    fn find(&self, key: &str) -> Option<&KeyEntry> {
        let at = self.0.binary_search_by_key(&key, |entry| entry.key).ok()?;
        self.0.get(at)
    }
}
